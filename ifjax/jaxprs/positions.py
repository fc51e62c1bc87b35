"""Integers that are positions along an axis: what `argmax` and `top_k` find, what `iota` counts.

Where positions only choose among the entries of that axis again, to route tokens to experts or to
look codes up, nothing depends on the order of these entries: the axis may be permuted and cut.
Read in any other way, positions pin it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jax.extend.core import Literal as Constant

from ifjax.jaxprs import compat


@dataclasses.dataclass(frozen=True)
class Positions:
    """What an array of integers holds.

    Attributes:
      node: the axis.
      reason: why the axis is pinned where the positions are read otherwise.
      state: ``"found"`` are positions on it, ``"counted"`` all of them in order; ``"wrapped"`` has
        its size added, and ``"below"`` says where one is below zero, which none is.
    """

    node: int
    reason: object
    state: Literal["found", "counted", "wrapped", "below"] = "found"


MOVED = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "copy", "stop_gradient"}
MOVED |= {"convert_element_type", "gather", "dynamic_slice", "expand_dims", "pvary"}


def after(
    equation: JaxprEqn,
    held: Mapping[int, Positions],
    size: Callable[[int], int],
    unify: Callable[[int, int], None],
) -> dict[int, Positions] | None:
    """What positions become in an equation.

    Args:
      equation: the equation; no call.
      held: the positions among its operands.
      size: of an axis.
      unify: says that two axes are one.

    Returns:
      The positions among its results; None where they are read otherwise than to choose.
    """
    name, first = equation.primitive.name, held.get(0)
    states = {k: one.state for k, one in held.items()}
    if name in MOVED and [*held] == [0]:
        whole = jnp.issubdtype(compat.dtype_of(equation.outvars[0]), jnp.integer)
        assert first is not None
        if first.state == "below":
            return {0: first} if name != "convert_element_type" else None
        return {0: first} if whole else None
    if name == "gather" and [*states.items()] == [(1, "found")]:
        return {} if looked_up(equation) == size(held[1].node) else None
    if name in ("eq", "ne") and sorted(states.values()) in (["found"] * 2, ["counted", "found"]):
        if size(held[0].node) != size(held[1].node):  # into more classes than there are
            return None
        unify(held[0].node, held[1].node)
        return {}
    if name == "lt" and states == {0: "found"} and _constant(equation, 1) == 0:
        return {0: dataclasses.replace(held[0], state="below")}
    if name == "add" and states == {0: "found"} and _constant(equation, 1) == size(held[0].node):
        return {0: dataclasses.replace(held[0], state="wrapped")}
    if name == "select_n" and states == {0: "below", 1: "found", 2: "wrapped"}:
        return {0: held[1]} if len({one.node for one in held.values()}) == 1 else None
    return None


def looked_up(equation: JaxprEqn) -> int | None:
    """The size of the one axis that a gather takes single positions of; None for other gathers."""
    numbers = equation.params["dimension_numbers"]
    dims = [int(d) for d in numbers.start_index_map]
    if len(dims) != 1 or equation.params["slice_sizes"][dims[0]] != 1:
        return None
    return compat.shape_of(equation.invars[0])[dims[0]]


def _constant(equation: JaxprEqn, operand: int) -> int | None:
    """The number that an operand is."""
    atom = equation.invars[operand]
    return int(atom.val) if isinstance(atom, Constant) and np.ndim(atom.val) == 0 else None
