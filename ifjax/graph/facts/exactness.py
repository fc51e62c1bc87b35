"""Where cutting neurons is the same as setting them to zero, and where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.walk import Axes, Count, Frame

Roots = frozenset[int]

LINEAR = {"dot_general", "conv_general_dilated"}
# f(0) = 0 in every operand together
ZERO_AT_ZERO = {
    *("add", "add_any", "sub", "max", "min", "neg", "sign", "floor", "ceil", "round"),
    *("sqrt", "cbrt", "sin", "tan", "tanh", "sinh", "asin", "atan"),
    *("asinh", "atanh", "erf", "erf_inv", "expm1", "log1p", "real", "imag", "conj"),
}
# f(0, y) = 0, f(x, y) the same with the first operand moved
CARRYING = {
    *("convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "reshape"),
    *("transpose", "squeeze", "expand_dims", "slice", "split", "unstack", "rev", "tile", "cumsum"),
    *("dynamic_slice", "gather", "bitcast_convert_type", "optimization_barrier"),
    *("reduce_max", "reduce_min", "reduce_sum", "reduce_prod", "div", "name"),
    *("sharding_constraint", "device_put"),
}
# each result is its operand
ONE_BY_ONE = {"optimization_barrier", "device_put"}
# the operands that results are made of, indices left out
WRITING = {"scatter": (0, 2), "scatter-add": (0, 2), "scatter-sub": (0, 2)}
WRITING |= {"dynamic_update_slice": (0, 1)}
# what norms do to the terms they sum
POWERS = {"square", "integer_pow", "abs"}


class _Value:
    """Classes of neurons along whose axes a value is zero where they are set to zero.

    Attributes:
      zero: these classes; None for a constant that is zero everywhere.
      plain: those of them over which a sum of the value is no norm: it was not squared, nor
        multiplied by itself.
    """

    __slots__ = ("plain", "zero")

    def __init__(self, zero: Roots | None, plain: Roots | None = None) -> None:
        self.zero = zero
        self.plain = (zero or frozenset()) if plain is None else plain

    def __eq__(self, other: object) -> bool:
        """Loops are followed until what they carry stays equal."""
        return isinstance(other, _Value) and (self.zero, self.plain) == (other.zero, other.plain)

    __hash__ = None  # type: ignore[assignment]


def inexact_classes(
    frame: Frame, store: AxisStore, leaves: Sequence[Axes], inputs: int, counts: Sequence[Count]
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
      counts: the literals that follow the widths, of `follow_counts`.

    Returns:
      Representatives of these classes.
    """
    noticed = {root for c in counts for node in c.over for root in store.classes(node)}

    def roots(nodes: Sequence[int]) -> Roots:
        return frozenset(root for node in nodes for root in store.classes(node))

    def along(out: Axes, sources: Sequence[Sequence[tuple[Axes, _Value]]]) -> Roots:
        """Classes that are zero along an array, given for every axis where it may come from."""
        bad: set[int] = set()
        for node, origins in zip(out, sources, strict=True):
            for root in store.classes(node):
                known = (v.zero is None or root in v.zero for axes, v in origins)
                if not any(known):
                    bad.add(root)
        return roots(out) - bad

    def transfer(equation: Any, ins: list[Axes], outs: list[Axes], values: list[_Value]) -> Any:
        name = equation.primitive.name
        if name in LINEAR:
            return [_contraction(equation, ins, outs, values)]
        if name.startswith("reduce_") and "axes" in equation.params:
            over = roots([ins[0][i] for i in equation.params["axes"]])
            kept = values[0].plain if name == "reduce_sum" else frozenset()
            noticed.update(over - kept)
        if name == "mul":
            a, b = values
            if a.zero is None or b.zero is None:
                return [_Value(None)]
            same = equation.invars[0] is equation.invars[1]
            return [_Value(a.zero | b.zero, frozenset() if same else a.plain | b.plain)]
        if name == "broadcast_in_dim":
            return [_broadcast(equation, outs[0], values[0])]
        if name in POWERS and equation.params.get("y", 1) > 0:
            return [_Value(values[0].zero, frozenset())]
        if name in ZERO_AT_ZERO:
            return [_all(values)]
        if name == "select_n":
            return [_all(values[1:])]
        if name in WRITING:
            return [_all([values[i] for i in WRITING[name]])]
        if name == "concatenate":
            return [_joined(ins, outs[0], values)]
        if name == "pad":
            return [_joined([ins[0], outs[0]], outs[0], values)]
        if name in CARRYING:
            sources = values if name in ONE_BY_ONE else values[:1] * len(outs)
            return [_moved(roots(out), v) for out, v in zip(outs, sources, strict=True)]
        return [_Value(frozenset()) for _ in outs]

    def _moved(held: Roots, value: _Value) -> _Value:
        if value.zero is None:
            return value
        return _Value(value.zero & held, value.plain & held)

    def _broadcast(equation: Any, out: Axes, value: _Value) -> _Value:
        if value.zero is None:
            return value
        kept = equation.params["broadcast_dimensions"]
        new = roots([a for i, a in enumerate(out) if i not in kept])
        return _Value(value.zero - new, value.plain - new)

    def _joined(ins: Sequence[Axes], out: Axes, values: Sequence[_Value]) -> _Value:
        """A class is zero where it is so in all arrays that hold it."""
        if all(v.zero is None for v in values):
            return _Value(None)
        zero = roots(out)
        for axes, value in zip(ins, values, strict=True):
            if value.zero is not None:
                zero -= roots(axes) - value.zero
        return _Value(zero)

    def _contraction(
        equation: Any, ins: list[Axes], outs: list[Axes], values: list[_Value]
    ) -> _Value:
        lhs, rhs = ins
        numbers = equation.params["dimension_numbers"]
        if equation.primitive.name == "dot_general":
            (inner, _), (batch, _) = numbers
            contracted = [lhs[i] for i in inner]
            rhs_free = len(rhs) - len(inner) - len(batch)
            both = [(lhs, values[0]), (rhs, values[1])]
            sources: list[Any] = [both] * len(batch)
            sources += [[both[0]]] * (len(lhs) - len(inner) - len(batch))
            sources += [[both[1]]] * rhs_free
        else:
            contracted = [lhs[numbers.lhs_spec[1]], rhs[numbers.rhs_spec[1]]]
            grouped = equation.params["feature_group_count"] > 1
            features = [(lhs, values[0]), (rhs, values[1])] if grouped else [(rhs, values[1])]
            sources = [[(lhs, values[0])] for _ in outs[0]]
            sources[numbers.out_spec[1]] = features
        a, b = (v.zero for v in values)
        if a is None or b is None:
            return _Value(None)
        same = equation.invars[0] is equation.invars[1]
        noticed.update(roots(contracted) - (frozenset() if same else a | b))
        return _Value(along(outs[0], sources))

    values = [_Value(roots(axes)) for axes in leaves]
    values += [_Value(frozenset()) for _ in range(inputs)]
    control = Control(lambda values, _: _all(values))
    interpret(frame, store, values, transfer, _constant, control=control)
    return frozenset(noticed)


def _all(values: Sequence[_Value]) -> _Value:
    """Zero where all operands are; a norm's terms where one of them is."""
    moving = [v for v in values if v.zero is not None]
    if not moving:
        return _Value(None)
    zero = frozenset.intersection(*(v.zero for v in moving if v.zero is not None))
    return _Value(zero, frozenset.intersection(*(v.plain for v in moving)))


def _constant(value: Any) -> _Value:
    if isinstance(value, Tracer) or not jnp.issubdtype(jnp.result_type(value), jnp.number):
        return _Value(frozenset())
    return _Value(None if not np.any(np.asarray(value)) else frozenset())
