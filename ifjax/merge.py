"""One group at a time: the rows that describe its neurons, and its map applied to its members."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ifjax.graph import expression as ex
from ifjax.graph.roles import Role
from ifjax.graph.views import View
from ifjax.method import Method
from ifjax.spec import Group, Member, Plan
from ifjax.transport import Transport

SELF = "self"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one array holds the neurons of the group at hand.

    Of a group with batch axes: one entry of the array, without these axes.

    Attributes:
      array: number of the array.
      axis: its axis.
      role: what it does to the neurons.
      where: what lies along the axis; the group is the atom `SELF`, all else is pinned at its
        present size, so that groups of one shape share their compiled programs.
    """

    array: int
    axis: int
    role: Role
    where: ex.Expression


def places(
    plan: Plan, group: Group, sizes: Mapping[str, int]
) -> tuple[list[str], tuple[Place, ...]]:
    """Paths of the leaves that hold a group, and where, at the present sizes of all groups."""
    paths = list(dict.fromkeys(m.path for m in group.members))
    number = {path: i for i, path in enumerate(paths)}
    found = [
        Place(number[m.path], m.axis, m.role, _localised(plan, m, group, sizes))
        for m in group.members
    ]
    return paths, tuple(found)


def _localised(plan: Plan, member: Member, group: Group, sizes: Mapping[str, int]) -> ex.Expression:
    name = group.name

    def visit(e: ex.Expression) -> ex.Expression:
        match e:
            case ex.Atom(found, n) if found == name:
                return ex.Atom(SELF, n)
            case ex.Product(parts) if name in set(ex.atoms(e)):
                return ex.Product(tuple(map(visit, parts)))
            case ex.Sum(parts) if name in set(ex.atoms(e)):
                return ex.Sum(tuple(map(visit, parts)))
        return ex.Pinned(ex.size(e, sizes))

    return visit(View(plan.leaf[member.path].axes, group.along).rest()[member.axis])


def entries(
    group: Group, axes: Sequence[ex.Expression], x: Array, sizes: Mapping[str, int]
) -> Array:
    """The array; of a group with batch axes its entries, ``[batch, *entry]``."""
    return View(tuple(axes), group.along).front(x, sizes) if group.batch else x


def flat(group: Group, found: Any) -> Any:
    """Arrays ``[*batch, ...]`` as ``[batch, ...]``."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(group.batch) :]), found)


def describing(where: Sequence[Place]) -> tuple[Place, ...]:
    """The places that describe a neuron: producers and consumers, or all where there are none."""
    return tuple(p for p in where if p.role in ("producer", "consumer")) or tuple(where)


def rows(arrays: Sequence[Array], where: Sequence[Place]) -> list[Float[Array, "n _"]]:
    """What belongs to each neuron, one matrix per occurrence of the group in the given places."""
    return [matrix for p in where for matrix in ex.rows(arrays[p.array], p.axis, p.where, SELF)]


def alone(where: Sequence[Place], arrays: Sequence[int]) -> tuple[Place, ...]:
    """The places in some of the arrays, which are numbered anew in the order given."""
    number = {array: i for i, array in enumerate(arrays)}
    return tuple(dataclasses.replace(p, array=number[p.array]) for p in where if p.array in number)


def merge_leaves(
    leaves: Mapping[str, Any],
    plan: Plan,
    maps: Mapping[str, Transport],
    merge: Callable[[Group], str],
    keep_shape: bool,
    neutral: bool = False,
) -> dict[str, Any]:
    """Applies the maps of all groups to those of a plan's leaves that are given, by path."""
    result, sizes = dict(leaves), dict[str, int]()
    for group in plan.in_order():
        paths, where = places(plan, group, sizes)
        given = [i for i, path in enumerate(paths) if path in leaves]
        full = group.size if keep_shape else None
        merged = merge_group(
            group,
            [plan.leaf[paths[i]].axes for i in given],
            [result[paths[i]] for i in given],
            alone(where, given),
            maps[group.name],
            merge(group),
            sizes,
            full,
            neutral,
        )
        result.update(zip((paths[i] for i in given), merged, strict=True))
        if not keep_shape:
            sizes[group.name] = group.kept
    return result


