r"""The transport problem of one group, as the paper writes it.

Of n neurons m are kept. Neuron i is described by f_i = (out_i, in_i) / ||.||_2, its rows of every
producer and its columns of every consumer kernel, batch norms folded in; a complex number is two
features, its real and its imaginary part. The targets are the m neurons of highest score, or
centroids of all. Moving neuron i to target j costs ||f_i - f_j||_p; sources and targets have the
mass that their marginals give them.

Where source and target marginal are of one kind, a target receives at least the mass that it had.
If the cost is a metric, an optimal plan then leaves that mass where it is (by the triangle
inequality), and the problem shrinks to the other neurons: OT(a, b) = OT((a - b)^+, (b - a)^+).

References:
  Theus et al., `Towards Meta-Pruning via Optimal Transport <https://arxiv.org/abs/2402.07839>`_,
  ICLR 2024, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from ifjax import importance
from ifjax.fusion.program import GroupProblem
from ifjax.namespace import AnyArray, Arrays, as_reals, namespace, pick
from ifjax.parallel import placement
from ifjax.parallel.callback import called
from ifjax.transport import costs, transport
from ifjax.transport.costs import Order
from ifjax.transport.targets import Neurons, Top
from ifjax.transport.transport import Transport
from ifjax.tree import promoted

Distances = Callable[[AnyArray, AnyArray, Order], AnyArray]
Part = tuple[AnyArray, int]


class Problem(NamedTuple):
    """A transport problem.

    Attributes:
      scores: of the neurons; None where they are not needed any more.
      targets: the neurons that are kept, or represent a centroid, ascending.
      a: mass of the neurons.
      b: mass of the targets.
      sources: the neurons that move, ascending; None if all do.
      cost: of moving each of them to each target. None where nothing is to be solved.
    """

    scores: Float[AnyArray, "*batch n"] | None
    targets: Int[AnyArray, "*batch m"]
    a: Float[AnyArray, "*batch n"]
    b: Float[AnyArray, "*batch m"]
    sources: Int[AnyArray, "*batch k"] | None = None
    cost: Float[AnyArray, "*batch k m"] | None = None


def problem_of(
    group: GroupProblem,
    entry: Arrays,
    scored: Arrays,
    given: AnyArray | None,
    key: PRNGKeyArray | None,
    distances: Distances,
    ask_host: bool = False,
) -> Problem:
    """Scores, targets, marginals and costs of a group, or of one entry of its batch.

    Args:
      group: what is static.
      entry: the arrays that describe the neurons, by path.
      scored: those that the scores are read from.
      given: the scores, or a statistic of every neuron; None to read them.
      key: a random key, where one is needed.
      distances: between two sets of columns of features.
      ask_host: the host checks, inside of jit, the neurons that targets of one's own choose.

    Returns:
      The problem.
    """
    method, m = group.method, group.kept
    scores = scores_of(group, scored, given, key)
    parts = [(as_reals(x), at) for x, at in group.described.parts(entry)]
    chosen = method.targets_value
    if isinstance(chosen, Neurons):
        order = _first(chosen, scores, group.size if group.staying else m, group.name)
        if ask_host:
            order = _checked_by_host(chosen, order, group.size, group.name)
        targets = placement.replicated(namespace(order).sort(order[:m]))
        mass = pick(scores, targets, 0)
        if group.solver is None:
            return Problem(scores, targets, 0 * scores, 0 * mass)
    if isinstance(scores, jax.Array) and jax.default_backend() != "cpu" and not placement.active():
        # One matrix, of which everything is summed and picked at once: fewer kernels.
        parts = [(_columns(parts), 1)]
    whole = _spread(parts)
    factors = placement.replicated(costs.factors(_wide(whole)))
    whole = [(placement.read_again(x, after=factors), at) for x, at in whole]
    if isinstance(chosen, Neurons):
        sources = None
        if group.staying:
            sources = placement.replicated(namespace(order).sort(order[m:]))
        moving = features(whole, factors, sources)
        if group.staying or placement.active():
            points = features(parts, factors, targets)
        else:
            points = pick(moving, targets, 1)
    else:
        moving, sources = features(whole, factors, None), None
        assert key is not None  # these targets are random
        found = chosen.clusters(moving.T, m, jax.random.fold_in(key, 1), scores)
        targets, points = found.targets, found.centroids.T
        mass = namespace(scores).maximum(scores, 0) @ found.shares
    a = transport.marginal(method.source_marginal, scores)
    b = transport.marginal(method.target_marginal, mass)
    if group.solver is None:
        return Problem(scores, targets, a, b)
    return Problem(scores, targets, a, b, sources, distances(moving, points, method.cost_p))


def _first(chosen: Neurons, scores: AnyArray, k: int, name: str) -> AnyArray:
    """The k neurons that go before all others: as many integers, whoever chose them."""
    order = chosen.first(scores, k)
    shape, dtype = np.shape(order), getattr(order, "dtype", None)
    if dtype is None or shape != (k,) or not np.issubdtype(dtype, np.integer):
        raise ValueError(
            f"targets {chosen!r} of group {name}: expected {type(chosen).__name__}.first to give "
            f"an array of {k} integers, the indices of neurons; got "
            f"{dtype or type(order).__name__} of shape {shape}"
        )
    if isinstance(order, np.ndarray):  # before it indexes anything
        _check_neurons(chosen, order, len(scores), name)
    return order


def _check_neurons(chosen: Neurons, indices: np.ndarray, n: int, name: str) -> None:
    """Raises ValueError unless indices are of different neurons, of n."""
    if np.any((indices < 0) | (indices >= n)) or len(np.unique(indices)) < len(indices):
        raise ValueError(
            f"targets {chosen!r} of group {name}: expected {type(chosen).__name__}.first to give "
            f"indices in [0, {n}), all different; got {indices.tolist()}"
        )


def check_problem(group: GroupProblem, problem: Problem) -> None:
    """Refuses scores and neurons that a metric or targets of one's own should not have given.

    Args:
      group: what is static.
      problem: its scores, targets and sources in numpy: of what is traced nothing is known.

    Raises:
      ValueError: naming the class, where scores are not finite, or neurons are out of range or
        chosen twice.
    """
    check_scores(group, np.asarray(problem.scores))
    chosen = group.method.targets_value
    if isinstance(chosen, Neurons):
        found = [x for x in (problem.targets, problem.sources) if x is not None]
        _check_neurons(chosen, np.concatenate(found), group.size, group.name)


def _checked_by_host(chosen: Neurons, order: AnyArray, n: int, name: str) -> AnyArray:
    """Traced indices, once the host has looked at those that targets of one's own give.

    The library's are in range; of one outside of it the nearest would be read.
    """
    if type(chosen) is Top:
        return order

    def check(found: np.ndarray) -> np.ndarray:
        for indices in found.reshape(-1, found.shape[-1]):
            _check_neurons(chosen, indices, n, name)
        return found

    like = jax.ShapeDtypeStruct(order.shape, order.dtype)
    return placement.replicated(called(check, like, order))


def check_scores(group: GroupProblem, scores: AnyArray) -> None:
    """Raises ValueError for scores, in numpy, that are not finite, and names the metric."""
    if group.reads != "given" and not np.all(np.isfinite(scores)):
        metric = group.method.importance_value
        raise ValueError(
            f"importance {metric!r} of group {group.name}: expected finite scores of "
            f"{type(metric).__name__}, got {np.asarray(scores).tolist()}"
        )


def scores_of(
    group: GroupProblem, scored: Arrays, given: AnyArray | None, key: PRNGKeyArray | None
) -> AnyArray:
    """The importance of the neurons."""
    if group.reads == "given":
        return given
    method, members = group.method, [(given, 0)]
    if group.scored is not None:
        members = _wide(_spread(group.scored.parts(scored)))
    arrays, axes = zip(*members, strict=True)
    arrays = tuple(map(_real, arrays))
    return importance.score(
        method.importance_value, arrays, key, method.reduction, method.normalization, axes
    )


def _real(x: AnyArray) -> AnyArray:
    """Sizes of complex numbers, integers as real ones; the rest as it is."""
    if np.issubdtype(x.dtype, np.complexfloating):
        return namespace(x).abs(x)
    return x.astype(np.float32) if x.dtype.kind in "iub" else x


def _spread(parts: list[Part]) -> list[Part]:
    """Every neuron whole on one device, so that what is added up of it does not travel."""
    return [(placement.split_along(x, at), at) for x, at in parts]


def _wide(parts: list[Part]) -> list[Part]:
    """At least float32, once they are where they are read."""
    return [(promoted(x), at) for x, at in parts]


def features(
    parts: list[Part], factors: AnyArray, index: AnyArray | None
) -> Float[AnyArray, "d k"]:
    """The features of some neurons, or of all, as columns ``[d, k]``."""
    if index is not None:
        parts = [(placement.take(x, index, at), at) for x, at in parts]
        factors = pick(factors, index, 0)
    found = _columns(parts)
    found *= factors  # where it lies, in numpy
    return found


def _columns(parts: list[Part]) -> Float[AnyArray, "d k"]:
    """All that the parts hold of every neuron."""
    each = [namespace(x).moveaxis(x, at, -1) for x, at in _wide(_spread(parts))]
    return namespace(*each).concatenate([x.reshape(-1, x.shape[-1]) for x in each])


def selected(problem: Problem) -> Transport:
    """The plan of plain pruning: every target receives itself alone."""
    xp, dtype = namespace(problem.a), problem.a.dtype
    n, m = problem.a.shape[0], problem.targets.shape[0]
    zero = xp.zeros((), dtype)
    return Transport(
        map=(xp.arange(n)[:, None] == problem.targets).astype(dtype) / m,
        targets=problem.targets,
        converged=xp.asarray(True),
        iterations=xp.zeros((), np.int32),
        marginal_error=zero,
        cost=zero,
        potential=0 * problem.a,
    )


def moving(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cost and mass of what moves, in numpy, with any leading axes."""
    cost, a, b = (np.asarray(x) for x in (problem.cost, problem.a, problem.b))
    if problem.sources is not None:
        # Both sums are one less what stays; the solver wants them equal to the last digit.
        b = b - staying(problem)
        a = np.take_along_axis(a, np.asarray(problem.sources), -1)
        total = b.sum(-1, keepdims=True)
        b = b * np.where(total > 0, a.sum(-1, keepdims=True) / np.where(total > 0, total, 1), 0)
    return cost, a.astype(cost.dtype), b.astype(cost.dtype)


