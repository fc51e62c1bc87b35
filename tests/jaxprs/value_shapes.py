"""The shapes of all values of a program."""

from __future__ import annotations

import jax


def shapes(jaxpr):
    """Shapes of all values of a jaxpr and those inside it."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for param in jax.tree.leaves(
            dict(equation.params), is_leaf=lambda p: hasattr(getattr(p, "jaxpr", p), "eqns")
        ):
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                yield from shapes(inner)
