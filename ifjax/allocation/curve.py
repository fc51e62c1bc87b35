"""What a tie's width does to the outputs, between the widths that were measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Curve:
    """The effect of a tie, on straight lines between what was measured.

    Attributes:
      rungs: of the tie's ladder, ascending.
      effects: at each of them.

    Example:
      >>> Curve((0, 2, 4), (1.0, 0.5, 0.0)).at(1)
      0.75
    """

    rungs: tuple[int, ...]
    effects: tuple[float, ...]

    def at(self, rung: int) -> float:
        """The effect at a rung."""
        return float(np.interp(rung, self.rungs, self.effects))


def falling(rungs: Sequence[int], effects: Sequence[float]) -> Curve:
    """The curve on which more neurons never have more effect.

    Args:
      rungs: ascending.
      effects: as measured.

    Returns:
      The curve.

    Example:
      >>> falling((0, 1, 2), (0.5, 0.6, 0.0)).effects
      (0.6, 0.6, 0.0)
    """
    rising = np.maximum.accumulate(np.maximum(effects, 0)[::-1])[::-1]
    return Curve(tuple(rungs), tuple(map(float, rising)))
