"""The two directions of a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ifjax.graph import compat
from ifjax.graph.flow import Axes, Context


@dataclasses.dataclass(frozen=True)
class Resize:
    """What rebuilding an equation may ask for.

    Attributes:
      inputs: axes of the operands.
      outputs: axes of the results.
      note: what the rule noted on the way forward.
      size: small size of an axis node.
      pieces: small sizes of the consecutive parts ``[0, a), [a, b), ...`` of an axis node.
      call: evaluates the frame of a call on small values.
      derive: evaluates another jaxpr on small values, given the axes of its inputs.
    """

    inputs: Sequence[Axes]
    outputs: Sequence[Axes]
    note: Any
    size: Callable[[int], int]
    pieces: Callable[[int, Sequence[int]], list[int]]
    call: Callable[[Any, Sequence[Any]], list[Any]]
    derive: Callable[[Any, Sequence[Any], Sequence[Axes], Sequence[Any]], list[Any]]

    def shape(self, axes: Axes) -> tuple[int, ...]:
        """Small shape of an array with these axes."""
        return tuple(self.size(a) for a in axes)


Flow = Callable[[Context, Any, list[Axes]], list[Axes]]
Rebuild = Callable[[Resize, Any, list[Any]], list[Any]]


def rebind(resize: Resize, equation: Any, values: list[Any]) -> list[Any]:
    """Evaluates the equation with unchanged parameters: nothing in them depends on a width."""
    del resize
    return compat.bind(equation, values)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How axes flow through a primitive, and how it is evaluated at another width."""

    flow: Flow
    rebuild: Rebuild = rebind
