"""Which groups lie along which axes of a leaf, and in which order they are merged there."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from ifjax.structure import axis as ex
from ifjax.structure.batch_view import View
from ifjax.structure.layout import localised
from ifjax.structure.structure import Group, Member, Role, Structure


@dataclasses.dataclass(frozen=True)
class AxisMerge:
    """The groups along one axis of an array.

    Attributes:
      axis: the axis; of a group with batch axes, in one entry of the array.
      where: what lies along it; all else is pinned.
      roles: what the array does to the neurons, by group.
    """

    axis: int
    where: ex.Expression
    roles: tuple[tuple[str, Role], ...]


@dataclasses.dataclass(frozen=True)
class MergeStep:
    """Groups that are merged at once in an array: one with batch axes, or all without.

    Attributes:
      axes: the axes that hold them.
      view: how the batch axes of the one come to the front.
      size: its number of neurons.
    """

    axes: tuple[AxisMerge, ...]
    view: View | None = None
    size: int = 0

    @property
    def groups(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(dict.fromkeys(name for axis in self.axes for name, _ in axis.roles))


Merges = dict[str, tuple[MergeStep, ...]]


def merges_of(
    structure: Structure,
    groups: Sequence[Group],
    sizes: Mapping[str, int],
    paths: Collection[str],
    keep_shape: bool = False,
) -> Merges:
    """How some groups are merged in those of some leaves that hold them, at the present sizes.

    The groups come in the structure's order.
    """
    held: dict[str, dict[str, list[Member]]] = defaultdict(lambda: defaultdict(list))
    for group in groups:
        for m in group.members:
            if m.path in paths:
                held[m.path][group.name].append(m)
    return {
        path: steps_of(groups, structure.leaf[path].axes, members, sizes, keep_shape)
        for path, members in held.items()
    }


def steps_of(
    groups: Iterable[Group],
    axes: Sequence[ex.Expression],
    members: Mapping[str, Sequence[Member]],
    sizes: Mapping[str, int],
    keep_shape: bool,
) -> tuple[MergeStep, ...]:
    """What is done to an array that holds some members: groups with batch axes first.

    They come before the groups that batch them, in the structure's order.
    """
    sizes, steps = dict(sizes), []
    held = [group for group in groups if members.get(group.name)]
    for group in (g for g in held if g.batch):
        view = View(localised(axes, {group.name, *group.along}, sizes), group.along)
        rest = view.rest()
        own = members[group.name]
        along = tuple(AxisMerge(m.axis, rest[m.axis], ((group.name, m.role),)) for m in own)
        steps.append(MergeStep(along, view, group.size))
        if not keep_shape:
            sizes[group.name] = group.kept
    roles: dict[int, dict[str, Role]] = defaultdict(dict)
    for group in (g for g in held if not g.batch):
        for m in members[group.name]:
            roles[m.axis][group.name] = m.role
    if roles:
        local = localised(axes, {name for axis in roles.values() for name in axis}, sizes)
        along = tuple(AxisMerge(axis, local[axis], tuple(by.items())) for axis, by in roles.items())
        steps.append(MergeStep(along))
    return tuple(steps)


def only(step: MergeStep, axis: int) -> MergeStep:
    """The step on one axis alone."""
    return dataclasses.replace(step, axes=tuple(a for a in step.axes if a.axis == axis))
