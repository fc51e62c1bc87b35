"""Train a network, make it smaller by plain pruning and by Intra-Fusion, and compare the two."""

import dataclasses
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# XLA calls LAPACK from all cores at once, for chip's singular values: ten times slower where each
# call wants all cores for itself. OpenBLAS reads this when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

try:
    import jax
    import tyro

    import ifjax
    from ifjax import data, report, training
    from ifjax.calibrate import Stats
    from ifjax.training import compression, sensitivity
    from ifjax.training.config import Config, UserError, check, settings, user_error
    from ifjax.training.curves import add, open_curves
    from ifjax.training.journal import Journal, find_run
    from ifjax.training.network import Network, create, load
    from ifjax.training.runner import Optimization, evaluator, optimization, train, train_step
    from ifjax.training.variants import METHODS, Outcome, Variant, variants
except ModuleNotFoundError as missing:
    print(f"train.py: {missing}; run: pip install 'ifjax[train]'", file=sys.stderr)
    raise SystemExit(2) from None


class NotConverged(Exception):
    """A transport problem was not solved."""


class Job(NamedTuple):
    """A configuration that was found good, and what it stands for.

    ``stages`` are the finished ones of the run to continue, None for a new run.
    """

    config: Config
    dataset: data.ImageDataset
    network: Network
    graph: ifjax.DependencyGraph
    variants: list[list[Variant]]
    training: Optimization
    fine_tuning: Optimization
    stages: dict[str, Any] | None


def main(config: Config, command: str = "") -> list[Outcome]:
    """Do all of it, or what an interrupted run of the same settings left to do.

    Args:
        config: what to do.
        command: the command line, for the report.

    Returns:
        The rows of the table: the dense network, then every method at every sparsity.

    Raises:
        UserError: if the configuration, the data set or the checkpoint cannot be used; nothing
            was written then.
        FloatingPointError: if a loss or a parameter becomes NaN or infinite.
        NotConverged: if Sinkhorn does not reach its tolerance.
    """
    began = time.monotonic()
    job = prepare(config)
    print(job.graph)
    with user_error("--out"):
        journal = Journal(config.folder, settings(config), job.stages)
    with journal:
        network, dense = train_dense(job, journal)
        cut = job.variants[-1][0].spec  # the sparsest: it cuts every group that any other cuts
        stats = compression.calibrate(config, job.dataset, network, cut, config.importances)
        rows, records = [dense], []
        if config.per_group:
            records = cut_alone(job, journal, network, stats)
        else:
            for group in job.variants:
                rows += compress(job, journal, network, group, stats)
        seconds = time.monotonic() - began
        write(job, rows, records, command, seconds)
        journal.finish()
    print(f"\n{sensitivity.table(records) if records else report.table(rows)}\n")
    print(f"{seconds:.0f} s; networks, numbers, plots and curves are in {config.folder}")
    return rows


def prepare(config: Config) -> Job:
    """Turn a configuration into a job, or say in one line why not; writes nothing."""
    check(config)
    with user_error("--out"):
        stages = find_run(
            config.folder, settings(config), overwrite=config.overwrite, resume=config.resume
        )
    with user_error("--data"):
        dataset = data.load(config.data, config.data_dir)
    if config.train_images is not None:
        dataset = first_images(dataset, config.train_images)
    needed = {"--batch-size": config.batch_size}
    if compression.needs_stats(config):
        needed["--calibration-images"] = config.calibration_images
    for option, count in needed.items():
        if count > dataset.num_train:
            raise UserError(
                f"{option}: {count} is more than the {dataset.num_train} training images of "
                f"{config.data}"
            )
    tune = config.fine_tune_epochs, config.fine_tune_learning_rate
    with user_error("optimizer"):
        fine_tuning = optimization(config, dataset, *tune)
        dense_training = optimization(
            config, dataset, config.epochs, config.learning_rate, config.milestones
        )
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), "float32")
    with user_error("--checkpoint" if config.checkpoint else "--model"):
        if config.checkpoint is None:
            network = create(config, dataset)
        else:
            network = load(config, dataset, config.checkpoint)
        graph = ifjax.trace(network.apply_eval, network.variables, image)
    found = variants(config, graph)
    with user_error("--importances"):
        compression.check_importances(config, dataset, network, found[-1][0].spec)
    return Job(config, dataset, network, graph, found, dense_training, fine_tuning, stages)