def merge_group(
    group: Group,
    axes: Sequence[Sequence[ex.Expression]],
    arrays: Sequence[Array],
    where: Sequence[Place],
    found: Transport,
    merge: str,
    sizes: Mapping[str, int],
    full: int | None = None,
    neutral: bool = False,
) -> list[Array]:
    """Applies a group's maps to the arrays that hold it, to every entry of its batch its own.

    Args:
      group: the group.
      axes: what lies along the axes of every array.
      arrays: the arrays that ``where`` numbers.
      where: the places of the group.
      found: its transport maps, ``[*batch, n, m]``.
      merge: see `merge_neurons`.
      sizes: present widths of the groups that were mapped before.
      full: see `merge_neurons`.
      neutral: see `merge_neurons`.

    Returns:
      The arrays, mapped in all places.
    """
    if not group.batch:
        return merge_neurons(arrays, where, found, merge, full, neutral)
    views = [View(tuple(a), group.along) for a in axes]
    fronts = [view.front(x, sizes) for view, x in zip(views, arrays, strict=True)]

    def one(arrays: list[Array], found: Transport) -> list[Array]:
        return merge_neurons(arrays, where, found, merge, full, neutral)

    merged = jax.vmap(one)(fronts, flat(group, found))
    width = full or found.map.shape[-1]
    after = {**sizes, group.name: width}
    return [view.back(x, after) for view, x in zip(views, merged, strict=True)]


def merge_neurons(
    arrays: Sequence[Array],
    where: Sequence[Place],
    found: Transport,
    merge: str,
    full: int | None = None,
    neutral: bool = False,
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

    Returns:
      The arrays, mapped in all places.
    """
    arrays = list(arrays)
    by = {} if merge == "select" else matrices(found.map, found.targets, full)
    for p in where:
        x = arrays[p.array]
        if merge == "select":
            arrays[p.array] = _select(x, found.targets, p.axis, p.where, full)
        else:
            arrays[p.array] = _multiply(x, by[normalised(p.role, merge)], p.axis, p.where)
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


@functools.partial(jax.jit, static_argnames=("axis", "where"))
def _multiply(x: Array, by: Float[Array, "m n"], axis: int, where: ex.Expression) -> Array:
    def function(x: Array, axis: int) -> Array:
        product = jnp.tensordot(
            by.astype(x.dtype), x, (1, axis), precision=jax.lax.Precision.HIGHEST
        )
        return jnp.moveaxis(product, 0, axis)

    return ex.transform(x, axis, where, SELF, function)


@functools.partial(jax.jit, static_argnames=("axis", "where", "full"))
def _select(
    x: Array, targets: Int[Array, " m"], axis: int, where: ex.Expression, full: int | None
) -> Array:
    def function(x: Array, axis: int) -> Array:
        if full is None:
            return jnp.take(x, targets, axis)
        mask = jnp.zeros((full,), bool).at[targets].set(True)
        return jnp.where(_lift(mask, x, axis), x, 0)

    return ex.transform(x, axis, where, SELF, function)


@functools.partial(jax.jit, static_argnames=("axis", "where", "full"))
def _neutral(
    x: Array, targets: Int[Array, " m"], axis: int, where: ex.Expression, full: int
) -> Array:
    """Ones in the places of the neurons that are no targets."""
    mask = jnp.zeros((full,), bool).at[targets].set(True)

    def function(x: Array, axis: int) -> Array:
        return jnp.where(_lift(mask, x, axis), x, 1)

    return ex.transform(x, axis, where, SELF, function)


def _lift(mask: Array, x: Array, axis: int) -> Array:
    return mask.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def merge_kind(method: Method) -> str:
    """The ``merge`` of `merge_neurons` that a method asks for."""
    return "select" if method.method == "prune" else method.merge
