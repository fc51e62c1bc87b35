"""Elementwise primitives: all operands of full rank share all their axes."""

from __future__ import annotations

from typing import Any

from ifjax.graph.flow import Axes, Context
from ifjax.graph.rules.rule import Rule

NAMES = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
clz complex conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2
expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt max min
mul ne neg nextafter not or polygamma population_count pow real reduce_precision rem
round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt
square stop_gradient sub tan tanh xor zeta optimization_barrier
""".split()


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
