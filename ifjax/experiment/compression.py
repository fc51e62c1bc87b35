"""Compression as a configuration wants it: statistics, rounds, optimizer state."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import ifjax
from ifjax import data, importance
from ifjax.activations.statistics import Stats, batch_stats, collect_stats
from ifjax.experiment.config import Config
from ifjax.experiment.network import Network
from ifjax.experiment.runner import Evaluator, Optimization, evaluator, train_step
from ifjax.fusion.transport_maps import neuron_scores
from ifjax.training.loss import cross_entropy
from ifjax.training.state import TrainState
from ifjax.training.step import TrainStep


class Stage(NamedTuple):
    """The widths after one round of compression, and what is compiled for them.

    Attributes:
        total: the widths, from the original ones.
        network: the functions at them.
        step: trains it.
        test: evaluates its variables.
    """

    total: ifjax.FusionSpec
    network: Network
    step: TrainStep
    test: Evaluator


def stages(
    config: Config,
    dataset: data.ImageDataset,
    network: Network,
    spec: ifjax.FusionSpec,
    by: Optimization,
) -> list[Stage]:
    """Prepares the rounds towards a spec, for all methods and importances at its widths.

    Args:
        config: how many rounds.
        dataset: the images.
        network: the dense network.
        spec: the widths to reach.
        by: the fine-tuning.

    Returns:
        One stage per round; nothing is compiled before it is called.
    """
    found = []
    for _, total in ifjax.iterated(spec, config.rounds):
        small = network.shrink(None, total)
        step = train_step(config, dataset, small, by)
        found.append(Stage(total, small, step, evaluator(config, dataset, small)))
    return found


def fuse_state(state: TrainState, spec: ifjax.FusionSpec, stats: Stats | None) -> TrainState:
    """Compresses a training state: variables by the spec, optimizer state by the kept neurons.

    Args:
        state: at the widths that the spec begins with.
        spec: what is cut.
        stats: what the importance needs besides weights.

    Returns:
        The state at the widths that the spec ends with; step and key are the same.

    Raises:
        RuntimeError: if the solver does not converge.
    """
    maps = ifjax.transport_maps(state.variables, spec, stats=stats)
    variables = ifjax.apply_maps(state.variables, spec, maps)
    return state._replace(
        variables=variables, opt_state=ifjax.fuse_tree(state.opt_state, spec, maps)
    )


def reconstruct_state(
    config: Config,
    dataset: data.ImageDataset,
    network: Network,
    state: TrainState,
    spec: ifjax.FusionSpec,
    stats: Stats | None,
) -> TrainState:
    """Compresses a training state by reconstruction on training images, without their labels.

    Args:
        config: how many images.
        dataset: the images.
        network: the functions at the widths that the spec begins with.
        state: at these widths.
        spec: what is cut.
        stats: what the importance needs besides weights; labels may be among it.

    Returns:
        The state at the widths that the spec ends with.
    """
    images = [inputs for inputs, _ in calibration_batches(config, dataset)]
    variables, report = ifjax.compress(
        network.apply_eval, state.variables, spec, images, stats=stats
    )
    maps = ifjax.transport_maps(state.variables, spec, scores=report.scores, stats=stats)
    opt_state = ifjax.fuse_tree(state.opt_state, spec, maps)
    return state._replace(variables=variables, opt_state=opt_state)


def needs_stats(config: Config) -> bool:
    """Says whether an importance of a configuration needs more than weights.

    Args:
        config: names the importances.

    Returns:
        Whether :func:`calibrate` has anything to do.

    Example:
        >>> needs_stats(Config()), needs_stats(Config(importances=("taylor",)))
        (False, True)
    """
    return any(_needy(config.importances))


def calibrate(
    config: Config,
    dataset: data.ImageDataset,
    network: Network,
    spec: ifjax.FusionSpec,
    metrics: tuple[str, ...],
) -> Stats | None:
    """Collects what importances need besides the weights, on training images as they are.

    Args:
        config: how many images.
        dataset: the images.
        network: the network that is to be compressed.
        spec: the groups that are cut, at the network's widths.
        metrics: importances; those that need the weights alone are passed over.

    Returns:
        The statistics, or None where none are needed.

    Example:
        >>> from ifjax.experiment.network import create
        >>> config, dataset = Config(model="mlp"), data.load("digits")
        >>> network = create(config, dataset)
        >>> graph = ifjax.trace(network.apply_eval, network.variables, jnp.zeros((1, 8, 8, 1)))
        >>> stats = calibrate(config, dataset, network, graph.spec(0.5), ("l1", "fisher"))
        >>> int(stats.count)
        512
    """
    needy = _needy(metrics)
    if not needy:
        return None
    return collect_stats(
        network.apply_eval,
        network.variables,
        spec,
        calibration_batches(config, dataset),
        loss_fn=_loss,
        metrics=needy,
        chunk=_CHUNK,
    )


def check_importances(
    config: Config, dataset: data.ImageDataset, network: Network, spec: ifjax.FusionSpec
) -> None:
    """Refuses importances that the network has not what they need for, before it is trained.

    Args:
        config: the importances.
        dataset: gives the shapes of a batch.
        network: the dense network.
        spec: the groups that are cut.

    Raises:
        ValueError: naming the group.
    """
    needy = _needy(config.importances)
    stats = None
    if needy:
        shape = (1, *dataset.image_shape)
        batch = ((jnp.zeros(shape),), jnp.zeros(1, jnp.int32))
        stats = jax.eval_shape(
            lambda variables: batch_stats(
                network.apply_eval, variables, spec, batch, loss_fn=_loss, metrics=needy
            ),
            network.variables,
        )
    for name in config.importances:
        method = dataclasses.replace(spec.method, importance=name)
        chosen = dataclasses.replace(spec, method=method)
        jax.eval_shape(
            lambda variables, stats, chosen=chosen: neuron_scores(variables, chosen, stats),
            network.variables,
            stats,
        )


def calibration_batches(config: Config, dataset: data.ImageDataset) -> Iterator[Any]:
    """Whole batches of the first epoch's images, not augmented by us.

    Args:
        config: how many images, and of what size batches are at most.
        dataset: the images.

    Yields:
        ``((images,), labels)``, the images normalised.
    """
    size = min(config.batch_size, config.calibration_images)
    batches = dataset.train_batches(size, seed=config.seed, epoch=0)
    for batch in itertools.islice(batches, config.calibration_images // size):
        yield (dataset.normalize(batch.images),), batch.labels


def _needy(importances: Sequence[str]) -> list[str]:
    """Those that need more than the weights."""
    return [name for name in importances if importance.statistic_of(name) is not None]


_CHUNK = 16
"""Examples whose activations and gradients are held at a time."""


def _loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return cross_entropy(logits, labels).mean()
