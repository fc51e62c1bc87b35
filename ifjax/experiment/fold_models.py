"""A network on each fold of the data, trained side by side, and what is fused of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

import ifjax
from ifjax import data
from ifjax.activations.statistics import Stats
from ifjax.experiment.compression import calibrate, calibration_batches
from ifjax.experiment.config import Config
from ifjax.experiment.errors import user_error
from ifjax.experiment.journal import Journal
from ifjax.experiment.network import Network, create
from ifjax.experiment.runner import Optimization, Split, optimization, preparation, train
from ifjax.training.evaluate import Evaluation
from ifjax.training.feeding import fold_steps, make_feed
from ifjax.training.layout import Layout, collect, make_layout
from ifjax.training.split import (
    create_split_state,
    evaluate_folds,
    make_split_eval_step,
    make_split_step,
)


class FoldTraining(NamedTuple):
    """How the networks of the folds are trained.

    Attributes:
        split: folds, devices and feed.
        by: schedule and optimizer.
    """

    split: Split
    by: Optimization


def prepare_folds(config: Config, dataset: data.ImageDataset) -> FoldTraining:
    """Shares out images and devices.

    On CPU a fold has one device at most: devices there are forced, and share the cores.

    Args:
        config: how many folds, which images, and the schedule.
        dataset: the images.

    Returns:
        All that :func:`train_folds` needs.

    Raises:
        UserError: if the images are too few, or cannot be split so.

    Example:
        >>> training = prepare_folds(Config(mode="fap", folds=4), data.load("digits"))
        >>> training.by.steps_per_epoch, len(training.split.folds)
        (5, 4)
    """
    devices = jax.devices()
    if devices[0].platform == "cpu" and jax.process_count() == 1:
        devices = devices[: config.folds]
    with user_error("--folds"):
        folds = data.make_folds(
            dataset,
            config.folds,
            config.split,
            seed=config.seed,
            alpha=config.alpha,
            min_size=config.batch_size,
        )
        layout = make_layout(config.folds, config.batch_size, devices)
        feed = make_feed(dataset, folds, layout, config.batch_size, seed=config.seed)
    by = optimization(
        config,
        dataset,
        config.epochs,
        config.learning_rate,
        config.milestones,
        steps_per_epoch=fold_steps(folds, config.batch_size),
    )
    return FoldTraining(Split(layout, folds, feed), by)


def train_folds(
    config: Config,
    dataset: data.ImageDataset,
    network: Network,
    training: FoldTraining,
    journal: Journal,
) -> tuple[list[Any], list[float]]:
    """Trains a network on every fold, all at once.

    Args:
        config: the schedule, and whether all begin with the same weights.
        dataset: the images.
        network: the functions, and the weights that the first fold begins with.
        training: as :func:`prepare_folds` gives it.
        journal: of the run.

    Returns:
        The variables of every fold, on the host, and the test accuracies.

    Raises:
        FloatingPointError: if a loss or a parameter becomes NaN or infinite; it names the fold.
    """
    layout, by = training.split.layout, training.by
    test = _fold_evaluator(config, dataset, network, layout)
    starts = [network.variables] * config.folds
    if config.fold_start == "own":
        seeds = range(config.seed + 1, config.seed + config.folds)
        starts = [network.variables, *(create(config, dataset, seed).variables for seed in seeds)]
    state = train(
        config,
        dataset,
        journal,
        "folds",
        create_split_state(starts, by.optimizer, layout, config.seed),
        make_split_step(
            network.apply_train,
            by.optimizer,
            layout,
            config.label_smoothing,
            preparation(config, dataset),
        ),
        by,
        description=f"train {config.folds} folds",
        test=test,
        split=training.split,
    )
    accuracies = [found.accuracy for found in test(state.variables)]
    stacked = collect(state.variables, layout)
    trees = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(config.folds)]
    return trees, accuracies


def fuse_folds(
    config: Config,
    dataset: data.ImageDataset,
    graph: ifjax.DependencyGraph,
    network: Network,
    models: Sequence[Any],
    training: FoldTraining,
    spec: ifjax.FusionSpec | None = None,
) -> Any:
    """Makes one network of those of the folds, each weighing as its images.

    Batch norms get the statistics of the fused network on training images.

    Args:
        config: what they are aligned by, and on how many images.
        dataset: the images.
        graph: of the dense network.
        network: its functions.
        models: the variables of every fold.
        training: of the folds.
        spec: that all of them were cut by; None for dense ones.

    Returns:
        The fused variables.

    Raises:
        RuntimeError: if the solver does not converge.
    """
    return ifjax.fuse_models(
        models,
        graph,
        weights=[float(len(fold)) for fold in training.split.folds],
        specs=None if spec is None else [spec] * len(models),
        on=config.fuse_on,
        solver=config.fuse_solver,
        apply_fn=network.apply_eval,
        batches=[inputs for inputs, _ in calibration_batches(config, dataset)],
    )


def cut_folds(
    config: Config,
    dataset: data.ImageDataset,
    network: Network,
    models: Sequence[Any],
    spec: ifjax.FusionSpec,
    importance: str,
) -> list[Any]:
    """Compresses the network of every fold to the same widths.

    Args:
        config: how many images importances are computed from.
        dataset: the images.
        network: the functions.
        models: the variables of every fold.
        spec: what is cut, and how.
        importance: the score.

    Returns:
        The small variables of every fold.

    Raises:
        RuntimeError: if the solver does not converge.
    """
    small = []
    for variables in models:
        whose = network._replace(variables=variables)
        stats: Stats | None = calibrate(config, dataset, whose, spec, (importance,))
        small.append(ifjax.fuse_params(variables, spec, stats=stats))
    return small


def _fold_evaluator(
    config: Config, dataset: data.ImageDataset, network: Network, layout: Layout
) -> Callable[[Any], list[Evaluation]]:
    """``variables of all folds -> evaluations`` on the test images."""
    step = make_split_eval_step(network.apply_eval, layout, dataset.normalize)
    size = min(config.eval_batch_size, dataset.num_test)
    return lambda variables: evaluate_folds(step, variables, dataset.eval_batches(size), layout)
