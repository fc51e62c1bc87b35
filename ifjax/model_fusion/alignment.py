"""What a network's neurons are in terms of another one's: maps from one to the other, in order.

Two networks of one architecture may hold equal neurons in different places. A group can be compared
once what its weights contract with is aligned; so the groups are walked from the input to the
output, each compared on those of its members whose other axes are pinned or aligned already.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from ifjax.fusion.merge import group_map, times
from ifjax.namespace import AnyArray, Arrays, as_reals, jitted, namespace, over, pick
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.axis import Sizes
from ifjax.structure.batch_view import View, mentioned
from ifjax.structure.layout import localised
from ifjax.structure.structure import Group, Member, Structure

SELF = "self"  # the group at hand


@dataclasses.dataclass(frozen=True)
class Network:
    """A network on its way into the coordinates of another one.

    Attributes:
      structure: what it is made of, at its own widths; the groups in the order of
        `alignment_order`.
      leaves: its arrays by path, batch norms folded.
      maps: of the groups that are aligned, the plan T ``[*batch, n, m]``; a group that batches
        others comes before them, and theirs are those of its aligned entries.
      like: structure of the other network: where that permutes neurons and this one was cut, so
        that it does not, its arrays are brought into the other's order.
    """

    structure: Structure
    leaves: Arrays
    maps: dict[str, AnyArray] = dataclasses.field(default_factory=dict)
    like: Structure | None = None

    def mapped(
        self, path: str, without: Collection[str] = (), own: tuple[Group, int] | None = None
    ) -> tuple[AnyArray, dict[str, int]]:
        """A leaf in the other network's coordinates, as far as it is aligned; and present sizes.

        Args:
          path: of the leaf.
          without: groups to leave as they are.
          own: one of these groups, to be mapped all the same on the leaf's axes other than this.
        """
        x, axes = self.leaves[path], self.structure.leaf[path].axes
        sizes = {group.name: group.size for group in self.structure.groups}
        held = {name for e in axes for name in ex.atoms(e)}
        for group in self.structure.groups:
            if group.name in self.maps and group.name not in without:
                plan = self.maps[group.name]
                if group.name in held:
                    places = [m for m in group.members if m.path == path]
                    x = carried(x, axes, group, plan, places, sizes)
                sizes[group.name] = plan.shape[-1]
        if own is not None and own[0].name in self.maps:
            group, axis = own
            places = [m for m in group.members if m.path == path and m.axis != axis]
            if places:
                x = carried(x, axes, group, self.maps[group.name], places, sizes)
        for axis, e in enumerate(axes):
            left = {*without} - ({own[0].name} if own is not None and own[1] != axis else set())
            if self.like is not None and {*ex.atoms(e)} <= self.maps.keys() - left:
                x = _in_order(x, axis, e, self.like.leaf[path].axes[axis], sizes)
        return x, sizes


def _in_order(
    x: AnyArray, axis: int, own: ex.Expression, other: ex.Expression, sizes: Sizes
) -> AnyArray:
    """An array with one axis in the order that another network has there."""
    if own == other:
        return x
    index = _places(own, other, sizes)
    return x if np.array_equal(index, np.arange(len(index))) else pick(x, index, axis)


def _places(own: ex.Expression, other: ex.Expression, sizes: Sizes) -> np.ndarray:
    """Where what stands at every position of the other network's axis stands in one's own."""
    match own, other:
        case ex.Ordered(), ex.Ordered():
            pass
        case _, ex.Ordered(inside, order) if ex.size(own, sizes) == len(order):
            return _places(own, inside, sizes)[np.asarray(order)]
        case (ex.Product(a), ex.Product(b)) if len(a) == len(b):
            index = np.zeros(1, int)
            for x, y in zip(a, b, strict=True):
                index = (index[:, None] * ex.size(x, sizes) + _places(x, y, sizes)).ravel()
            return index
        case (ex.Sum(a), ex.Sum(b)) if len(a) == len(b):
            ends = np.cumsum([0, *(ex.size(x, sizes) for x in a)])
            pairs = zip(a, b, ends[:-1], strict=True)
            return np.concatenate([_places(x, y, sizes) + start for x, y, start in pairs])
    return np.arange(ex.size(own, sizes))


def alignment_order(structure: Structure) -> list[Group]:
    """All groups, from the input to the output.

    Next comes the first group, in the order of first producers, that a producer describes which is
    aligned but for the group itself; where there is none, the first one of which anything is.
    Groups that batch others come before these.
    """
    waiting, order = list(structure.groups), list[Group]()
    needs = {
        g.name: [
            (m.role, across(structure, m, g) - {one.name for one in inside(structure, g)})
            for m in g.members
        ]
        for g in waiting
    }
    while waiting:
        done = {g.name for g in order}
        ready = [g for g in waiting if not ({*g.along} & structure.group.keys()) - done]

        def described(group: Group, roles: Collection[str], done: set[str] = done) -> bool:
            return any(role in roles and need <= done for role, need in needs[group.name])

        chosen = next((g for g in ready if described(g, ("producer",))), None)
        if chosen is None:
            roles = {m.role for g in ready for m in g.members}
            chosen = next((g for g in ready if described(g, roles)), ready[0])
        order.append(chosen)
        waiting.remove(chosen)
    return order


def across(structure: Structure, member: Member, group: Group) -> set[str]:
    """The groups that lie across a group's neurons in a member: on other axes, or as factors.

    The group itself where it lies on another axis of the leaf too (a recurrent kernel).
    """
    axes = structure.leaf[member.path].axes
    others = {name for i, e in enumerate(axes) if i != member.axis for name in ex.atoms(e)}
    return others | _companions(axes[member.axis], group.name)


def inside(structure: Structure, group: Group) -> list[Group]:
    """The groups that have a choice of their own for every neuron of this one."""
    return [g for g in structure.groups if group.name in g.along]


def _companions(e: ex.Expression, name: str) -> set[str]:
    """Groups merged into one axis with a group: the other factors of its products."""
    match e:
        case ex.Product(parts):
            holding = [p for p in parts if name in set(ex.atoms(p))]
            others = [n for p in parts if p is not holding[0] for n in ex.atoms(p)]
            return _companions(holding[0], name) | set(others)
        case ex.Sum(parts):
            found = (_companions(p, name) for p in parts if name in set(ex.atoms(p)))
            return set().union(*found)
        case ex.Ordered(inside, _):
            return _companions(inside, name)
    return set()


def carried(
    x: AnyArray,
    axes: Sequence[ex.Expression],
    group: Group,
    plan: Float[AnyArray, "*batch n m"],
    places: Iterable[Member],
    sizes: Sizes,
) -> AnyArray:
    """Maps a group's neurons along some axes of an array: consumers by M, all else by P.

    Args:
      x: the array.
      axes: what lies along all of its axes.
      group: the group.
      plan: its transport plan, for every entry of its batch.
      places: the axes to map, and what the array does to the neurons there.
      sizes: present sizes.
    """
    view = View(tuple(axes), group.along)
    rest = view.rest()
    along = tuple(
        (m.axis, _local(rest[m.axis], group.name, sizes), m.role == "consumer") for m in places
    )
    if not group.batch:
        return _carried(x, plan, along)
    one = functools.partial(_carried, along=along)
    found = over(one, view.front(x, sizes), plan.reshape(-1, *plan.shape[-2:]))
    return view.back(found, {**sizes, group.name: plan.shape[-1]})


@jitted("along")
def _carried(
    x: AnyArray, plan: AnyArray, along: tuple[tuple[int, ex.Expression, bool], ...]
) -> AnyArray:
    found = group_map(plan, namespace(plan).argmax(plan, 0), select=False)
    for axis, where, consumes in along:
        matrix = found.pushforward if consumes else found.barycentric
        x = axis_arrays.transform(x, axis, where, SELF, functools.partial(times, matrix))
    return x


def _local(e: ex.Expression, name: str, sizes: Sizes) -> ex.Expression:
    """An axis with one group on it, all else pinned, so that like groups share their programs."""
    (local,) = localised((e,), {name}, sizes)
    return ex.rename(local, {name: SELF})


def describing(structure: Structure, group: Group, aligned: Collection[str]) -> list[Member]:
    """The members to compare a group on: those that nothing unaligned crosses.

    Kernels and what is added after them, as far as there are any.
    """
    known = set(aligned) - {g.name for g in inside(structure, group)}
    found = [m for m in group.members if across(structure, m, group) <= known]
    return [m for m in found if m.role not in ("multiplicative", "variance")] or found


def entries(network: Network, group: Group, member: Member) -> Float[AnyArray, "batch n _"]:
    """What a member holds of every neuron of a group, in aligned coordinates."""
    skip = [group.name, *(g.name for g in inside(network.structure, group))]
    x, sizes = network.mapped(member.path, skip, (group, member.axis))
    view = View(network.structure.leaf[member.path].axes, group.along)
    return _entries(x, view, group.name, member.axis, sizes)


def _entries(x: AnyArray, view: View, name: str, axis: int, sizes: Sizes) -> AnyArray:
    """Rows ``[batch, n, d]`` of a group along one axis, the view's names in front."""
    where = _local(view.rest()[axis], name, sizes)
    return _rows(view.front(x, sizes) if view.names else x[None], axis, where)


