"""The two directions of a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import AnyJaxpr, Values
from ifjax.jaxprs.walk import Axes, Context, Frame
from ifjax.jaxprs.width_number import Followed


@runtime_checkable
class Derive(Protocol):
    """Evaluates the jaxpr of a derivative rule on small values."""

    def __call__(
        self,
        jaxpr: AnyJaxpr,
        constants: Values,
        inputs: Sequence[Axes],
        outputs: Sequence[Axes],
        args: Values,
    ) -> tuple[Values, list[Axes], Derive]:
        """Walks and evaluates the jaxpr.

        Args:
          jaxpr: open or closed.
          constants: its constants, where it is open.
          inputs: axes of its inputs.
          outputs: what the axes of its first outputs are to be.
          args: small values of its inputs.

        Returns:
          Small values of the outputs, their axes, and what evaluates a jaxpr of those axes.

        Raises:
          ValueError: if the jaxpr couples or pins what the spec cuts.
        """
        ...


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
      derive: evaluates the jaxpr of a derivative rule, see `Derive`.
      kept: positions of an axis node that are left where every class keeps its first neurons.
    """

    inputs: Sequence[Axes]
    outputs: Sequence[Axes]
    note: Any
    size: Callable[[int], int]
    pieces: Callable[[int, Sequence[int]], list[int]]
    call: Callable[[Frame, Values], Values]
    derive: Derive
    kept: Callable[[int], np.ndarray]

    def shape(self, axes: Axes) -> tuple[int, ...]:
        """Small shape of an array with these axes."""
        return tuple(self.size(a) for a in axes)


Flow = Callable[[Context, JaxprEqn, list[Axes]], list[Axes]]
Rebuild = Callable[[Resize, JaxprEqn, Values], Values]


def rebind(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Evaluates the equation with unchanged parameters: nothing in them depends on a width."""
    del resize
    return compat.bind(equation, values)


def rebuild_number(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """A number that follows the widths is what it is at the small ones."""
    if isinstance(resize.note, Followed):
        i, number = resize.note.operand, resize.note.number(resize.size)
        values = list(values)
        values[i] = jnp.full(jnp.shape(values[i]), number, compat.dtype_of(equation.invars[i]))
    return compat.bind(equation, values)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How axes flow through a primitive, and how it is evaluated at another width."""

    flow: Flow
    rebuild: Rebuild = rebind
