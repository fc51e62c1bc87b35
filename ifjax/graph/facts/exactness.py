"""Where cutting neurons is the same as setting them to zero, and where it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import JaxprEqn
from jax.typing import ArrayLike

from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.traits import contraction_of, traits_of
from ifjax.jaxprs.walk import Axes, Frame
from ifjax.jaxprs.width_number import Followed

Roots = frozenset[int]


class _Value(NamedTuple):
    """Classes of neurons along whose axes a value is zero where they are set to zero.

    Attributes:
      zero: these classes; None for a constant that is zero everywhere.
      plain: those of them over which a sum of the value is no norm: it was not squared, nor
        multiplied by itself.
    """

    zero: Roots | None
    plain: Roots = frozenset()


def inexact_classes(
    frame: Frame,
    store: AxisStore,
    leaves: Sequence[Axes],
    inputs: int,
    followed: Sequence[Followed],
) -> Roots:
    """Classes whose neurons cannot be cut by setting them to zero: a reduction sees the zeros.

    Set a neuron to zero in every parameter that holds it. Where it only meets contractions with
    values that are zero with it, the function is that of the cut network. A norm or a softmax that
    runs over the axis, a weight that is normalised over it, and a mean, notice how many there are.

    Args:
      frame: the frame of the function.
      store: its axis store.
      leaves: axes of the parameter leaves, which are its first inputs.
      inputs: how many further inputs it has.
      followed: the numbers that follow the widths, of `numbers.find_numbers`.

    Returns:
      Representatives of these classes.
    """
    zeros = _Zeros(store, {*store.classes_of(node for f in followed for node in f.over)})
    held = map(store.classes_of, leaves)
    values = [_Value(roots, roots) for roots in held]
    values += [_Value(frozenset()) for _ in range(inputs)]
    control = Control(lambda values, _: _all(values))
    interpret(frame, store, values, zeros.transfer, _constant, control=control)
    return frozenset(zeros.noticed)


@dataclasses.dataclass
class _Zeros:
    """Follows which values are zero where the neurons of a class are.

    Attributes:
      store: the axis store.
      noticed: classes whose zeros some reduction sees.
    """

    store: AxisStore
    noticed: set[int]

    def along(self, out: Axes, sources: Sequence[Sequence[tuple[Axes, _Value]]]) -> Roots:
        """Classes that are zero along an array, given for every axis where it may come from."""
        bad: set[int] = set()
        for node, origins in zip(out, sources, strict=True):
            for root in self.store.classes(node):
                known = (v.zero is None or root in v.zero for axes, v in origins)
                if not any(known):
                    bad.add(root)
        return self.store.classes_of(out) - bad

    def transfer(
        self, equation: JaxprEqn, ins: list[Axes], outs: list[Axes], values: list[_Value]
    ) -> list[_Value]:
        name, traits = equation.primitive.name, traits_of(equation)
        if traits.kind == "contraction":
            return [self._contraction(equation, ins, outs, values)]
        if traits.kind == "search" or name == "top_k":
            over = equation.params.get("axes", (equation.params.get("axis"),))
            self.noticed.update(self.store.classes_of([ins[0][i] for i in over]))
        if traits.kind == "reduction":
            over = self.store.classes_of([ins[0][i] for i in equation.params["axes"]])
            self.noticed.update(over - (values[0].plain if traits.affine else frozenset()))
        if traits.zero == "any":
            a, b = values
            if a.zero is None or b.zero is None:
                return [_Value(None)]
            same = equation.invars[0] is equation.invars[1]
            return [_Value(a.zero | b.zero, frozenset() if same else a.plain | b.plain)]
        if name == "broadcast_in_dim":
            return [self._broadcast(equation, outs[0], values[0])]
        if traits.zero is None or equation.params.get("y", 1) <= 0:  # a negative power
            return [_Value(frozenset()) for _ in outs]
        if traits.power:
            return [_Value(values[0].zero, frozenset())]
        sources = values[traits.sources]
        if traits.kind == "join":
            arrays = [ins[0], outs[0]] if name == "pad" else ins
            return [self._joined(arrays, outs[0], sources)]
        found = sources if traits.zero == "each" else [_all(sources)] * len(outs)
        return [self._moved(out, v) for out, v in zip(outs, found, strict=True)]

    def _moved(self, out: Axes, value: _Value) -> _Value:
        if value.zero is None:
            return value
        held = self.store.classes_of(out)
        return _Value(value.zero & held, value.plain & held)

    def _broadcast(self, equation: JaxprEqn, out: Axes, value: _Value) -> _Value:
        if value.zero is None:
            return value
        kept = equation.params["broadcast_dimensions"]
        new = self.store.classes_of([a for i, a in enumerate(out) if i not in kept])
        return _Value(value.zero - new, value.plain - new)

    def _joined(self, ins: Sequence[Axes], out: Axes, values: Sequence[_Value]) -> _Value:
        """A class is zero where it is so in all arrays that hold it."""
        if all(v.zero is None for v in values):
            return _Value(None)
        zero = self.store.classes_of(out)
        for axes, value in zip(ins, values, strict=True):
            if value.zero is not None:
                zero -= self.store.classes_of(axes) - value.zero
        return _Value(zero, zero)

    def _contraction(
        self, equation: JaxprEqn, ins: list[Axes], outs: list[Axes], values: list[_Value]
    ) -> _Value:
        (lhs, rhs), (a, b) = ins[:2], values[:2]
        axes = contraction_of(equation)
        contracted = [lhs[i] for i in axes.contracted[0]]
        both = [(lhs, a), (rhs, b)]
        if equation.primitive.name == "conv_general_dilated":
            contracted.append(rhs[axes.contracted[1][0]])
            sources = [both[:1]] * len(outs[0])
            grouped = equation.params["feature_group_count"] > 1
            features = equation.params["dimension_numbers"].out_spec[1]
            sources[features] = both if grouped else both[1:]
        else:
            sources = [both[:1]] * len(axes.free[0]) + [both[1:]] * len(axes.free[1])
            sources = [both] * (len(outs[0]) - len(sources)) + sources
        if a.zero is None or b.zero is None:
            return _Value(None)
        same = equation.invars[0] is equation.invars[1]
        seen = self.store.classes_of(contracted)
        self.noticed.update(seen if same else seen - a.zero - b.zero)
        zero = self.along(outs[0], sources)
        return _Value(zero, zero)


def _all(values: Sequence[_Value]) -> _Value:
    """Zero where all operands are; a norm's terms where one of them is."""
    moving = [v for v in values if v.zero is not None]
    if not moving:
        return _Value(None)
    zero = frozenset.intersection(*(v.zero for v in moving if v.zero is not None))
    return _Value(zero, frozenset.intersection(*(v.plain for v in moving)))


def _constant(value: ArrayLike) -> _Value:
    if isinstance(value, Tracer) or not jnp.issubdtype(jnp.result_type(value), jnp.number):
        return _Value(frozenset())
    return _Value(None if not np.any(np.asarray(value)) else frozenset())
