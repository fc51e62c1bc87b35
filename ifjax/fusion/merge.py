"""One group at a time: the rows that describe its neurons, and its map applied to its members."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ifjax.fusion.execution.sparse_map import NeuronMap, neuron_map, of_multiples, times
from ifjax.parallel import placement as mesh
from ifjax.spec.method import Method
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.layout import SELF, Held, Place, held
from ifjax.structure.structure import Group, Role, Structure
from ifjax.transport.transport import Transport

Sources = Literal["many", "few", "whole"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Map:
    """What merging reads of a `Transport`: the plan, and which neurons its targets are.

    Attributes:
      map: the plan.
      targets: the neurons that its targets are.
      sources: how many sources a target is expected to have: any number; few, as in a vertex; or,
        known for certain, no more than `ifjax.fusion.execution.sparse_map` lists.
    """

    map: Float[Array, "*batch n m"]
    targets: Int[Array, "*batch m"]
    sources: Sources = dataclasses.field(default="many", metadata={"static": True})


def merge_leaves(
    leaves: Mapping[str, Any],
    structure: Structure,
    maps: Mapping[str, Map | Transport],
    merge: Callable[[Group], str],
    keep_shape: bool,
    neutral: bool = False,
) -> dict[str, Any]:
    """Applies the maps of all groups to those of a structure's leaves that are given, by path."""
    result, sizes = dict(leaves), dict[str, int]()
    for group in structure.in_order():
        holds, paths = held(structure, group, sizes, leaves)
        full = group.size if keep_shape else None
        arrays = [result[path] for path in paths]
        merged = merge_group(holds, arrays, maps[group.name], merge(group), full, neutral)
        result.update(zip(paths, merged, strict=True))
        if not keep_shape:
            sizes[group.name] = group.kept
    return result


def merge_group(
    holds: Held,
    arrays: Sequence[Array],
    found: Map | Transport,
    merge: str,
    full: int | None = None,
    neutral: bool = False,
    factors: Float[Array, " n"] | None = None,
) -> list[Array]:
    """Applies a group's maps to arrays that hold it, to every entry of its batch its own.

    Args:
      holds: what is static about the arrays.
      arrays: the arrays.
      found: the group's transport maps, ``[*batch, n, m]``.
      merge: see `merge_neurons`.
      full: see `merge_neurons`.
      neutral: see `merge_neurons`.
      factors: see `merge_neurons`; of a group without batch axes.

    Returns:
      The arrays, mapped in all places.
    """
    if not arrays:
        return []
    if not holds.views:
        return merge_neurons(arrays, holds.where, found, merge, full, neutral, factors)

    def one(arrays: list[Array], found: Map | Transport) -> list[Array]:
        return merge_neurons(arrays, holds.where, found, merge, full, neutral)

    batch = found.map.ndim - 2
    every = jax.tree.map(lambda x: x.reshape(-1, *x.shape[batch:]), found)
    merged = jax.vmap(one)(holds.entries(arrays), every)
    after = {SELF: full or found.map.shape[-1]}
    return [view.back(x, after) for view, x in zip(holds.views, merged, strict=True)]