@jitted("axis", "where")
def _rows(x: AnyArray, axis: int, where: ex.Expression) -> AnyArray:
    def rows(x: AnyArray) -> AnyArray:
        found = axis_arrays.rows(x, axis, where, SELF)
        return namespace(x).concatenate([as_reals(r).reshape(len(r), -1) for r in found], axis=1)

    return over(rows, x)


def sets(
    network: Network, group: Group, aligned: Collection[str]
) -> Iterator[Float[AnyArray, "batch n k d"]]:
    """What crosses a group and is not aligned, as sets: of every neuron, the entries it has there.

    What is inside of its entries counts as not aligned.
    """
    skip = [group.name, *(g.name for g in inside(network.structure, group))]
    known = {*aligned, *group.along} - {*skip}
    for one in network.structure.groups:
        found: dict[tuple[str, ...], list[AnyArray]] = {}
        for m in one.members if one.name not in known and one is not group else ():
            axes = network.structure.leaf[m.path].axes
            others = across(network.structure, m, one) - known
            if group.name not in others or one.name in others:
                continue
            names = (*group.along, group.name, *sorted(others - {group.name}))
            if all(_is_factor(axes, name) for name in names):
                x, sizes = network.mapped(m.path, skip)
                rows = _entries(x, View(axes, names), one.name, m.axis, sizes)
                each = math.prod(sizes[n] for n in names[len(group.along) + 1 :]) * rows.shape[1]
                rows = rows.reshape(-1, sizes[group.name], each, rows.shape[2])
                found.setdefault(names, []).append(rows)
        for several in found.values():
            yield namespace(*several).concatenate(several, axis=-1)


def _is_factor(axes: Sequence[ex.Expression], name: str) -> bool:
    """Whether all along an array's one axis is numbered by a name, once."""

    def numbered(e: ex.Expression) -> bool:
        match e:
            case ex.Product(parts):
                return [name in mentioned(p) for p in parts].count(True) == 1 and any(
                    map(numbered, parts)
                )
            case ex.Sum(parts):
                return all(map(numbered, parts))
            case ex.Ordered(inside, _):
                return numbered(inside)
        return name in mentioned(e)

    holding = [e for e in axes if name in mentioned(e)]
    return len(holding) == 1 and numbered(holding[0])
