"""One rule per primitive: how axes flow through it, and how it is rebuilt at another width."""

from ifjax.graph.rules import calls, elementwise, linear, reductions, shapes
from ifjax.graph.rules.rule import Rule, rebind

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **linear.RULES,
    **shapes.RULES,
    **reductions.RULES,
    **calls.RULES,
}


def _pin_everything(context, equation, operands):
    for axes in operands:
        context.pin(axes, "no rule for this primitive")
    return [
        context.pinned(v.aval.shape if hasattr(v.aval, "shape") else (), "no rule for it")
        for v in equation.outvars
    ]


unknown = Rule(_pin_everything, rebind)

__all__ = ["RULES", "Rule", "unknown"]