def merge_neurons(
    arrays: Sequence[Array],
    where: Sequence[Place],
    found: Map | Transport,
    merge: str,
    full: int | None = None,
    neutral: bool = False,
    factors: Float[Array, " n"] | None = None,
) -> list[Array]:
    """Applies a group's map to the arrays that hold it.

    One small program per shape of an array: networks repeat their shapes, so that called eagerly it
    compiles little.

    Args:
      arrays: the arrays that ``where`` numbers.
      where: the places of the group.
      found: its transport map.
      merge: ``"reference"``, ``"preserving"``, ``"gradients"``, or ``"select"`` for the targets as
        they are.
      full: the group's size, to put the results in the places of the targets, zeros elsewhere.
      neutral: ones elsewhere in vectors that scale, for one may divide by them.
      factors: what the neurons are multiplied by before.

    Returns:
      The arrays, mapped in all places.
    """
    arrays = list(arrays)
    by = {} if merge == "select" else matrices(found.map, found.targets, full)
    sources = found.sources if isinstance(found, Map) else "many"
    kept = None if sources == "many" else found.map.shape[1]
    maps = {name: neuron_map(matrix, kept) for name, matrix in by.items()}
    if factors is not None:
        maps = {name: of_multiples(by, factors) for name, by in maps.items()}
    for p in where:
        x = arrays[p.array]
        if merge == "select":
            kept = _select(x, found.targets, p.axis, p.where, full)
            if factors is not None:
                along = _select(factors, found.targets, 0, p.where, full)
                kept = kept * _lift(along, kept, p.axis)
            arrays[p.array] = kept
        else:
            by = maps[normalised(p.role, merge)]
            arrays[p.array] = _multiply(x, by, p.axis, p.where, sources == "whole")
        if (
            full is not None
            and neutral
            and p.role in ("multiplicative", "variance")
            and x.size == x.shape[p.axis]
        ):
            arrays[p.array] = _neutral(arrays[p.array], found.targets, p.axis, p.where, full)
    return arrays


def normalised(role: Role, merge: str) -> str:
    """Which matrix a member of this role is multiplied by, a key of `matrices`.

    M for consumers and, in the reference merge, for producers and additive members; P for the rest.
    Gradients the other way round than in the preserving merge: P for consumers, M for the rest.
    """
    if merge == "gradients":
        return "P" if role == "consumer" else "M"
    summed = merge == "reference" and role in ("producer", "additive", "mean")
    return "M" if summed or role == "consumer" else "P"


@functools.partial(jax.jit, static_argnames=("full",))
def matrices(
    plan: Float[Array, "n m"], targets: Int[Array, " m"], full: int | None
) -> dict[str, Array]:
    """M = (diag(T 1)^-1 T)^T and P = diag(T^T 1)^-1 T^T, each ``[m, n]``; 0/0 = 0.

    Columns of M and rows of P sum to one. With ``full`` the rows stand where the targets were.
    """
    result = {}
    for name, axis in (("M", 1), ("P", 0)):
        total = plan.sum(axis, keepdims=True)
        scaled = jnp.where(total > 0, plan / jnp.where(total > 0, total, 1), 0).T
        if full is not None:
            scaled = jnp.zeros((full, full), scaled.dtype).at[targets].set(scaled)
        result[name] = scaled
    return result


@functools.partial(jax.jit, static_argnames=("axis", "where", "whole"))
def _multiply(x: Array, by: NeuronMap, axis: int, where: ex.Expression, whole: bool) -> Array:
    return axis_arrays.transform(x, axis, where, SELF, lambda x, axis: times(by, x, axis, whole))


@functools.partial(jax.jit, static_argnames=("axis", "where", "full"))
def _select(
    x: Array, targets: Int[Array, " m"], axis: int, where: ex.Expression, full: int | None
) -> Array:
    def function(x: Array, axis: int) -> Array:
        if full is None:
            return mesh.take(x, targets, axis)
        mask = jnp.zeros((full,), bool).at[targets].set(True)
        return jnp.where(_lift(mask, x, axis), x, 0)

    return axis_arrays.transform(x, axis, where, SELF, function)


@functools.partial(jax.jit, static_argnames=("axis", "where", "full"))
def _neutral(
    x: Array, targets: Int[Array, " m"], axis: int, where: ex.Expression, full: int
) -> Array:
    """Ones in the places of the neurons that are no targets."""
    mask = jnp.zeros((full,), bool).at[targets].set(True)

    def function(x: Array, axis: int) -> Array:
        return jnp.where(_lift(mask, x, axis), x, 1)

    return axis_arrays.transform(x, axis, where, SELF, function)


def _lift(mask: Array, x: Array, axis: int) -> Array:
    return mask.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def merge_kind(method: Method) -> str:
    """The ``merge`` of `merge_neurons` that a method asks for."""
    return "select" if method.method == "prune" else method.merge
