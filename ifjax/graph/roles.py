"""What a parameter does to the neurons along its axes: produce, consume, shift, scale, describe."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from ifjax.graph.axes import AxisStore
from ifjax.graph.flow import Axes, Frame, interpret

Role = Literal["producer", "consumer", "additive", "multiplicative", "mean", "variance"]

ADDITIVE = {"add", "add_any", "sub"}
LINEAR = {"dot_general", "conv_general_dilated"}


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


@dataclasses.dataclass(frozen=True)
class _Value:
    """The leaves a value depends on, and whether on parameters alone."""

    leaves: frozenset[int]
    data: bool


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
    found: dict[tuple[int, int], list[Role]] = defaultdict(list)
    position: dict[tuple[int, int], int] = {}
    step = 0

    def mark(leaf: int, nodes: Sequence[int], role: Role) -> None:
        """Marks the axes of a leaf that are ``nodes``, or else hold classes of them."""
        exact = [i for i, axis in enumerate(leaves[leaf]) if axis in nodes]
        if not exact:
            classes = {c for n in nodes for c in store.classes(n)}
            axes = enumerate(leaves[leaf])
            exact = [i for i, axis in axes if classes & set(store.classes(axis))]
        for i in exact:
            found[leaf, i].append(role)
            if role == "producer":
                position[leaf, i] = step

    def transfer(equation: Any, ins: list[Axes], outs: list[Axes], values: list[Any]) -> list[Any]:
        nonlocal step
        name = equation.primitive.name
        data = any(v.data for v in values)
        result = _Value(frozenset().union(*(v.leaves for v in values)), data)
        if name in LINEAR:
            step += 1
            contracted = _contracted(equation, ins)
            depthwise = equation.params.get("feature_group_count", 1) > 1 and (
                equation.invars[1].aval.shape[equation.params["dimension_numbers"].rhs_spec[1]] == 1
            )
            for value, axes, inside in zip(values, ins, contracted, strict=True):
                if not value.data:
                    produced = [a for a in axes if a not in inside]
                    for leaf in value.leaves:
                        mark(leaf, inside, "consumer")
                        mark(leaf, produced, "multiplicative" if depthwise else "producer")
        elif data:
            role: Role = "additive" if name in ADDITIVE else "multiplicative"
            for value in values:
                if not value.data:
                    for leaf in value.leaves:
                        for axis in range(len(leaves[leaf])):
                            found[leaf, axis].append(role)
        return [result for _ in outs]

    values = [_Value(frozenset({i}), False) for i in range(len(leaves))]
    values += [_Value(frozenset(), True) for _ in inputs]
    outputs = interpret(frame, store, values, transfer, lambda _: _Value(frozenset(), False))
    live = frozenset().union(*(v.leaves for v in outputs))
    rank: list[Role] = ["producer", "consumer", "multiplicative", "additive"]
    of: dict[tuple[int, int], Role] = {
        key: min(roles, key=rank.index) for key, roles in found.items()
    }
    both = frozenset(key for key, roles in found.items() if {"producer", "consumer"} <= {*roles})
    return Roles(of, position, live, both)


def _contracted(equation: Any, operands: list[Axes]) -> list[list[int]]:
    """The contracted axes of either operand; window axes of a kernel count as neither."""
    if equation.primitive.name == "dot_general":
        contract, _ = equation.params["dimension_numbers"]
        return [[axes[i] for i in c] for axes, c in zip(operands, contract, strict=True)]
    numbers = equation.params["dimension_numbers"]
    return [[operands[0][numbers.lhs_spec[1]]], [operands[1][numbers.rhs_spec[1]]]]
