"""Elementwise primitives: all operands of full rank share all their axes."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from ifjax.jaxprs import compat
from ifjax.jaxprs.rules.rule import Resize, Rule
from ifjax.jaxprs.walk import Axes, Context, Count

ROUNDING = "ceil floor round sign nextafter rem reduce_precision convert_element_type"
ARITHMETIC = "add add_any sub mul div neg abs max min clamp pow integer_pow square sqrt rsqrt cbrt"
LATER = "one_minus_square polynomial log2"  # jax 0.12 and newer
EXPONENTIAL = "exp exp2 expm1 log log1p logistic"
TRIGONOMETRIC = "sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh"
SPECIAL = "erf erfc erf_inv lgamma digamma polygamma igamma igammac igamma_grad_a zeta"
MORE = "bessel_i0e bessel_i1e regularized_incomplete_beta mulhi"
LOGICAL = (
    "and or xor not eq ne lt le gt ge eq_to le_to lt_to is_finite select_n population_count clz"
)
SHIFTS = "shift_left shift_right_arithmetic shift_right_logical"
COMPLEX = "complex real imag conj"
IDENTITY = "copy stop_gradient"
NAMES = " ".join(
    (
        *(ROUNDING, ARITHMETIC, EXPONENTIAL, TRIGONOMETRIC, SPECIAL, MORE, LOGICAL, SHIFTS),
        *(COMPLEX, IDENTITY, LATER),
    )
).split()


def share(context: Context, equation: Any, operands: list[Axes]) -> list[Axes]:
    """Unifies axis by axis; scalars and axes of size 1 broadcast and say nothing."""
    shape = equation.outvars[0].aval.shape
    result = []
    for i, n in enumerate(shape):
        nodes = [a[i] for a in operands if len(a) == len(shape)]
        nodes = [a for a in nodes if context.store.size(a) == n]
        for other in nodes[1:]:
            context.unify(nodes[0], other)
        result.append(nodes[0] if nodes else context.store.fresh(n))
    return [tuple(result) for _ in equation.outvars]


def each(context: Context, equation: Any, operands: list[Axes]) -> list[Axes]:
    """Every result is its operand."""
    del context, equation
    return list(operands)


def rebuild_constraint(resize: Resize, equation: Any, values: list[Any]) -> list[Any]:
    """A sharding constraint is left out where the small width does not divide by the mesh."""
    del resize
    try:
        equation.params["sharding"].shard_shape(values[0].shape)
    except ValueError:
        return values
    return compat.bind(equation, values)


def rebuild_count(resize: Resize, equation: Any, values: list[Any]) -> list[Any]:
    """The number of terms of a sum becomes that of the small sum."""
    if isinstance(resize.note, Count):
        i, size = resize.note.operand, math.prod(map(resize.size, resize.note.over))
        number = size if equation.primitive.name == "div" else 1 / size
        values = list(values)
        values[i] = jnp.full(jnp.shape(values[i]), number, equation.invars[i].aval.dtype)
    return compat.bind(equation, values)


RULES = (
    dict.fromkeys(NAMES, Rule(share))
    | dict.fromkeys(("mul", "div"), Rule(share, rebuild_count))
    | {
        "threefry2x32": Rule(share),
        "optimization_barrier": Rule(each),
        "device_put": Rule(each),
        "sharding_constraint": Rule(each, rebuild_constraint),
    }
)
