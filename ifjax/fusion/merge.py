"""A group's transport plan applied to the arrays that hold it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Int

from ifjax.fusion.merge_steps import MergeStep
from ifjax.namespace import AnyArray, along, namespace, pick, put
from ifjax.parallel import placement, ring
from ifjax.structure import axis_arrays
from ifjax.structure.structure import Role

# A product takes no longer than gathers with fewer neurons per source of a target: a gather costs
# about as much as 24 multiply-adds.
_NEURONS = 24
# Up to so many sources are added up one by one inside of jit: entry by entry, in whatever kernel
# reads the sum. A sum over an axis is a kernel of its own.
_FEW = 4
# How far what is all of a mass may be from one.
_ROUNDING = 1e-3


class SparsePlan(NamedTuple):
    """A matrix that neurons are multiplied by, as lists: out_j = sum_k weights_jk x_(sources_jk).

    Attributes:
      sources: of every target.
      weights: of these.
    """

    sources: Int[AnyArray, "*batch m k"]
    weights: Float[AnyArray, "*batch m k"]


Matrix: TypeAlias = Float[AnyArray, "*batch m n"] | SparsePlan


class GroupMap(NamedTuple):
    """What merging reads of a transport plan T, for every entry of the batch where there is one.

    Attributes:
      targets: the neurons that its targets are.
      pushforward: M = (diag(T 1)^-1 T)^T, whose columns sum to one. None for a selection.
      barycentric: P = diag(T^T 1)^-1 T^T, whose rows sum to one. None likewise.
    """

    targets: Int[AnyArray, "*batch m"]
    pushforward: Matrix | None = None
    barycentric: Matrix | None = None


# By group; of one with batch axes in numpy, of every entry.
Maps = Mapping[str, GroupMap | list[GroupMap]]


def matrix_for(role: Role, merge: str) -> str:
    """Which matrix a member of this role is multiplied by, a field of `GroupMap`.

    M for consumers and, in the reference merge, for producers and additive members; P for the rest.
    Gradients the other way round than in the preserving merge: P for consumers, M for the rest.
    """
    if merge == "gradients":
        return "barycentric" if role == "consumer" else "pushforward"
    summed = merge == "reference" and role in ("producer", "additive", "mean")
    return "pushforward" if summed or role == "consumer" else "barycentric"


def matrices(plan: Float[AnyArray, "n m"]) -> dict[str, Float[AnyArray, "m n"]]:
    """M and P of a plan by name; 0/0 = 0.

    >>> found = matrices(np.array([[0.25, 0.0], [0.25, 0.5]]))
    >>> found["pushforward"].round(2).tolist(), found["barycentric"].tolist()
    ([[1.0, 0.33], [0.0, 0.67]], [[0.5, 0.5], [0.0, 1.0]])
    """
    xp, found = namespace(plan), {}
    for name, axis in (("pushforward", 1), ("barycentric", 0)):
        sums = plan.sum(axis, keepdims=True)
        found[name] = (plan / xp.where(sums > 0, sums, 1)).T
    return found


def group_map(
    plan: Float[AnyArray, "n m"],
    targets: Int[AnyArray, " m"],
    select: bool,
    full: int | None = None,
    sources: int | None = None,
    lists: SparsePlan | None = None,
) -> GroupMap:
    """The map of one plan.

    Args:
      plan: T.
      targets: the neurons that its targets are.
      select: the targets are kept as they are.
      full: the group's size, to put the results in the places of the targets, zeros elsewhere.
      sources: how many sources every target has, where that is known before it is solved.
      lists: what `assigned` gives of the plan.

    Returns:
      Matrices, or lists where a target has so few sources that these are faster; NaN for the
      targets of a traced plan that have more than was known.

    Raises:
      ValueError: where a target of a plan in numpy has more.
    """
    if select:
        return GroupMap(targets)
    by: Mapping[str, Matrix]
    if lists is not None:
        # All sums over rows of the plan are 1 / n, over columns 1 / m.
        sizes = zip(("pushforward", "barycentric"), plan.shape, strict=True)
        by = {name: lists._replace(weights=size * lists.weights) for name, size in sizes}
    else:
        by = matrices(plan)
        if (index := _lists(plan, sources)) is not None:
            weights = {name: _at(matrix, index) for name, matrix in by.items()}
            if isinstance(plan, jax.Array):
                whole = _is_whole(weights["barycentric"].sum(-1, keepdims=True))
                weights = {name: jnp.where(whole, w, jnp.nan) for name, w in weights.items()}
            by = {name: SparsePlan(index, w) for name, w in weights.items()}
    if full is not None:
        rows = functools.partial(_in_place, targets=targets, full=full)
        by = {name: jax.tree.map(rows, matrix) for name, matrix in by.items()}
    return GroupMap(targets, **by)


def assigned(
    plans: Mapping[str, Float[AnyArray, "*batch n m"]], sources: Mapping[str, int | None]
) -> dict[str, SparsePlan]:
    """The plans that are assignments of neurons, as lists: those of all groups by one sort.

    With uniform marginals every target has k sources; where n = k m every source has one target.

    Args:
      plans: by group.
      sources: k by group, where the marginals are uniform and it is known.

    Returns:
      The sources of every target, ascending, and their masses, by group: of plans of jax, where a
      product is not faster. NaN where the plan has not so many, or divides the mass of a source.

    Example:
      >>> plan = jnp.eye(48)[jnp.arange(96) % 48] / 96
      >>> found = assigned({"a": plan}, {"a": 2})["a"]
      >>> found.sources[1].tolist(), (96 * found.weights[1]).tolist()
      ([1, 49], [1.0, 1.0])
    """
    found = {
        name: plan
        for name, plan in plans.items()
        if isinstance(plan, jax.Array)
        and _are_few(k := sources.get(name) or 0, plan.shape[-2])
        and k * plan.shape[-1] == plan.shape[-2]
    }
    # Targets of every later entry and group have higher numbers.
    targets, masses, number = [], [], 0
    for plan in found.values():
        *batch, _, m = plan.shape
        entry = np.arange(math.prod(batch), dtype=np.int32).reshape(*batch, 1)
        target = jnp.argmax(plan, -1)
        targets.append((target + (number + m * entry)).reshape(-1))
        masses.append(jnp.take_along_axis(plan, target[..., None], -1, mode="clip").reshape(-1))
        number += m * math.prod(batch)
    if not found:
        return {}
    numbers = jnp.concatenate(targets)
    order = jnp.argsort(numbers)
    ends = np.cumsum([len(x) for x in targets])[:-1]
    sorted_by_target = (order, numbers[order], jnp.concatenate(masses)[order])
    parts = zip(*(jnp.split(x, ends) for x in sorted_by_target), strict=True)
    lists, number = {}, 0
    for (name, plan), start, (index, target, mass) in zip(
        found.items(), [0, *ends], parts, strict=True
    ):
        *batch, n, m = plan.shape
        every = math.prod(batch) * m
        expected = number + jnp.arange(every, dtype=target.dtype)[:, None]
        fits = (target.reshape(every, -1) == expected) & _is_whole(n * mass.reshape(every, -1))
        shape = (*batch, m, n // m)
        mass = jnp.where(fits, mass.reshape(every, -1), jnp.nan).reshape(shape)
        lists[name] = SparsePlan(((index - start) % n).reshape(shape), mass)
        number += every
    return lists


def _is_whole(share: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Whether a share is all of a mass, but for rounding; NaN is not."""
    return jnp.abs(share - 1) < _ROUNDING


