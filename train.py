"""Trains a network, makes it smaller by plain pruning and by Intra-Fusion, and compares the two.

Or train one on every fold of the data at once, and make them one small network (FaP, PaF).
"""

import contextlib
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

# XLA calls LAPACK from all cores at once, for chip's singular values: ten times slower where each
# call wants all cores for itself. OpenBLAS reads this when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

try:
    import jax

    import ifjax
    from ifjax import data, report
    from ifjax.experiment import compression, fold_models, sensitivity
    from ifjax.experiment.checking import check
    from ifjax.experiment.config import Config, settings
    from ifjax.experiment.errors import UserError, user_error
    from ifjax.experiment.journal import Journal, find_run
    from ifjax.experiment.network import create, load
    from ifjax.experiment.options import parse
    from ifjax.experiment.pipelines import fuse_and_prune, with_speedups
    from ifjax.experiment.programs import kept_programs
    from ifjax.experiment.runner import optimization
    from ifjax.experiment.stages import (
        Job,
        NotConverged,
        Origin,
        compress,
        cut_alone,
        statistics,
        train_dense,
    )
    from ifjax.experiment.variants import Outcome, variants
    from ifjax.training.distributed import Cluster, is_first, run
    from ifjax.training.signals import Interrupted, interruptible
except ModuleNotFoundError as missing:
    print(f"train.py: {missing}; run: pip install 'ifjax[train]'", file=sys.stderr)
    raise SystemExit(2) from None


def main(config: Config, command: str = "") -> list[Outcome]:
    """Does all of it, or what an interrupted run of the same settings left to do.

    Args:
        config: what to do.
        command: the command line, for the report.

    Returns:
        The rows of the table: the dense network, then every method at every sparsity; with FaP and
        PaF also the networks of the folds, and what is made of them.

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
        rows, records = [], []
        if config.whole:
            network, dense = train_dense(job, journal)
            rows, origin = [dense], Origin(network, statistics(job, network), None, dense.seconds)
            if config.per_group:
                records = cut_alone(job, journal, network, origin.stats)
            else:
                rows += compress(job, journal, origin)
        if job.folds is not None:
            rows += fuse_and_prune(job, job.folds, journal)
            rows = with_speedups(rows)
        seconds = time.monotonic() - began
        if is_first():
            write(job, rows, records, command, seconds)
        journal.finish()
    print(f"\n{sensitivity.table(records) if records else report.table(rows)}\n")
    print(f"{seconds:.0f} s; networks, numbers, plots and curves are in {config.folder}")
    return rows


def prepare(config: Config) -> Job:
    """Turns a configuration into a job, or says in one line why not; writes nothing."""
    check(config)
    with user_error("--out"):
        stages = find_run(
            config.folder, settings(config), overwrite=config.overwrite, resume=config.resume
        )
    with user_error("--data"):
        dataset = data.load(config.data, config.data_dir)
    if config.train_images is not None:
        dataset = first_images(dataset, config.train_images)
    if config.label_noise:
        with user_error("--label-noise"):
            dataset = data.mislabel(in_memory(dataset), config.label_noise, seed=config.seed)
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
    folds = None if config.mode == "compress" else fold_models.prepare_folds(config, dataset)
    if folds is not None:
        sizes = ", ".join(str(len(fold)) for fold in folds.split.folds)
        print(f"{folds.split.layout}; images of each: {sizes}")
    return Job(config, dataset, network, graph, found, dense_training, fine_tuning, folds, stages)


def first_images(dataset: data.ImageDataset, count: int) -> data.ImageDataset:
    """Leaves only the first images to train on."""
    with user_error("--train-images"):
        dataset = in_memory(dataset)
    if count > dataset.num_train:
        raise UserError(f"--train-images: {dataset.name} has {dataset.num_train}, got {count}")
    images, labels = dataset.train_images[:count], dataset.train_labels[:count]
    return dataclasses.replace(dataset, train_images=images, train_labels=labels)


def in_memory(dataset: data.ImageDataset) -> data.Dataset:
    """Refuses a streamed data set."""
    if not isinstance(dataset, data.Dataset):
        raise ValueError(f"{dataset.name} is streamed; choose a set held in memory")
    return dataset


def write(
    job: Job, rows: list[Outcome], records: list[dict[str, Any]], command: str, seconds: float
) -> None:
    """Writes numbers and plots; with several importances a plot for each."""
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


def cli(arguments: Sequence[str] | None = None) -> int:
    """Runs :func:`main`, on one host or several.

    Returns:
        0; 2 for what the user can put right, or 1 for a run that failed; 130 or 143 for one that
        was interrupted by Control-C or SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(Config, "train.py", arguments)
    command = shlex.join(["python", "train.py", *arguments])
    try:
        with user_error("--coordinator"):
            cluster = Cluster(
                config.coordinator,
                config.processes,
                config.process,
                config.local_devices,
                config.lost_after,
            )
        force_devices(config)
        return run(lambda: attempt(config, command), cluster)
    except UserError as error:
        return complain(error)


def attempt(config: Config, command: str) -> int:
    """Runs :func:`main`, and tells in one line what went wrong; gives the exit code."""
    try:
        with interruptible(), kept_programs(config.compile_cache):
            main(config, command)
    except KeyboardInterrupt as stop:
        print("train.py: interrupted; the same command continues the run", file=sys.stderr)
        return stop.code if isinstance(stop, Interrupted) else 130
    except UserError as error:
        return complain(error)
    except (FloatingPointError, NotConverged) as error:
        print(f"train.py: stopped: {error}", file=sys.stderr)
        return 1
    return 0


def complain(error: UserError) -> int:
    """Tells what the user can put right."""
    print(f"train.py: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def force_devices(config: Config) -> None:
    """On CPU, give every fold a device of its own, as far as there are cores."""
    forced = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if config.mode == "compress" or forced:
        return
    mine = -(-config.folds // (config.processes or 1))
    with contextlib.suppress(RuntimeError):  # jax was used before
        jax.config.update("jax_num_cpu_devices", min(mine, os.cpu_count() or 1))


if __name__ == "__main__":
    sys.exit(cli())
