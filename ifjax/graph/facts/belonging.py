"""Which numbers belong to a sum, and what is known of those that do not."""

from __future__ import annotations

import dataclasses

from ifjax.graph.facts.sums import Of, Sum
from ifjax.jaxprs.walk import Axes, Reason
from ifjax.jaxprs.width_number import Reading, is_common

UNCLEAR = 4.0  # met for other reasons too, as are halves and powers of ten


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A width that a number may come from.

    Attributes:
      over: axes whose sizes multiply to it.
      reading: how the number is made of it.
      of: what is summed over these axes; None where they are only there.
    """

    over: Axes
    reading: Reading
    of: Of | None


@dataclasses.dataclass(frozen=True)
class Kept:
    """A number that comes from a width, as it seems, and stays as it is.

    Attributes:
      number: the number.
      where: the equation.
      changed: whether it is known to change with the widths, or not to.
      candidates: the widths that it may come from.
      near: the axes of what it is applied to, and those that are summed over.
      sign: 1 where it multiplies, -1 where it divides, 0 elsewhere.
    """

    number: float
    where: Reason
    changed: bool | None
    candidates: tuple[Candidate, ...]
    near: Axes = ()
    sign: int = 0


def is_plain(way: Reading) -> bool:
    """A width, its root, or one over them: what is looked for where nothing is summed."""
    return not way.less and not way.log and abs(way.power) <= 1


def belongs(
    number: float, way: Reading, place: Sum, sign: int, changed: bool | None, statistic: bool
) -> int:
    """How well a number, read in a certain way, belongs to a sum; 0 where it does not.

    Args:
      number: the number.
      way: how it is read.
      place: the sum.
      sign: 1 where it multiplies the value, -1 where it divides it, 0 where it is added.
      changed: whether it is another at other widths, where that is known.
      statistic: whether the value is itself no layer of the neurons that are summed over.
    """
    unclear = is_common(number) or number in (UNCLEAR, 1 / UNCLEAR)
    if place.log or way.log:
        told = changed or (changed is None and not unclear)
        of_log = place.log and way.log and not sign and place.degree is not None
        return 2 if told and (of_log or (way.log and statistic and sign)) else 0
    fits = sign != 0 and place.degree is not None and place.degree + sign * way.degree == 0
    if fits and way.part == 1 and not way.less and abs(way.power) == 1:
        return 0 if place.of == "a contraction" else 4
    if place.of != "one value" or not sign:
        return 0
    if fits and way.part == 1:  # 4 is sqrt(16), and four
        whole = not way.less and (number.is_integer() or (1 / number).is_integer())
        return 3 if changed or (not is_common(number) and not (whole and changed is False)) else 0
    total = way.part == 1 and not way.less and abs(way.power) == 1
    if statistic and (changed or (total and changed is None and not unclear)):
        return 2 if total else 1
    return 0