def _are_few(sources: int, n: int) -> bool:
    """Whether gathers are faster than a product, inside of jit."""
    return sources * _NEURONS <= n and not placement.active()


def _lists(plan: Float[AnyArray, "n m"], sources: int | None) -> Int[AnyArray, "m k"] | None:
    """The sources of every target, ``[m, k]``; None where a product is faster."""
    n, m = plan.shape
    if isinstance(plan, jax.Array):
        if sources is None or not _are_few(sources, n):
            return None
        return jax.lax.top_k(plan.T, sources)[1]
    target, source = np.nonzero(plan.T)
    counts = np.bincount(target, minlength=m)
    k = counts.max(initial=1)
    if sources is not None and k > sources and np.isfinite(plan).all():
        raise ValueError(
            f"the solver says that every target has {sources} sources where marginals are uniform, "
            f"and its plan has a target with {k}: Solver.sources is for what is known of every "
            "plan beforehand, and None where nothing is"
        )
    if k * _NEURONS > n:
        return None
    lists = np.zeros((m, k), np.intp)
    lists[target, np.arange(len(target)) - np.repeat(np.cumsum(counts) - counts, counts)] = source
    return lists


def _at(matrix: Float[AnyArray, "m n"], lists: Int[AnyArray, "m k"]) -> Float[AnyArray, "m k"]:
    """The entries of every row at its sources; zero where a shorter list is filled up."""
    weights = namespace(matrix).take_along_axis(matrix, lists, 1)
    if isinstance(matrix, np.ndarray):
        weights[:, 1:][lists[:, 1:] == 0] = 0
    return weights


def _in_place(rows: AnyArray, targets: AnyArray, full: int) -> AnyArray:
    """Rows where the targets were."""
    return put(namespace(rows).zeros((full, *rows.shape[1:]), rows.dtype), targets, rows)


