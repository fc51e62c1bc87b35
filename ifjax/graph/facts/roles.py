"""What a parameter does to the neurons along its axes: produce, consume, shift, scale, describe."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jax.extend.core import JaxprEqn
from jax.typing import ArrayLike

from ifjax.jaxprs import compat
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.traits import contraction_of, traits_of
from ifjax.jaxprs.walk import Axes, Frame
from ifjax.structure.structure import Role


@dataclasses.dataclass
class Roles:
    """Roles of the axes of every leaf, and where in the function each leaf is last applied.

    Attributes:
      of: role by (leaf number, axis).
      position: order of the last contraction that produces with a leaf's axis, by (leaf, axis).
      live: numbers of the leaves that reach an output.
      both: (leaf, axis) that produce in one place and consume in another (tied weights).
    """

    of: dict[tuple[int, int], Role]
    position: dict[tuple[int, int], int]
    live: frozenset[int]
    both: frozenset[tuple[int, int]] = frozenset()


Places = frozenset[tuple[int, int]]  # (leaf, axis)


@dataclasses.dataclass(frozen=True)
class _Value:
    """What a value comes from.

    Attributes:
      leaves: the leaves it depends on, a bit for each: sets would grow with the square of depth.
      data: whether it depends on the function's inputs too.
      along: per axis, the leaf axes that lie along it; of parameters alone.
    """

    leaves: int
    data: bool
    along: tuple[Places, ...] = ()


def find_roles(
    frame: Frame, store: AxisStore, leaves: Sequence[Axes], inputs: Sequence[Axes]
) -> Roles:
    """Reads the role of every parameter axis off the equations that use it.

    Args:
      frame: the frame of the whole function.
      store: its axis store.
      leaves: axes of the parameter leaves, which are the function's first inputs.
      inputs: axes of the other inputs.

    Returns:
      The roles; a contraction outranks an elementwise use of the same axis.
    """
    uses = _Uses(store)
    values = [
        _Value(1 << i, False, tuple(frozenset({(i, j)}) for j in range(len(axes))))
        for i, axes in enumerate(leaves)
    ]
    values += [_Value(0, True) for _ in inputs]
    outputs = interpret(frame, store, values, uses.transfer, _constant, control=uses.control)
    reached = _either(outputs)
    live = frozenset(i for i in range(len(leaves)) if reached >> i & 1)
    rank: list[Role] = ["producer", "consumer", "multiplicative", "additive"]
    of: dict[tuple[int, int], Role] = {
        key: min(roles, key=rank.index) for key, roles in uses.found.items()
    }
    both = frozenset(
        key for key, roles in uses.found.items() if {"producer", "consumer"} <= {*roles}
    )
    return Roles(of, uses.position, live, both)


@dataclasses.dataclass
class _Uses:
    """Gathers what every leaf axis is used for.

    Attributes:
      store: the axis store.
      found: roles by (leaf, axis), one per use.
      position: the last contraction that produces with an axis.
      step: how many contractions have been seen.
      control: how values pass through loops and branches.
    """

    store: AxisStore
    found: dict[tuple[int, int], list[Role]] = dataclasses.field(
        default_factory=lambda: defaultdict(list)
    )
    position: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    step: int = 0
    control: Control = dataclasses.field(
        default_factory=lambda: Control(_join, _one_step, _all_steps)
    )

    def mark(self, value: _Value, axes: Sequence[int], role: Role) -> None:
        """Gives a role to the leaf axes that lie along some axes of a value."""
        if self.control.settling:  # what is carried may depend on the data after the first step
            return
        for key in frozenset().union(*(value.along[i] for i in axes)):
            self.found[key].append(role)
            if role == "producer":
                self.position[key] = self.step

    def transfer(
        self, equation: JaxprEqn, ins: list[Axes], outs: list[Axes], values: list[_Value]
    ) -> list[_Value]:
        traits = traits_of(equation)
        data = any(v.data for v in values)
        leaves = _either(values)
        if traits.kind == "contraction":
            self.step += 1
            contracted = contraction_of(equation).contracted
            for k, (value, inside) in enumerate(zip(values, contracted, strict=False)):
                free = [i for i in range(len(value.along)) if i not in inside]
                if not data:  # a product of parameters: what it is used for tells about the rest
                    self.mark(value, inside, "consumer" if k else "producer")
                elif not value.data:
                    self.mark(value, inside, "consumer")
                    self.mark(
                        value, free, "multiplicative" if is_depthwise(equation, k) else "producer"
                    )
        elif traits.kind == "lookup" and data and not values[0].data:
            along = _along(self.store, False, ins[:1], outs[0], values[:1])
            carried = [i for i, p in enumerate(along) if p and not self.store.is_pinned(outs[0][i])]
            if len(carried) > 1:  # kernels chosen by data: what they are used for tells the rest
                return [_Value(leaves, False, along)]
            self.step += 1
            self.mark(_Value(leaves, False, along), carried, "producer")  # rows of a table
        elif data:
            role: Role = "additive" if traits.adds else "multiplicative"
            for value in values:
                if not value.data:
                    self.mark(value, range(len(value.along)), role)
        elif len(values) == 2 and traits.scales:
            main = _carrier(equation)
            held = frozenset().union(*values[main].along)
            factor = values[1 - main]
            kept = tuple(places - held for places in factor.along)
            self.mark(dataclasses.replace(factor, along=kept), range(len(kept)), "multiplicative")
            return [_Value(leaves, data, values[main].along)]
        if data:
            return [_Value(leaves, data) for _ in outs]
        positional = len(values) > 1 and traits.kind != "contraction"
        return [
            _Value(leaves, data, _along(self.store, positional, ins, out, values)) for out in outs
        ]


def _constant(value: ArrayLike) -> _Value:
    return _Value(0, False, (frozenset(),) * np.ndim(value))


def _either(values: Sequence[_Value]) -> int:
    """The leaves that any of some values depends on."""
    return functools.reduce(operator.or_, (v.leaves for v in values), 0)


def _join(values: Sequence[_Value], deciders: Sequence[_Value]) -> _Value:
    """One of several values; leaves that decide which are read by it too."""
    leaves = _either([*values, *deciders])
    if any(v.data for v in values):
        return _Value(leaves, True)
    along = zip(*(v.along for v in values), strict=True)
    return _Value(leaves, False, tuple(frozenset().union(*places) for places in along))


def _one_step(value: _Value) -> _Value:
    return dataclasses.replace(value, along=value.along[1:])


def _all_steps(value: _Value) -> _Value:
    return value if value.data else dataclasses.replace(value, along=(frozenset(), *value.along))


def _along(
    store: AxisStore, positional: bool, ins: list[Axes], out: Axes, values: Sequence[_Value]
) -> tuple[Places, ...]:
    """Leaf axes along every axis of a result of parameters alone.

    By position where operands are combined elementwise, by the axis itself where it has moved, and
    by the classes on it where it was split or merged.
    """
    operands = [(axes, v.along) for axes, v in zip(ins, values, strict=True)]
    pairs = [pair for axes, along in operands for pair in zip(axes, along, strict=True)]
    result = []
    for i, node in enumerate(out):
        found: Places = frozenset()
        if positional:
            root = store.find(node)
            aligned = [(axes[i], along[i]) for axes, along in operands if len(axes) == len(out)]
            found = found.union(*(p for a, p in aligned if store.find(a) == root))
        found = found or frozenset().union(*(p for a, p in pairs if a == node))
        if not found:
            classes = set(store.classes(node))
            found = found.union(*(p for a, p in pairs if classes & set(store.classes(a))))
        result.append(found)
    return tuple(result)


def _carrier(equation: JaxprEqn) -> int:
    """Which factor of an elementwise product of parameters is the weight, which one scales it."""
    ranks = [
        (sum(n > 1 for n in compat.shape_of(v)), len(compat.shape_of(v))) for v in equation.invars
    ]
    return int(ranks[1] > ranks[0])


def is_depthwise(equation: JaxprEqn, operand: int) -> bool:
    """Whether a kernel gives every neuron one output of its own: no axis of it is its alone."""
    shape = compat.shape_of(equation.invars[operand])
    if equation.primitive.name == "conv_general_dilated":
        (width,) = contraction_of(equation).contracted[1]
        return equation.params["feature_group_count"] > 1 and shape[width] == 1
    if traits_of(equation).kind != "contraction":
        return False
    return all(shape[i] == 1 for i in contraction_of(equation).free[operand])
