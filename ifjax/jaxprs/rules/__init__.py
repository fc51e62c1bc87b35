"""One rule per primitive: how axes flow through it, and how it is rebuilt at another width."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from ifjax.jaxprs.rules import (
    calls,
    control,
    elementwise,
    indexing,
    linear,
    ordered,
    random,
    shapes,
)
from ifjax.jaxprs.rules.rule import Rule, rebind
from ifjax.jaxprs.walk import Axes, Context

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **linear.RULES,
    **shapes.RULES,
    **indexing.RULES,
    **ordered.RULES,
    **random.RULES,
    **calls.RULES,
    **control.RULES,
}


def rule_of(primitive: str) -> Rule:
    """The rule of a primitive; one without a rule of its own pins all that it touches."""
    return RULES.get(primitive, UNKNOWN)


def _pin_everything(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    del equation
    return context.opaque(operands, "no rule for this primitive")


UNKNOWN = Rule(_pin_everything, rebind)
