"""What is compared: every sparsity by every importance by every method, each with its spec."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import ifjax
from ifjax import report
from ifjax.experiment.config import Config
from ifjax.experiment.errors import UserError, user_error
from ifjax.structure.structure import Group

METHODS = {"prune": "plain pruning", "fuse": "Intra-Fusion", "reconstruct": "reconstruction"}
FINEST = 1000
"""Sparsities of neurons that are sought for a share of weights are multiples of 1 / 1000."""


class Variant(NamedTuple):
    """One way to compress the network.

    Attributes:
        sparsity: the fraction of neurons removed from every group.
        asked: what the user asked for, of neurons or of weights.
        importance: the score of a neuron.
          method: ``"prune"``, ``"fuse"`` or ``"reconstruct"``.
        spec: all of it.
        name: of the folder, unique in its run.
        label: of the row in the table.
    """

    sparsity: float
    asked: float
    importance: str
    method: str
    spec: ifjax.FusionSpec
    name: str
    label: str


@dataclasses.dataclass(frozen=True)
class Outcome(report.Row):
    """A row of the table that knows its settings.

    Attributes:
        importance: the score that chose the neurons; None for the dense network.
        asked: the sparsity that the user asked for, of neurons or of weights.
    """

    importance: str | None = None
    asked: float = 0.0


def variants(config: Config, graph: ifjax.DependencyGraph) -> list[list[Variant]]:
    """Lists what a configuration compares.

    Args:
        config: sparsities, importances, methods, and which groups are cut.
        graph: of the dense network.

    Returns:
        A list per sparsity, in rising order. The variants in it have the same widths, so that one
        set of compiled steps serves them all.

    Raises:
        UserError: if there is no such spec, or so many weights cannot be removed.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
        >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
        >>> [[v.name for v in group] for group in variants(Config(sparsities=(0.5,)), graph)]
        [['prune-0.5', 'fuse-0.5', 'reconstruct-0.5']]
    """
    found = []
    for asked in sorted(config.cuts):
        with user_error("spec"):
            sparsity = asked
            if config.target == "weights":
                sparsity = sparsity_of_share(lambda s: choose(config, graph, s), asked)
            spec = choose(config, graph, sparsity)
        ways = itertools.product(config.importances, config.ways)
        found.append([variant(config, spec, sparsity, asked, *way) for way in ways])
    return found


def variant(
    config: Config,
    spec: ifjax.FusionSpec,
    sparsity: float,
    asked: float,
    score: str,
    method: str,
) -> Variant:
    """One of the variants at some widths.

    Args:
        config: whose variants these are.
        spec: the widths.
        sparsity: of neurons.
        asked: as the user asked for it.
        score: the importance.
        method: a key of ``METHODS``.

    Returns:
        The variant.
    """
    several = len(config.importances) > 1
    return Variant(
        sparsity,
        asked,
        score,
        method,
        dataclasses.replace(spec, method=method_of(config, spec.method, score, method)),
        f"{method}-{score}-{asked:g}" if several else f"{method}-{asked:g}",
        f"{METHODS[method]}, {score}" if several else METHODS[method],
    )


def method_of(config: Config, method: ifjax.Method, score: str, name: str) -> ifjax.Method:
    """The method of a spec for one way to compress.

    Reconstruction chooses neurons by what the others can make up for, unless importances are asked
    for.

    Args:
        config: says whether they are.
        method: with the rest of the choices.
        score: the importance.
        name: a key of ``METHODS``.

    Returns:
        The method.
    """
    if name != "reconstruct":
        return dataclasses.replace(method, importance=score, method=name)  # type: ignore[arg-type]
    default = config.importances == Config.importances
    chosen = "reconstruction" if default else score
    return dataclasses.replace(method, importance=chosen, method="prune")


def choose(
    config: Config,
    graph: ifjax.DependencyGraph,
    sparsity: float,
    include: Callable[[Group], bool] | None = None,
) -> ifjax.FusionSpec:
    """Decides what to cut, and how; by the first importance and method of the configuration.

    Args:
        config: groups and method.
        graph: of the dense network.
        sparsity: fraction of neurons to remove from every group.
        include: the groups to cut, in place of the configuration's.

    Returns:
        The spec.

    Raises:
        ValueError: as ``graph.spec``.
    """
    return graph.spec(
        sparsity,
        include=include or config.include,
        exclude=None if include else config.exclude or None,
        method="fuse" if "fuse" in config.methods else "prune",
        importance=config.importances[0],
        solver=config.solver,
        epsilon=config.epsilon,
        merge=config.merge,
        order=config.order,
        seed=config.seed,
    )


def sparsity_of_share(spec_of: Callable[[float], ifjax.FusionSpec], share: float) -> float:
    """Finds the sparsity of neurons that removes most nearly a given share of all weights.

    Args:
        spec_of: the spec of a sparsity of neurons.
        share: of the weights, in (0, 1).

    Returns:
        A multiple of 1 / 1000; by bisection, as the weights left fall with it.

    Raises:
        UserError: if the groups that are cut hold fewer weights than that.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w1": jnp.ones((4, 100)), "w2": jnp.ones((100, 2))}
        >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
        >>> graph.spec(sparsity_of_share(graph.spec, 0.4)).weights()
        (600, 360)
    """

    def removed(thousandths: int) -> float:
        before, after = spec_of(thousandths / FINEST).weights()
        return 1 - after / before

    low, high = 0, FINEST - 1
    if removed(high) < share:
        raise UserError(
            f"--sparsities: {share:g} of the weights cannot be removed: with one neuron left in "
            f"every group that is cut, {removed(high):.3f} of them are gone"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if removed(middle) >= share else (middle, high)
    return min(max(low, 1), high, key=lambda k: abs(removed(k) - share)) / FINEST
