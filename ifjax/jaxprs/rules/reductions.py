"""Reductions: the reduced axes go, the others pass on."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from ifjax.jaxprs.rules.rule import Rule
from ifjax.jaxprs.traits import TRAITS
from ifjax.jaxprs.walk import Axes, Context


def reduce(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Reduced axes go, for the order along them does not matter; the others pass on."""
    del context
    over = equation.params["axes"]
    kept = tuple(a for i, a in enumerate(operands[0]) if i not in over)
    return [kept for _ in equation.outvars]


RULES = {name: Rule(reduce) for name, traits in TRAITS.items() if traits.kind == "reduction"}
