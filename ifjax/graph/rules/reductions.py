"""Reductions, windows, and everything in which the order along an axis matters."""

from __future__ import annotations

from typing import Any

from ifjax.graph.flow import Axes, Context
from ifjax.graph.rules.rule import Rule


def reduce(context: Context, equation: Any, operands: list[Axes]) -> list[Axes]:
    """Reduced axes are pinned (their size enters the value), the others pass on."""
    over = equation.params["axes"]
    for axes in operands:
        context.pin([axes[i] for i in over], "reduced over this axis")
    kept = tuple(a for i, a in enumerate(operands[0]) if i not in over)
    return [kept for _ in equation.outvars]


def reduce_window(context: Context, equation: Any, operands: list[Axes]) -> list[Axes]:
    """An axis with a window of one passes on; the others are pinned."""
    p = equation.params
    shape = equation.outvars[0].aval.shape
    rank = len(shape)
    out = []
    for i in range(rank):
        trivial = (
            p["window_dimensions"][i] == 1
            and p["window_strides"][i] == 1
            and tuple(p["padding"][i]) == (0, 0)
            and p["base_dilation"][i] == 1
        )
        if trivial:
            out.append(operands[0][i])
        else:
            context.pin([operands[0][i]], "a window moves along this axis")
            out.append(context.pinned([shape[i]], "a window moves along this axis")[0])
    return [tuple(out)]


def ordered(*names: str) -> Any:
    """A rule for primitives that depend on the order along ``params[name]``, of unchanged shape."""

    def flow(context: Context, equation: Any, operands: list[Axes]) -> list[Axes]:
        over: list[int] = []
        for name in names:
            value = equation.params[name]
            over += [value] if isinstance(value, int) else list(value)
        for axes in operands:
            context.pin([axes[i] for i in over], "the order along this axis matters")
        for axes in operands[1:]:
            for a, b in zip(operands[0], axes, strict=True):
                context.unify(a, b)
        return [operands[0] for _ in equation.outvars]

    return flow


REDUCE = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor"
INDEX = "argmax argmin"
WINDOW = "reduce_window_sum reduce_window_max reduce_window_min"
CUMULATIVE = "cumsum cumprod cummax cummin cumlogsumexp"

RULES = {
    **dict.fromkeys([*REDUCE.split(), *INDEX.split()], Rule(reduce)),
    **dict.fromkeys(WINDOW.split(), Rule(reduce_window)),
    **dict.fromkeys(CUMULATIVE.split(), Rule(ordered("axis"))),
    "rev": Rule(ordered("dimensions")),
    "sort": Rule(ordered("dimension")),
}
