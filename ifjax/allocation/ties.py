"""What is cut by one number: a group or several that are tied, and the widths they may have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ifjax.spec.options import is_real, nearest_first, plain_number
from ifjax.spec.widths import Uniform, matching, tied
from ifjax.structure.structure import Group

Bound = float | int | Mapping[str, float | int]


@dataclasses.dataclass(frozen=True)
class Tie:
    """Groups that are cut in one ratio.

    Attributes:
      name: of the group, or of what ties them.
      groups: the groups.
      ladder: the widths that they may have, by group, from the fewest neurons to the most.
    """

    name: str
    groups: tuple[Group, ...]
    ladder: tuple[tuple[int, ...], ...]

    def widths(self, rung: int) -> dict[str, int]:
        """The widths at a rung of the ladder."""
        return {g.name: m for g, m in zip(self.groups, self.ladder[rung], strict=True)}

    @property
    def top(self) -> int:
        """The rung of the most neurons."""
        return len(self.ladder) - 1

    @property
    def is_whole(self) -> bool:
        """Whether all neurons may stay."""
        return self.ladder[-1] == tuple(g.size for g in self.groups)


def ties_of(
    groups: Sequence[Group], uniform: Uniform, floor: Bound, cap: Bound, round_to: int
) -> list[Tie]:
    """The ties of groups that may be cut.

    Args:
      groups: those that may be cut.
      uniform: see `ifjax.spec.widths.tied`; a group belongs to the first that ties it.
      floor: the fewest neurons that stay: a number of them, or a fraction of a group's; by glob.
      cap: the most.
      round_to: cut widths are multiples of it.

    Returns:
      The ties; a group that nothing ties is one of its own.

    Raises:
      ValueError: for a bound that is none, a pattern that matches nothing, or bounds between which
        there is no width.
    """
    lowest, highest = _bounds(groups, floor, "floor"), _bounds(groups, cap, "cap")
    found, done = [], set[str]()
    bundles = [*tied(groups, uniform).items(), *((g.name, (g,)) for g in groups)]
    for name, bundle in bundles:
        members = tuple(g for g in bundle if g.name not in done)
        if members:
            done |= {g.name for g in members}
            ladder = _ladder(name, members, lowest, highest, round_to)
            found.append(Tie(name, members, ladder))
    return found


def _bounds(groups: Sequence[Group], bound: Bound, what: str) -> dict[str, int]:
    """The bound in neurons, by group; of the first pattern that matches."""
    found: dict[str, int] = {}
    for pattern, given in (bound if isinstance(bound, Mapping) else {"*": bound}).items():
        names = matching(groups, pattern)
        if not names:
            near = ", ".join(map(repr, nearest_first(pattern, [g.name for g in groups])[:3]))
            raise ValueError(
                f"{what} pattern {pattern!r} matches none of the groups that may be cut, such as "
                f"{near}"
            )
        value = plain_number(given)
        if not is_real(value) or value <= 0 or (isinstance(value, float) and value > 1):
            raise ValueError(
                f"{what}: expected a positive number of neurons, or a fraction of them as a float "
                f"in (0, 1]; got {given!r} for {pattern!r}"
            )
        for g in groups:
            if g.name in names and g.name not in found:
                n = value * g.size if isinstance(value, float) else min(value, g.size)
                n = math.ceil(n - 1e-9) if what == "floor" else math.floor(n + 1e-9)
                found[g.name] = max(n, 1)
    return found


def _ladder(
    name: str,
    groups: Sequence[Group],
    lowest: Mapping[str, int],
    highest: Mapping[str, int],
    round_to: int,
) -> tuple[tuple[int, ...], ...]:
    """The widths that the groups of a tie may have."""
    first = max(groups, key=lambda g: g.size)
    rungs = []
    for m in [*range(round_to, first.size, round_to), first.size]:
        widths = tuple(_scaled(g, m, first.size, round_to) for g in groups)
        low = all(w >= lowest.get(g.name, 1) for g, w in zip(groups, widths, strict=True))
        high = all(w <= highest.get(g.name, g.size) for g, w in zip(groups, widths, strict=True))
        if low and high:
            rungs.append(widths)
    if not rungs:
        low, high = lowest.get(first.name, 1), highest.get(first.name, first.size)
        raise ValueError(
            f"{name}: no width that is a multiple of {round_to} lies between its floor, {low}, and "
            f"its cap, {high}, of {first.size} neurons; lower the floor, raise the cap, or give a "
            "smaller round_to"
        )
    return tuple(rungs)


def _scaled(group: Group, m: int, n: int, round_to: int) -> int:
    """The width of a group where the largest of its tie has m of n neurons."""
    if m == n:
        return group.size
    width = max(1, math.floor(m * group.size / n / round_to + 0.5)) * round_to
    return min(width, group.size // round_to * round_to) or group.size
