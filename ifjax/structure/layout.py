"""Where arrays hold the neurons of groups, at the present sizes of all groups."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import jax
from jaxtyping import PyTree

from ifjax.namespace import AnyArray
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.axis import Sizes
from ifjax.structure.batch_view import View
from ifjax.structure.structure import Group, Member, Structure


@dataclasses.dataclass(frozen=True)
class GroupLayout:
    """The arrays that hold a group, and where.

    Attributes:
      group: name of the group.
      members: the axes that hold it: path of the array, its axis (of a group with batch axes, in
        one entry of the array), and what lies along it; all but the group is pinned.
      views: how batch axes come to the front, by path; empty where the group has none.
      features: how many numbers belong to a neuron.
    """

    group: str
    members: tuple[tuple[str, int, ex.Expression], ...]
    views: tuple[tuple[str, View], ...] = ()
    features: int = 0

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the arrays, each once."""
        return tuple(dict.fromkeys(path for path, _, _ in self.members))

    def entries(self, leaves: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """The arrays as ``[batch, *entry]``, the batch axes in front; as they are without batch."""
        if not self.views:
            return {path: leaves[path] for path in self.paths}
        return {path: view.front(leaves[path], {}) for path, view in self.views}

    def parts(self, entry: Mapping[str, AnyArray]) -> list[tuple[AnyArray, int]]:
        """The parts of an entry's arrays that hold the neurons, and the axis that these lie along.

        One per occurrence of the group.
        """
        return [
            part
            for path, axis, where in self.members
            for part in axis_arrays.parts(entry[path], axis, where, self.group)
        ]


def layout_of(
    structure: Structure, group: Group, sizes: Sizes, members: Sequence[Member] | None = None
) -> GroupLayout:
    """The layout of a group, or of some of its members, at the present sizes of all groups.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> layout_of(graph.structure, graph.groups[0], {}).paths
      ('w1', 'w2')
    """
    members = group.members if members is None else members
    views = {
        m.path: View(
            localised(structure.leaf[m.path].axes, {group.name, *group.along}, sizes), group.along
        )
        for m in members
    }
    local, features = [], 0
    for m in members:
        rest = views[m.path].rest()
        local.append((m.path, m.axis, rest[m.axis]))
        others = math.prod(ex.size(e) for i, e in enumerate(rest) if i != m.axis)
        features += others * _multiplicity(rest[m.axis], group.name)
    batched = tuple(views.items()) if group.batch else ()
    return GroupLayout(group.name, tuple(local), batched, features)


def _multiplicity(e: ex.Expression, name: str) -> int:
    """How often every neuron of a group lies along an axis."""
    match e:
        case ex.Atom(found, _):
            return int(found == name)
        case ex.Product(parts):
            inner = [_multiplicity(p, name) for p in parts]
            whole = math.prod(ex.size(p) for p in parts)
            return sum(k * whole // ex.size(p) for k, p in zip(inner, parts, strict=True))
        case ex.Sum(parts):
            return sum(_multiplicity(p, name) for p in parts)
        case ex.Ordered(inside, _):
            return _multiplicity(inside, name)
    return 0


def localised(
    axes: Sequence[ex.Expression], names: Collection[str], sizes: Sizes
) -> tuple[ex.Expression, ...]:
    """Axes at the present sizes of all groups, pinned but for some groups and named axes.

    >>> e = ex.Sum((ex.Atom("a", 4), ex.Atom("b", 3), ex.Pinned(2), ex.Atom("c", 5)))
    >>> localised([e], {"c"}, {"a": 2})[0].segments
    (Pinned(size=7, name=None, entries=(), batch=0), Atom(name='c', size=5))
    """
    return tuple(_localised(e, names, sizes) for e in axes)


def _localised(e: ex.Expression, names: Collection[str], sizes: Sizes) -> ex.Expression:
    match e:
        case ex.Pinned(n, name):
            return e if name in names else ex.Pinned(n)
        case ex.Atom(name, n):
            size = sizes.get(name, n)
            return ex.Atom(name, size) if name in names else ex.Pinned(size)
        case ex.Product(parts):
            factors = tuple(_localised(p, names, sizes) for p in parts)
            if all(isinstance(f, ex.Pinned) and f.name is None for f in factors):
                return ex.Pinned(math.prod(map(ex.size, factors)))
            return ex.Product(factors)
        case ex.Sum(parts):
            return _joined(parts, names, sizes)
        case ex.Ordered(inside, order):
            return ex.in_order(_localised(inside, names, sizes), order)


def _joined(parts: Sequence[ex.Expression], names: Collection[str], sizes: Sizes) -> ex.Expression:
    """Segments, neighbours that are pinned as one: there may be as many as a network has layers."""
    joined: list[ex.Expression] = []
    pinned, held = 0, False  # what has been pinned since the last segment that was not
    for part in parts:
        match part:
            case ex.Atom(name, n) if name not in names:
                pinned, held = pinned + sizes.get(name, n), True
                continue
            case ex.Pinned(n, name) if name not in names:
                pinned, held = pinned + n, True
                continue
        local = _localised(part, names, sizes)
        if isinstance(local, ex.Pinned) and local.name is None:
            pinned, held = pinned + local.size, True
            continue
        joined += [ex.Pinned(pinned), local] if held else [local]
        pinned, held = 0, False
    if held and not joined:
        return ex.Pinned(pinned)
    return ex.Sum((*joined, ex.Pinned(pinned)) if held else tuple(joined))


def flat(group: Group, found: PyTree) -> PyTree:
    """Arrays ``[*batch, ...]`` as ``[batch, ...]``."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(group.batch) :]), found)