def staying(problem: Problem) -> np.ndarray:
    """The mass of every target that it had as a source, and keeps."""
    a, b, targets = (np.asarray(x) for x in (problem.a, problem.b, problem.targets))
    return np.minimum(np.take_along_axis(a, targets, -1), b)


def completed(problem: Problem, plan: np.ndarray, converged: np.ndarray) -> Transport:
    """The transport of all neurons, in numpy, from the plan for those that move.

    The potential is the cost of a source's nearest target, that of a target zero.
    """
    cost, a, b = moving(problem)
    present = (a > 0)[..., :, None] & (b > 0)[..., None, :]
    nearest = np.where((b > 0)[..., None, :], cost, np.inf).min(-1, initial=np.inf)
    potential = np.where(a > 0, nearest, 0)
    total = np.where(present, plan * cost, 0).sum((-2, -1))
    mass, wanted = np.asarray(problem.a), np.asarray(problem.b)
    targets = np.asarray(problem.targets)
    if problem.sources is not None:
        sources = np.asarray(problem.sources)
        whole = np.zeros((*mass.shape, plan.shape[-1]), plan.dtype)
        np.put_along_axis(whole, sources[..., None], plan, -2)
        np.put_along_axis(whole, targets[..., None, :], staying(problem)[..., None, :], -2)
        lifted = np.zeros(mass.shape, plan.dtype)
        np.put_along_axis(lifted, sources, potential.astype(plan.dtype), -1)
        plan, potential = whole, lifted
    error = np.abs(plan.sum(-1) - mass).sum(-1) + np.abs(plan.sum(-2) - wanted).sum(-1)
    fields = plan, targets, converged, np.zeros(total.shape, np.int32), error, total, potential
    return Transport(
        *(x.astype(cost.dtype) if x.dtype.kind == "f" else x for x in map(np.asarray, fields))
    )
