"""FaP and PaF: networks of folds fused and then pruned, or pruned and then fused."""

import dataclasses
import time

import jax

from ifjax import training
from ifjax.experiment import fold_models
from ifjax.experiment.journal import Journal
from ifjax.experiment.network import Network
from ifjax.experiment.runner import evaluator, train, train_step
from ifjax.experiment.stages import Job, Origin, compress, read, save, statistics
from ifjax.experiment.variants import Outcome


def fuse_and_prune(job: Job, folds: fold_models.FoldTraining, journal: Journal) -> list[Outcome]:
    """Trains on every fold; fuses and prunes, or prunes and fuses; fine-tunes on all data."""
    config, dataset, mode = job.config, job.dataset, job.config.mode
    whole = job.graph.spec(0.0)
    sizes = whole.weights()[0], whole.flops()[0]
    folders = [journal.folder / f"fold-{number}" for number in range(config.folds)]
    if "folds" not in journal.stages:
        models, accuracies = fold_models.train_folds(config, dataset, job.network, folds, journal)
        for folder, variables in zip(folders, models, strict=True):
            save(folder, variables, whole)
        journal.add("folds", {"accuracies": accuracies, "seconds": journal.seconds["folds"]})
    models = [read(job.network, folder).variables for folder in folders]
    accuracies, spent = journal.stages["folds"].values()
    rows = [
        Outcome(0.0, f"fold {i}", *sizes, accuracy, None, folder.name, seconds=spent)
        for i, (accuracy, folder) in enumerate(zip(accuracies, folders, strict=True))
    ]
    for row in rows:
        print(f"{row.method}: accuracy {row.accuracy:.2%}", flush=True)
    if mode == "paf":
        return rows + compress(job, journal, Origin(job.network, None, models, spent), "PaF")
    if "fused" not in journal.stages:
        began = time.monotonic()
        fused = fold_models.fuse_folds(config, dataset, job.graph, job.network, models, folds)
        jax.block_until_ready(fused)
        seconds = time.monotonic() - began
        save(journal.folder / "fused", fused, whole)
        journal.add("fused", seconds)
    network = read(job.network, journal.folder / "fused")
    spent += journal.stages["fused"]
    if "fused-fine-tuned" not in journal.stages:
        row = tune_fused(job, journal, network, Outcome(0.0, "FaP, fused", *sizes, 0.0))
        row = dataclasses.replace(row, seconds=spent + journal.seconds.get("fused-fine-tuned", 0.0))
        journal.add("fused-fine-tuned", dataclasses.asdict(row))
    rows.append(Outcome(**journal.stages["fused-fine-tuned"]))
    origin = Origin(network, statistics(job, network), None, spent)
    return rows + compress(job, journal, origin, "FaP")


def tune_fused(job: Job, journal: Journal, network: Network, row: Outcome) -> Outcome:
    """Evaluates the fused network, fine-tunes it as it is, evaluates, saves."""
    config, by, name = job.config, job.fine_tuning, "fused-fine-tuned"
    test = evaluator(config, job.dataset, network)
    before, after = test(network.variables).accuracy, None
    message = f"fused: accuracy {before:.2%}"
    if by.steps:
        state = training.create_state(network.variables, by.optimizer, config.seed)
        step = train_step(config, job.dataset, network, by)
        state = train(
            config, job.dataset, journal, name, state, step, by, description="fine-tune fused"
        )
        network = network._replace(variables=state.variables)
        after = test(state.variables).accuracy
        message += f", fine-tuned {after:.2%}"
    save(journal.folder / name, network.variables, job.graph.spec(0.0))
    print(message, flush=True)
    return dataclasses.replace(row, accuracy=before, fine_tuned=after, checkpoint=name)


def with_speedups(rows: list[Outcome]) -> list[Outcome]:
    """Compares every row with the way over all data: training alone, or to the same small network.

    A network fused but not cut is compared with the training over all data.
    """
    found = []
    for row in rows:
        same = row.method.partition(", ")[2] if row.importance else "all data"
        whole = [r.seconds for r in rows if (r.method, r.asked) == (same, row.asked) and r.seconds]
        if whole and row.seconds:
            row = dataclasses.replace(row, speedup=whole[0] / row.seconds)
        found.append(row)
    return found
