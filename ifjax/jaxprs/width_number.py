"""Numbers that come from a width: how one is read, written, and what it is at another width.

A literal of a jaxpr is a mere number: 7.0 where a function has n - 1 of 8 neurons. Read as

    factor * n**power * (n - 1)**less,    or    log n,

it can be evaluated at another width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction

from ifjax.jaxprs.axis_store import AxisStore

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
# (power, less), from what is met most often to what is met least
SHAPES = (
    *((1, 0), (-1, 0), (0, 1), (0, -1), (HALF, 0), (-HALF, 0), (0, HALF), (0, -HALF)),
    *((1, -1), (-1, 1), (HALF, -HALF), (-HALF, HALF), (QUARTER, 0), (-QUARTER, 0)),
    *((2, 0), (-2, 0), (1, 1), (-1, -1), (1 + HALF, 0), (-1 - HALF, 0)),
)
# of a number that is known to change with the width: 2 / n, sqrt(2 / n), n // 4
FACTORS = (2, 3, 4, 6, 8, 12, 16, 32)
TOO_COMMON = {0.5, 1.0, 2.0, *(10.0**k for k in range(-12, 13))}


@dataclasses.dataclass(frozen=True)
class Reading:
    """A number as a function of a width n: (n / part)**power * (n - 1)**less, or log n.

    >>> Reading(1.0, Fraction(0), Fraction(1)).at(8), Reading(1.0, -HALF).text(16)
    (7.0, '1 / sqrt(16)')
    """

    part: float = 1.0
    power: Fraction = Fraction(0)
    less: Fraction = Fraction(0)
    log: bool = False

    def at(self, n: int) -> float:
        """The number at a width; infinite where a divisor is zero."""
        if self.log:
            return math.log(n)
        try:
            return float(n / self.part) ** float(self.power) * float(n - 1) ** float(self.less)
        except ZeroDivisionError:
            return math.inf

    def text(self, n: int) -> str:
        """How the number is made of a width.

        >>> [Reading(1.0, Fraction(1), Fraction(-1)).text(8), Reading(2.0, -HALF).text(8)]
        ['8 / (8 - 1)', '1 / sqrt(8 / 2)']
        """
        if self.log:
            return f"log({n})"
        whole = str(n) if self.part == 1 else f"{n} / {self.part:g}"
        both = self.power and self.less
        pairs = ((whole, self.power), (f"{n} - 1", self.less))
        parts = [_power(base, p, bool(both)) for base, p in pairs if p > 0]
        under = [_power(base, -p, True) for base, p in pairs if p < 0]
        top = " * ".join(parts) or "1"
        return f"{top} / {' / '.join(under)}" if under else top

    @property
    def degree(self) -> Fraction:
        """The power of n that it grows with."""
        return self.power + self.less


def _power(base: str, power: Fraction, inside: bool) -> str:
    """A power of something, in brackets where it needs them."""
    if power == HALF:
        return f"sqrt({base})"
    bracketed = f"({base})" if " " in base else base
    if power == 1:
        return bracketed if inside else base
    return f"{bracketed}**{power}" if power.denominator == 1 else f"{bracketed}**({power})"


@functools.lru_cache(maxsize=4096)
def readings(number: float, n: int, tolerance: float, factors: bool = False) -> tuple[Reading, ...]:
    """The ways in which a number can come from a width, the likeliest first.

    Args:
      number: the number.
      n: the width.
      tolerance: relative, of the number's dtype.
      factors: also multiples and parts of the width, which fit too many numbers unless it is known
        that the number changes with it.

    >>> [r.text(8) for r in readings(7.0, 8, 1e-6)]
    ['8 - 1']
    """
    if n < 2 or not math.isfinite(number) or number <= 0:
        return ()
    parts = (1, *(f for f in FACTORS), *(1 / f for f in FACTORS)) if factors else (1,)
    shapes = [(part, *shape) for part in parts for shape in SHAPES if part == 1 or not shape[1]]
    found = [Reading(float(part), Fraction(p), Fraction(q)) for part, p, q in shapes]
    found.insert(len(SHAPES), Reading(log=True))
    return tuple(r for r in found if math.isclose(r.at(n), number, rel_tol=tolerance))


def is_common(number: float) -> bool:
    """Whether a number is met for so many reasons that its value alone tells nothing."""
    return number in TOO_COMMON or (number > 0 and 1 / number in TOO_COMMON)


@dataclasses.dataclass(frozen=True)
class Followed:
    """Noted at an equation one of whose operands is a number that follows the widths.

    Attributes:
      operand: number of the operand.
      over: axes whose sizes multiply to the width that it is read in.
      reading: the number as a function of that width.
      known: the number at the small widths, where the function itself says it.
      negative: whether it is minus what is read.
    """

    operand: int
    over: tuple[int, ...]
    reading: Reading
    known: float | None = None
    negative: bool = False

    def number(self, size: Callable[[int], int]) -> float:
        """The number where axes have the sizes that a function gives."""
        if self.known is not None:
            return self.known
        found = self.reading.at(math.prod(map(size, self.over)))
        return -found if self.negative else found

    @property
    def is_count(self) -> bool:
        """Whether it is the number of terms of a sum, or its reciprocal: a mean's."""
        return not self.reading.less and abs(self.reading.power) == 1

    def width(self, store: AxisStore) -> int:
        """The width that the number is read in."""
        return math.prod(map(store.size, self.over))