def first_images(dataset: data.ImageDataset, count: int) -> data.ImageDataset:
    """Leave only the first images to train on."""
    if not isinstance(dataset, data.Dataset):
        raise UserError(f"--train-images: {dataset.name} is streamed; choose a set held in memory")
    if count > dataset.num_train:
        raise UserError(f"--train-images: {dataset.name} has {dataset.num_train}, got {count}")
    images, labels = dataset.train_images[:count], dataset.train_labels[:count]
    return dataclasses.replace(dataset, train_images=images, train_labels=labels)


def train_dense(job: Job, journal: Journal) -> tuple[Network, Outcome]:
    """Train the dense network unless it is given or done, evaluate and save it."""
    config, network, folder = job.config, job.network, journal.folder / "dense"
    if "dense" in journal.stages:
        with user_error("--out"):
            variables, _ = ifjax.load(folder)
        return network._replace(variables=variables), Outcome(**journal.stages["dense"])
    test = evaluator(config, job.dataset, network)
    if config.checkpoint is None:
        by = job.training
        state = training.create_state(network.variables, by.optimizer, config.seed)
        step = train_step(config, job.dataset, network, by)
        state = train(config, job.dataset, journal, "dense", state, step, by, test=test)
        network = network._replace(variables=state.variables)
    whole = job.graph.spec(0.0)
    accuracy = test(network.variables).accuracy
    save(folder, network.variables, whole)
    print(f"dense: accuracy {accuracy:.2%}", flush=True)
    row = Outcome(0.0, "dense", whole.weights()[0], whole.flops()[0], accuracy, None, "dense")
    journal.add("dense", dataclasses.asdict(row))
    return network, row


def compress(
    job: Job, journal: Journal, network: Network, group: list[Variant], stats: Stats | None
) -> list[Outcome]:
    """Compress to one sparsity by every importance and method, but for what is done."""
    # All have the same widths, so one set of compiled steps serves them.
    stages = compression.stages(job.config, job.dataset, network, group[0].spec, job.fine_tuning)
    for variant in group:
        if variant.name not in journal.stages:
            row = compress_once(job, journal, network, variant, stages, stats)
            journal.add(variant.name, dataclasses.asdict(row))
    return [Outcome(**journal.stages[variant.name]) for variant in group]


def compress_once(
    job: Job,
    journal: Journal,
    network: Network,
    variant: Variant,
    stages: list[compression.Stage],
    stats: Stats | None,
) -> Outcome:
    """Compress, evaluate, fine-tune, evaluate, save; in several rounds if there are several."""
    config, by, label = job.config, job.fine_tuning, f"{variant.label} {variant.asked:.0%}"
    state = training.create_state(network.variables, by.optimizer, config.seed)
    before, after = 0.0, None
    rounds = ifjax.iterated(variant.spec, config.rounds)
    for number, (spec, stage) in enumerate(zip(rounds, stages, strict=True), start=1):
        if number > 1:
            small = stages[number - 2].network._replace(variables=state.variables)
            scores = (variant.importance,)
            stats = compression.calibrate(config, job.dataset, small, spec.step, scores)
        try:
            state = compression.fuse_state(state, spec.step, stats)
        except RuntimeError as error:
            raise NotConverged(f"{label}: {error}") from error
        before = stage.test(state.variables).accuracy
        if by.steps:
            state = train(
                config,
                job.dataset,
                journal,
                variant.name,
                state,
                stage.step,
                by,
                until=by.steps * number // config.rounds,
                part=f"round-{number}",
                description=f"fine-tune {label}",
            )
    message = f"{label}: accuracy {before:.2%}"
    if by.steps:
        after = stages[-1].test(state.variables).accuracy
        message += f", fine-tuned {after:.2%}"
    save(journal.folder / variant.name, state.variables, variant.spec)
    print(message, flush=True)
    percent = round(100 * variant.asked)
    with open_curves(journal.logs(f"{variant.method}-{variant.importance}"), percent) as curves:
        tuned = {} if after is None else {"sparsity/fine-tuned": after}
        add(curves, percent, {"sparsity/accuracy": before} | tuned)
    (_, weights), (_, flops) = variant.spec.weights(), variant.spec.flops()
    return Outcome(
        variant.sparsity,
        variant.label,
        weights,
        flops,
        before,
        after,
        variant.name,
        variant.importance,
        variant.asked,
    )


