"""Elementwise primitives, whose operands share all their axes; reductions, where some go."""

from __future__ import annotations

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import Values
from ifjax.jaxprs.rules.rule import Resize, Rule, rebuild_number
from ifjax.jaxprs.traits import TRAITS
from ifjax.jaxprs.walk import Axes, Context


def share(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Unifies axis by axis; scalars and axes of size 1 broadcast and say nothing."""
    shape = compat.shape_of(equation.outvars[0])
    result = []
    for i, n in enumerate(shape):
        nodes = [a[i] for a in operands if len(a) == len(shape)]
        nodes = [a for a in nodes if context.store.size(a) == n]
        for other in nodes[1:]:
            context.unify(nodes[0], other)
        result.append(nodes[0] if nodes else context.store.fresh(n))
    return [tuple(result) for _ in equation.outvars]


def each(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Every result is its operand."""
    del context, equation
    return list(operands)


def rebuild_constraint(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """A sharding constraint is left out where the small width does not divide by the mesh."""
    del resize
    try:
        equation.params["sharding"].shard_shape(jnp.shape(values[0]))
    except ValueError:
        return values
    return compat.bind(equation, values)


def reduce(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Reduced axes go, for the order along them does not matter; the others pass on."""
    del context
    over = equation.params["axes"]
    kept = tuple(a for i, a in enumerate(operands[0]) if i not in over)
    return [kept for _ in equation.outvars]


NUMBERED = ("mul", "div", "add", "add_any", "sub", "pow")  # where a number may follow the widths

RULES = {
    **{name: Rule(share) for name, traits in TRAITS.items() if traits.kind == "elementwise"},
    **{name: Rule(each) for name, traits in TRAITS.items() if traits.kind == "same"},
    **dict.fromkeys(NUMBERED, Rule(share, rebuild_number)),
    **{name: Rule(reduce) for name, traits in TRAITS.items() if traits.kind == "reduction"},
    "sharding_constraint": Rule(each, rebuild_constraint),
}
