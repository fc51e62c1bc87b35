"""Sums that a value is made of, and in which power of their sizes it grows with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from ifjax.graph.facts.origins import NOTHING
from ifjax.jaxprs.walk import Axes, Frame
from ifjax.jaxprs.width_number import HALF

Of = Literal["one value", "two values", "a contraction"]
Key = tuple[Axes, Of, bool]

ROOTS = {"sqrt": HALF, "rsqrt": -HALF, "cbrt": Fraction(1, 3), "square": Fraction(2)}
ARITHMETIC: dict[str, Callable[..., float]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "cbrt": np.cbrt,
    "log": np.log,
    "exp": np.exp,
    "pow": np.power,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
}


@dataclasses.dataclass(frozen=True)
class Sum:
    """A sum that a value is made of.

    Attributes:
      over: the axes that are summed over.
      degree: the power of their sizes that the value grows with; None where it is not known.
      of: what is summed: a value of its own, products of two, or a contraction of two.
      log: whether it is the logarithm that grows so.
    """

    over: Axes
    degree: Fraction | None
    of: Of = "one value"
    log: bool = False

    @property
    def key(self) -> Key:
        """What sums of one value are told apart by."""
        return (self.over, self.of, self.log)


@dataclasses.dataclass(frozen=True, eq=False)
class Scaling:
    """A number that a value was multiplied with before anything was summed that it belongs to.

    Attributes:
      frame: the frame of the equation.
      index: its number there.
      operand: which operand the number is.
      number: the number.
      sign: 1 where it multiplies, -1 where it divides.
      axes: of what it is applied to.
    """

    frame: Frame
    index: int
    operand: int
    number: Value
    sign: int
    axes: Axes


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value.

    Attributes:
      number: what it is everywhere, where that is a constant.
      other: what it is at the other widths.
      sums: the sums that it is made of.
      product: those that its logarithm is made of, of a product over neurons.
      paired: whether it is the product of two different values.
      origin: the features it is made from, see `Origins`.
      scaling: a number that it was scaled by, and that belongs to nothing so far; None where the
        value is used more than once.
    """

    number: float | None = None
    other: float | None = None
    sums: tuple[Sum, ...] = ()
    product: tuple[Sum, ...] = ()
    paired: bool = False
    origin: int = NOTHING
    scaling: Scaling | None = None

    def summed(self, over: Axes, of: Of | None = None) -> Value:
        """The sum of the value over some axes."""
        new = Sum(over, Fraction(1), of or ("two values" if self.paired else "one value"))
        return Value(sums=multiplied(made_of(self.sums), (new,)))


def computed(name: str, values: Sequence[Value]) -> Value:
    """A number that is computed from numbers, at both widths."""
    found: list[float | None] = [None, None]
    others = [v.other for v in values]
    given = [v.number for v in values]
    known = [o if o is not None else n for o, n in zip(others, given, strict=True)]
    for i, numbers in enumerate((given, known)):
        if i == 0 or any(o is not None for o in others):
            with np.errstate(all="ignore"):
                found[i] = float(ARITHMETIC[name](*numbers))
    return Value(found[0], found[1])


def close(a: float, b: float, tolerance: float) -> bool:
    """Whether two numbers are one but for rounding."""
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance)


def made_of(sums: tuple[Sum, ...]) -> tuple[Sum, ...]:
    """Without the contractions, whose results are values of their own."""
    return tuple(s for s in sums if s.of != "a contraction")


def powered(sums: tuple[Sum, ...], power: Fraction) -> tuple[Sum, ...]:
    """The sums of a power of a value; that of a contraction is a new value."""
    return tuple(
        s if s.degree is None or s.log else dataclasses.replace(s, degree=s.degree * power)
        for s in made_of(sums)
    )


def multiplied(a: tuple[Sum, ...], b: tuple[Sum, ...]) -> tuple[Sum, ...]:
    """The sums of a product: degrees add up, sum by sum."""
    found: dict[Key, Sum] = {}
    for s in (*a, *b):
        known = found.get(s.key)
        if known is not None:
            one, other = known.degree, s.degree
            both = None if one is None or other is None else one + other
            s = dataclasses.replace(s, degree=both)
        found[s.key] = s
    return tuple(found.values())


def added(values: Sequence[Value]) -> Value:
    """Values that are added, or of which one is taken: degrees that differ are not known."""
    found: dict[Key, Sum] = {}
    for s in (s for v in values for s in v.sums):
        same = found.get(s.key, s).degree == s.degree
        found[s.key] = s if same else dataclasses.replace(s, degree=None)
    for key, s in found.items():
        held = all(any(t.key == key for t in v.sums) for v in values)
        if not held and s.degree and not s.log:  # a shift of a logarithm is a factor
            found[key] = dataclasses.replace(s, degree=None)
    return Value(sums=tuple(found.values()), paired=any(v.paired for v in values))


def constant(value: ArrayLike) -> Value:
    """A literal or closed-over value."""
    if isinstance(value, Tracer) or np.ndim(value):
        return Value()
    dtype = jnp.result_type(value)
    if jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer):
        return Value(float(np.real(value)))
    return Value()