def cut_alone(
    job: Job, journal: Journal, network: Network, stats: Stats | None
) -> list[dict[str, Any]]:
    """Cut one group at a time, without fine-tuning, but for the groups that are done."""
    config, test = job.config, evaluator(job.config, job.dataset, network)
    records = []
    for name, specs in sensitivity.one_at_a_time(config, job.graph, job.variants[-1][0].spec):
        if f"group {name}" not in journal.stages:
            found = []
            for sparsity, score, method, spec in specs:
                label = METHODS[method] + (f", {score}" if len(config.importances) > 1 else "")
                try:
                    accuracy = sensitivity.accuracy_alone(
                        config, job.dataset, network, spec, stats, test
                    )
                except RuntimeError as error:
                    raise NotConverged(f"{name}, {label} {sparsity:.0%}: {error}") from error
                record = {"group": name, "sparsity": sparsity, "method": label}
                found.append(record | {"importance": score, "accuracy": accuracy})
                print(f"{name}, {label} {sparsity:.0%}: accuracy {accuracy:.2%}", flush=True)
            journal.add(f"group {name}", found)
        records += journal.stages[f"group {name}"]
    return records


def write(
    job: Job, rows: list[Outcome], records: list[dict[str, Any]], command: str, seconds: float
) -> None:
    """Write numbers and plots; with several importances a plot for each."""
    config, folder = job.config, job.config.folder
    title = f"{config.model} on {config.data}, {rows[0].weights:,} weights, seed {config.seed}"
    for score in config.importances:
        suffix = f"-{score}" if len(config.importances) > 1 else ""
        whose = title + (f", {score}" if suffix else "")
        if records:
            dense = {"sparsity": 0.0, "accuracy": rows[0].accuracy}
            mine = [record for record in records if record["importance"] == score]
            report.plot_sensitivity([dense, *mine], folder / f"sensitivity{suffix}.png", whose)
        else:
            of_score = [row for row in rows if row.importance in (None, score)]
            report.plot_accuracy(of_score, folder / f"accuracy{suffix}.png", whose)
    origin = report.provenance(command) | {"config": settings(config), "seed": config.seed}
    content = origin | {"seconds": round(seconds, 1)} | ({"records": records} if records else {})
    text = report.to_json(rows, content)
    report.write_atomically(folder / "results.json", lambda file: file.write_text(text))


def save(path: Path, variables: Any, spec: ifjax.FusionSpec) -> None:
    """Save a network in the place of an earlier one, if there is one, once it is complete."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    ifjax.save(new, variables, spec)
    shutil.rmtree(path, ignore_errors=True)
    new.rename(path)


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run :func:`main`; 0, or 2 for what the user can put right, or 1 for a run that failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = tyro.cli(Config, prog="train.py", args=arguments)
    try:
        main(config, shlex.join(["python", "train.py", *arguments]))
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command continues the run", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"train.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (FloatingPointError, NotConverged) as error:
        print(f"train.py: stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(cli())
