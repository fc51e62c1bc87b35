"""Literals that stand for a width: the count by which a sum over neurons becomes their mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ifjax.jaxprs import compat
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.traits import traits_of
from ifjax.jaxprs.walk import Axes, Count, Frame, Reason, frames_of

ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
}


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of a value: the number that it is everywhere, or the axes it sums over."""

    number: float | None = None
    over: Axes = ()


def follow_counts(frame: Frame, store: AxisStore, inputs: int) -> list[Count]:
    """Notes where a sum is divided by the number of its terms, or multiplied by its reciprocal.

    Such a literal follows the widths when the function is shrunk (the 64 of a mean over 64
    neurons). It has to be applied to that very sum; other numbers that happen to equal a width, and
    attention's 1 / sqrt(head_dim), stay as they are.

    Args:
      frame: the frame of the function; notes are added to it and to the frames of its calls.
      store: its axis store.
      inputs: how many inputs the function has.

    Returns:
      What was noted.
    """
    found: list[Count] = []
    here = (frame, 0)

    def visit(frame: Frame, i: int) -> None:
        nonlocal here
        here = (frame, i)

    def transfer(equation: Any, ins: list[Axes], outs: list[Axes], values: list[_Value]) -> Any:
        name = equation.primitive.name
        if name == "reduce_sum":
            over = tuple(ins[0][i] for i in equation.params["axes"])
            return [_Value(over=(*values[0].over, *over))]
        if name in ("div", "mul"):
            count = _count(equation, values, store)
            if count is not None:
                at, i = here
                at.notes[i] = count
                found.append(count)
                return [_Value()]
        if traits_of(equation).kind == "same":
            return values
        if traits_of(equation).kind == "layout":
            return [values[0]]
        numbers = [v.number for v in values]
        if name in ARITHMETIC and None not in numbers:
            with np.errstate(all="ignore"):
                return [_Value(float(ARITHMETIC[name](*numbers)))]
        return [_Value(over=values[0].over if name == "neg" else ()) for _ in outs]

    control = Control(
        join=lambda values, _: values[0] if len({*values}) == 1 else _Value(),
        settle=lambda carries, _: [_Value() for _ in carries],
    )
    interpret(frame, store, [_Value()] * inputs, transfer, _constant, visit, control)
    return found


def fixed_numbers(frame: Frame, sizes: Collection[int]) -> list[tuple[int, Reason]]:
    """Literals that equal a width or its reciprocal and do not follow it, with where they stand.

    Args:
      frame: the frame of the function, with the notes of `follow_counts`.
      sizes: the widths to look for; those below 3 are too common to tell anything.

    Returns:
      Width and place, once per source line.
    """
    found: dict[tuple[int, str], Reason] = {}
    wanted = {float(n): n for n in sizes if n > 2} | {1 / n: n for n in sizes if n > 2}
    frames = [frame]
    while frames:
        frame = frames.pop()
        for i, equation in enumerate(compat.unpack(frame.jaxpr)[0].eqns):
            note = frame.notes.get(i)
            frames += frames_of(note)
            if equation.primitive.name not in ("mul", "div") or isinstance(note, Count):
                continue
            for atom in equation.invars:
                number = _constant(atom.val).number if isinstance(atom, compat.Literal) else None
                if number in wanted:
                    where = Reason(f"{equation.primitive.name} by {number:g}", (equation,))
                    found.setdefault((wanted[number], str(where)), where)
    return [(n, where) for (n, _), where in found.items()]


def _count(equation: Any, values: Sequence[_Value], store: AxisStore) -> Count | None:
    """Whether one operand counts the terms of the other, which is a sum over an unpinned axis."""
    name, dtype = equation.primitive.name, equation.outvars[0].aval.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    for i, value in enumerate(values):
        over = values[1 - i].over
        if value.number is None or all(store.is_pinned(a) for a in over):
            continue
        if name == "div" and i == 0:
            continue
        size = math.prod(store.size(a) for a in over)
        wanted = float(size) if name == "div" else 1 / size
        if math.isclose(value.number, wanted, rel_tol=2 * float(jnp.finfo(dtype).eps)):
            return Count(i, over)
    return None


def _constant(value: Any) -> _Value:
    if isinstance(value, Tracer) or np.ndim(value):
        return _Value()
    dtype = jnp.result_type(value)
    if jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer):
        return _Value(float(value))
    return _Value()
