"""The stages of a run: train a network, compress it, fine-tune; each is done once."""

import dataclasses
import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

import ifjax
from ifjax import data, training
from ifjax.activations.statistics import Stats
from ifjax.experiment import compression, fold_models, sensitivity
from ifjax.experiment.config import Config
from ifjax.experiment.curves import add, open_curves
from ifjax.experiment.errors import user_error
from ifjax.experiment.journal import Journal
from ifjax.experiment.network import Network
from ifjax.experiment.runner import Optimization, evaluator, train, train_step
from ifjax.experiment.variants import METHODS, Outcome, Variant
from ifjax.models.layers import MOMENTUM
from ifjax.training.distributed import is_first, on_first
from ifjax.training.state import TrainState


class NotConverged(Exception):
    """A transport problem was not solved."""


class Job(NamedTuple):
    """A configuration that was found good, and what it stands for.

    ``stages`` are the finished ones of the run to continue, None for a new run; ``folds`` is None
    where there are none.
    """

    config: Config
    dataset: data.ImageDataset
    network: Network
    graph: ifjax.DependencyGraph
    variants: list[list[Variant]]
    training: Optimization
    fine_tuning: Optimization
    folds: fold_models.FoldTraining | None
    stages: dict[str, Any] | None


class Origin(NamedTuple):
    """What is compressed, and how long it took to train: a network, or the models of all folds.

    ``models`` are the variables of the folds, with PaF, ``network`` then has their functions;
    ``seconds`` is None where nobody asks.
    """

    network: Network
    stats: Stats | None
    models: list[Any] | None = None
    seconds: float | None = None


def statistics(job: Job, network: Network) -> Stats | None:
    """Collects what the importances need of a dense network besides its weights."""
    cut = job.variants[-1][0].spec  # the sparsest: it cuts every group that any other cuts
    return compression.calibrate(job.config, job.dataset, network, cut, job.config.importances)


def train_dense(job: Job, journal: Journal) -> tuple[Network, Outcome]:
    """Trains the dense network unless it is given or done, evaluates and saves it."""
    config, network, folder = job.config, job.network, journal.folder / "dense"
    if "dense" in journal.stages:
        return read(network, folder), Outcome(**journal.stages["dense"])
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
    steps = job.training.steps if config.checkpoint is None and job.graph.structure.norms else None
    print(f"dense: accuracy {accuracy:.2%}{said_of_norms(steps)}", flush=True)
    row = Outcome(
        0.0,
        "dense" if job.folds is None else "all data",
        whole.weights()[0],
        whole.flops()[0],
        accuracy,
        None,
        "dense",
        seconds=None if job.folds is None else journal.seconds["dense"],
        latency=test.latency(network.variables),
    )
    journal.add("dense", dataclasses.asdict(row))
    return network, row


def compress(job: Job, journal: Journal, origin: Origin, prefix: str = "") -> list[Outcome]:
    """Compresses to every sparsity by every importance and method, but for what is done."""
    rows = []
    for group in job.variants:
        # All have the same widths, so one set of compiled steps serves them.
        stages = compression.stages(
            job.config, job.dataset, origin.network, group[0].spec, job.fine_tuning
        )
        for variant in group:
            if prefix:
                variant = variant._replace(
                    name=f"{prefix.lower()}-{variant.name}", label=f"{prefix}, {variant.label}"
                )
            if variant.name not in journal.stages:
                row = compress_once(job, journal, origin, variant, stages)
                journal.add(variant.name, dataclasses.asdict(row))
            rows.append(Outcome(**journal.stages[variant.name]))
    return rows


def said_of_collapse(accuracy: float, dense: float | None) -> str:
    """What is said of a network of which a cut leaves next to nothing.

    Args:
        accuracy: of the compressed network.
        dense: of the dense one, where it is known.

    Returns:
        A remark, or nothing.

    Example:
        >>> said_of_collapse(0.0912, 0.95), said_of_collapse(0.5, 0.95)
        (' (less than a tenth of the dense 95.00%: cut less, or train on)', '')
    """
    if not dense or accuracy >= dense / 10:
        return ""
    return f" (less than a tenth of the dense {dense:.2%}: cut less, or train on)"


def said_of_norms(steps: int | None) -> str:
    """What is said of batch norms that have not settled.

    A step of training leaves nine tenths of the running statistics as they were; they have settled
    where a hundredth at most is of what the network began with, after 44 steps.

    Args:
        steps: steps of training; None where there are no batch norms or the network was given.

    Returns:
        A remark, or nothing.

    Example:
        >>> said_of_norms(10), said_of_norms(44), said_of_norms(None)
        (' (35% of the running statistics is what they began with: train longer)', '', '')
    """
    left = 0.0 if steps is None else MOMENTUM**steps
    if left < 0.01:
        return ""
    return f" ({left:.0%} of the running statistics is what they began with: train longer)"