def merge_leaf(
    x: AnyArray,
    steps: Sequence[MergeStep],
    maps: Maps,
    merge: Mapping[str, str],
    full: bool = False,
    neutral: bool = False,
) -> AnyArray:
    """An array with the maps of all groups applied that it holds.

    Args:
      x: the array.
      steps: which groups lie along which axes.
      maps: of the groups.
      merge: by group, see `matrix_for`; ``"select"`` for the targets as they are.
      full: the targets stay in their places.
      neutral: with ``full``, ones elsewhere in vectors that scale, for one may divide by them.

    Returns:
      The array at its small widths, or at its full ones.
    """
    for step in steps:
        one = functools.partial(_merged, step=step, merge=merge, full=full, neutral=neutral)
        if step.view is None:
            x = one(x, {name: cast("GroupMap", maps[name]) for name in step.groups})
            continue
        (group,) = step.groups
        entries, found = step.view.front(x, {}), maps[group]
        if isinstance(found, GroupMap):
            entries = jax.vmap(one)(entries, {group: found})
            kept = found.targets.shape[-1]
        else:
            pairs = zip(entries, found, strict=True)
            merged = [one(x, {group: by}) for x, by in pairs]
            entries = namespace(*merged).stack(merged)  # a traced array may meet given indices
            kept = found[0].targets.shape[-1]
        x = step.view.back(entries, {group: step.size if full else kept})
    return x


def _merged(
    x: AnyArray,
    maps: Mapping[str, GroupMap],
    step: MergeStep,
    merge: Mapping[str, str],
    full: bool,
    neutral: bool,
) -> AnyArray:
    """One entry of an array with one step done."""
    for axis in step.axes:
        if not full and all(merge[name] == "select" for name, _ in axis.roles):
            chosen = {name: maps[name].targets for name, _ in axis.roles}
            x = placement.take(x, axis_arrays.indices(axis.where, chosen), axis.axis)
            continue
        scales = neutral and full and x.size == x.shape[axis.axis]
        functions = {}
        for name, role in axis.roles:
            ones = scales and role in ("multiplicative", "variance")
            functions[name] = _neurons(maps[name], role, merge[name], full, ones)
        x = axis_arrays.transform_all(x, axis.axis, axis.where, functions)
    return x


def _neurons(
    by: GroupMap, role: Role, merge: str, full: bool, neutral: bool
) -> Callable[[AnyArray, int], AnyArray]:
    """What is done to the neurons of a group along an axis."""

    def function(x: AnyArray, axis: int) -> AnyArray:
        if merge == "select" and not full:
            return placement.take(x, by.targets, axis)
        matrix = None if merge == "select" else getattr(by, matrix_for(role, merge))
        y = x if matrix is None else times(matrix, x, axis)
        if not full or (matrix is not None and not neutral):
            return y
        xp = namespace(y, by.targets)
        kept = put(np.zeros(x.shape[axis], bool), by.targets, True)
        return xp.where(along(kept, axis, x.ndim), y, xp.asarray(neutral, y.dtype))

    return function


def times(by: Matrix, x: Inexact[AnyArray, "*full"], axis: int) -> Inexact[AnyArray, "*small"]:
    """Neurons along one axis times a matrix in full precision: out_j = sum_i by_ji x_i.

    >>> times(np.array([[0.5, 0.5]]), np.array([[1.0, 3.0]]), 1).tolist()
    [[2.0]]
    """
    if isinstance(by, SparsePlan):
        return _gathered(by, x, axis)
    matrix = by.astype(x.dtype)
    if isinstance(x, jax.Array) or isinstance(matrix, jax.Array):
        return ring.product(matrix, x, axis)
    # One product for the whole array: one for each of a stack is several times slower.
    if axis == x.ndim - 1:
        found = (x.reshape(-1, x.shape[-1]) @ matrix.T).reshape(*x.shape[:-1], len(matrix))
    else:
        found = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return found.astype(x.dtype, copy=False)


def _gathered(by: SparsePlan, x: AnyArray, axis: int) -> AnyArray:
    weights, ndim = by.weights.astype(x.dtype), x.ndim

    def term(i: int | Array) -> AnyArray:
        return pick(x, by.sources[:, i], axis) * along(weights[:, i], axis, ndim)

    k = weights.shape[1]
    if k > _FEW and isinstance(weights, jax.Array):
        # Not one sum over all sources: XLA of jax 0.10 computes some of these wrongly on CPUs.
        return jax.lax.fori_loop(1, k, lambda i, found: found + term(i), term(0))
    found = term(0)
    for i in range(1, k):
        found += term(i)
    return found
