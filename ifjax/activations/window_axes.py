"""Along which axes of its inputs a function slides windows: the axes of images, sounds, volumes."""

from __future__ import annotations

from collections.abc import Mapping

from jax.extend.core import JaxprEqn

from ifjax.jaxprs import compat
from ifjax.jaxprs.program import Program
from ifjax.jaxprs.traits import traits_of

Places = tuple[int | None, ...]  # by axis of a value, the axis of the input that lies along it


def window_axes(program: Program, number: int, ndim: int) -> tuple[int, ...]:
    """The axes of an input along which convolutions and pooling windows move.

    The input is followed through steps that keep its axes, entry by entry or in another order, to
    the windows that read it.

    Args:
      program: made by `ifjax.jaxprs.program.flatten`.
      number: of the input.
      ndim: its number of axes.

    Returns:
      The axes, in order; none where only matrix products read it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from ifjax.jaxprs.program import flatten
      >>> w, x = jnp.ones((4, 3, 3)), jnp.ones((2, 3, 8))
      >>> apply = lambda w, x: jax.lax.conv(2 * x, w, (1,), "SAME")
      >>> window_axes(flatten(jax.make_jaxpr(apply)(w, x), [False, True]), 1, 3)
      (2,)
    """
    along: dict[int, Places] = {number: tuple(range(ndim))}
    found: set[int] = set()
    for step in program.steps:
        known = [along.get(n) for n in step.inputs]
        if not any(known):
            continue
        if known[0] is not None:
            windows = _windows(step.equation)
            found |= {a for i in windows if (a := known[0][i]) is not None}
        places = _onward(step.equation, dict(enumerate(known)))
        if places is not None:
            along[step.outputs[0]] = places
    return tuple(sorted(found))


def _windows(equation: JaxprEqn) -> list[int]:
    """The axes of the first operand along which a window moves."""
    p = equation.params
    if equation.primitive.name == "conv_general_dilated":
        return list(p["dimension_numbers"].lhs_spec[2:])
    if traits_of(equation).kind == "window" and "window_dimensions" in p:
        return [i for i, n in enumerate(p["window_dimensions"]) if n > 1]
    return []


def _onward(equation: JaxprEqn, known: Mapping[int, Places | None]) -> Places | None:
    """Where the axes of the operands are in the result; None where that is not followed."""
    name, p = equation.primitive.name, equation.params
    shape = compat.shape_of(equation.outvars[0])
    if traits_of(equation).kind in ("elementwise", "same"):
        return next(x for x in known.values() if x is not None)
    first = known[0]
    if first is None:
        return None
    match name:
        case "transpose":
            return tuple(first[i] for i in p["permutation"])
        case "squeeze":
            return tuple(x for i, x in enumerate(first) if i not in p["dimensions"])
        case "broadcast_in_dim":
            places: list[int | None] = [None] * len(shape)
            for i, j in enumerate(p["broadcast_dimensions"]):
                places[j] = first[i]
            return tuple(places)
        case "pad" | "slice" | "rev":
            return first
        case "reshape":  # where only axes of size one come or go
            before = compat.shape_of(equation.invars[0])
            long = iter([x for x, n in zip(first, before, strict=True) if n > 1])
            if [n for n in before if n > 1] == [n for n in shape if n > 1]:
                return tuple(next(long) if n > 1 else None for n in shape)
    return None