def _draw(journal: Journal, variant: Variant, before: float, after: float | None) -> None:
    """The accuracy over the sparsity, as a curve of the run."""
    percent = round(100 * variant.asked)
    with open_curves(journal.logs(f"{variant.method}-{variant.importance}"), percent) as curves:
        tuned = {} if after is None else {"sparsity/fine-tuned": after}
        add(curves, percent, {"sparsity/accuracy": before} | tuned)


def _cut(
    job: Job, origin: Origin, variant: Variant, state: TrainState, step: ifjax.FusionSpec
) -> TrainState:
    """The state at the widths of one round, with moments for its optimizer."""
    if variant.method == "reconstruct":
        given = job.config, job.dataset, origin.network, state, step, origin.stats
        state = compression.reconstruct_state(*given)
    elif origin.models is None:
        state = compression.fuse_state(state, step, origin.stats)
    else:
        fused = prune_and_fuse(job, origin.network, origin.models, variant)
        state = training.create_state(fused, job.fine_tuning.optimizer, job.config.seed)
    return jax.block_until_ready(state)


def compress_once(
    job: Job, journal: Journal, origin: Origin, variant: Variant, stages: list[compression.Stage]
) -> Outcome:
    """Compresses, evaluates, fine-tunes, evaluates, saves; once, or in several rounds."""
    config, by, label = job.config, job.fine_tuning, f"{variant.label} {variant.asked:.0%}"
    network, stats, _, spent = origin
    state = training.create_state(network.variables, by.optimizer, config.seed)
    before, after, compressing = 0.0, None, 0.0
    rounds = ifjax.iterated(variant.spec, config.rounds)
    for number, (spec, stage) in enumerate(zip(rounds, stages, strict=True), start=1):
        if number > 1:
            network = stages[number - 2].network._replace(variables=state.variables)
            scores = (variant.importance,)
            stats = compression.calibrate(config, job.dataset, network, spec.step, scores)
        began = time.monotonic()
        try:
            state = _cut(
                job, origin._replace(network=network, stats=stats), variant, state, spec.step
            )
        except RuntimeError as error:
            raise NotConverged(f"{label}: {error}") from error
        compressing += time.monotonic() - began
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
    dense = (journal.stages.get("dense") or {}).get("accuracy")
    message = f"{label}: accuracy {before:.2%}{said_of_collapse(before, dense)}"
    if by.steps:
        after = stages[-1].test(state.variables).accuracy
        message += f", fine-tuned {after:.2%}"
    save(journal.folder / variant.name, state.variables, variant.spec)
    print(message, flush=True)
    _draw(journal, variant, before, after)
    (_, weights), (_, flops) = variant.spec.weights(), variant.spec.flops()
    seconds = None
    if spent is not None:
        seconds = spent + compressing + journal.seconds.get(variant.name, 0.0)
    return Outcome(
        variant.sparsity,
        variant.label,
        weights,
        flops,
        before,
        after,
        variant.name,
        importance=variant.importance,
        asked=variant.asked,
        seconds=seconds,
        latency=stages[-1].test.latency(state.variables),
    )


def cut_alone(
    job: Job, journal: Journal, network: Network, stats: Stats | None
) -> list[dict[str, Any]]:
    """Cuts one group at a time, without fine-tuning, but for the groups that are done."""
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


def read(network: Network, folder: Path) -> Network:
    """Reads a network that the run saved."""
    with user_error("--out"):
        variables = on_first(lambda: jax.device_get(ifjax.load(folder)[0]))
    return network._replace(variables=variables)


def save(path: Path, variables: Any, spec: ifjax.FusionSpec) -> None:
    """Saves a network in the place of an earlier one, if there is one, once it is complete."""
    if not is_first():
        return
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    ifjax.save(new, variables, spec)
    shutil.rmtree(path, ignore_errors=True)
    new.rename(path)


def prune_and_fuse(job: Job, network: Network, models: list[Any], variant: Variant) -> Any:
    """Compresses the network of every fold, and makes one of the small ones."""
    assert job.folds is not None
    config, dataset = job.config, job.dataset
    small = fold_models.cut_folds(
        config, dataset, network, models, variant.spec, variant.importance
    )
    return fold_models.fuse_folds(
        config, dataset, job.graph, network, small, job.folds, variant.spec
    )
