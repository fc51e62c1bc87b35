"""What becomes of values when the channels of a group are turned, said of one value at a time."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from ifjax.parallel.hosts import on_host
from ifjax.reconstruction.walk import Walk
from ifjax.structure import axis_arrays

Kind = Literal[
    "turned",  # turns with the channels
    "still",  # stays, and has a number of its own for every channel
    "even",  # stays, and is the same for all channels
    "zero",
    "squares",  # products of two turned values, entry by entry: their sum stays
    "scaled",  # a turned value times one that stands still
]
Factors = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Bearing:
    """What becomes of a value that holds the channels.

    Attributes:
      kind: the one word for it.
      factors: numbers of the parameters that a scaled value's channels are multiplied by, or
        divided by where the power is -1; of one that stands still, what it is made of, if that is
        known, but for numbers that are the same for all channels.
    """

    kind: Kind
    factors: Factors = ()

    @property
    def stays(self) -> bool:
        """Whether turning changes nothing."""
        return self.kind in ("still", "even", "zero")


TURNED, STILL, EVEN, ZERO, SQUARES = map(Bearing, ("turned", "still", "even", "zero", "squares"))


@dataclasses.dataclass(frozen=True)
class Reader:
    """A contraction with a weight that reads scaled channels.

    Attributes:
      place: of the step.
      side: which operand is the activation.
      factors: what its channels are scaled by.
    """

    place: int
    side: int
    factors: Factors


def per_channel(walk: Walk, number: int, name: str, dense: bool = True) -> np.ndarray | None:
    """One number per channel of a value of parameters; None where a channel has several.

    Args:
      walk: of the function.
      number: of the value.
      name: of the group.
      dense: whether of the full leaves, or of those that were written.

    Returns:
      A vector as long as there are channels.
    """
    x = np.asarray(on_host(walk.parameter(number, dense)), np.float64)
    rows = [
        row
        for axis, e in enumerate(walk.axes(number))
        for row in axis_arrays.rows(x, axis, e, name)
    ]
    if not rows or any((row != rows[0][:, :1]).any() for row in rows):
        return None
    return rows[0][:, 0]
