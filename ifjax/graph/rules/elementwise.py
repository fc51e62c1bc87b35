"""Elementwise primitives: all operands of full rank share all their axes."""

from __future__ import annotations

from typing import Any

from ifjax.graph.flow import Axes, Context
from ifjax.graph.rules.rule import Rule

ROUNDING = "ceil floor round sign nextafter rem reduce_precision convert_element_type"
ARITHMETIC = "add add_any sub mul div neg abs max min clamp pow integer_pow square sqrt rsqrt cbrt"
LATER = "one_minus_square polynomial log2"  # jax 0.12 and newer
EXPONENTIAL = "exp exp2 expm1 log log1p logistic"
TRIGONOMETRIC = "sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh"
SPECIAL = "erf erfc erf_inv lgamma digamma polygamma igamma igammac igamma_grad_a zeta"
MORE = "bessel_i0e bessel_i1e regularized_incomplete_beta random_gamma_grad mulhi"
LOGICAL = (
    "and or xor not eq ne lt le gt ge eq_to le_to lt_to is_finite select_n population_count clz"
)
SHIFTS = "shift_left shift_right_arithmetic shift_right_logical"
COMPLEX = "complex real imag conj"
IDENTITY = "copy copy_p stop_gradient optimization_barrier"
NAMES = " ".join(
    (
        *(ROUNDING, ARITHMETIC, EXPONENTIAL, TRIGONOMETRIC, SPECIAL, MORE, LOGICAL, SHIFTS),
        *(COMPLEX, IDENTITY, LATER),
    )
).split()


def share(context: Context, equation: Any, operands: list[Axes]) -> list[Axes]:
    """Unifies axis by axis; scalars and axes of size 1 broadcast and say nothing."""
    if equation.primitive.multiple_results:  # optimization_barrier: each result is its operand
        return list(operands)
    shape = equation.outvars[0].aval.shape
    result = []
    for i, n in enumerate(shape):
        nodes = [a[i] for a in operands if len(a) == len(shape)]
        nodes = [a for a in nodes if context.store.size(a) == n]
        for other in nodes[1:]:
            context.unify(nodes[0], other)
        result.append(nodes[0] if nodes else context.store.fresh(n))
    return [tuple(result)]


RULES = dict.fromkeys(NAMES, Rule(share))
