"""Calls: jaxprs inside equations, walked with the axes of their operands."""

from __future__ import annotations

from typing import Any

import jax

from ifjax.graph import compat
from ifjax.graph.flow import Axes, Context
from ifjax.graph.rules.rule import Resize, Rule


def _rule(param: str, wrap: Any = None) -> Rule:
    """A rule that walks into ``params[param]``; ``wrap`` re-applies a transformation around it."""

    def flow(context: Context, equation: Any, operands: list[Axes]) -> list[Axes]:
        frame, outputs = context.call(equation.params[param], operands)
        context.note = frame
        return outputs

    def rebuild(resize: Resize, equation: Any, values: list[Any]) -> list[Any]:
        def run(*args: Any) -> list[Any]:
            return resize.call(resize.note, args)

        return wrap(equation, run)(*values) if wrap else run(*values)

    return Rule(flow, rebuild)


def _checkpoint(equation: Any, run: Any) -> Any:
    params = equation.params
    return jax.checkpoint(run, policy=params["policy"], prevent_cse=params["prevent_cse"])


def _custom_jvp(resize: Resize, equation: Any, values: list[Any]) -> list[Any]:
    """Keeps the custom derivative: its jaxpr is evaluated at the small widths as well."""
    count = equation.params["num_consts"]

    @jax.custom_jvp
    def run(*args: Any) -> list[Any]:
        return resize.call(resize.note, args)

    @run.defjvp
    def run_jvp(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        variables = equation.invars[count:]
        zeros = [not jax.numpy.issubdtype(v.aval.dtype, jax.numpy.inexact) for v in variables]
        jaxpr, consts, out_zeros = compat.jvp_jaxpr(equation, zeros)
        moving = [i for i, zero in enumerate(zeros) if not zero]
        args = [*primals[count:], *(tangents[count:][i] for i in moving)]
        axes = list(resize.inputs[count:])
        flat = resize.derive(jaxpr, consts, [*axes, *(axes[i] for i in moving)], args)
        outs, rest = flat[: len(out_zeros)], iter(flat[len(out_zeros) :])
        pairs = zip(outs, out_zeros, strict=True)
        return outs, [jax.numpy.zeros_like(out) if zero else next(rest) for out, zero in pairs]

    return run(*values)


RULES = {
    "jit": _rule("jaxpr"),
    "pjit": _rule("jaxpr"),
    "closed_call": _rule("call_jaxpr"),
    "core_call": _rule("call_jaxpr"),
    "remat": _rule("jaxpr", _checkpoint),
    "remat2": _rule("jaxpr", _checkpoint),
    "checkpoint": _rule("jaxpr", _checkpoint),
    "custom_jvp_call": Rule(_rule("call_jaxpr").flow, _custom_jvp),
}
