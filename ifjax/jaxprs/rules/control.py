"""Control flow: scan, while and cond, whose bodies are walked once and evaluated at small widths.

A body states equations between axes, which hold in every step, so that one walk is enough: what a
loop carries has the axes it came with, and all branches agree on their results.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jax.typing import ArrayLike

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import Values
from ifjax.jaxprs.rules.rule import Resize, Rule
from ifjax.jaxprs.walk import Axes, Branches, Context, Frame, Loop, loop_parts


def scan(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Carries keep their axes; stacked arrays lose the axis of the steps, results gain it.

    The axis of the steps is one axis in all arrays. It is pinned where a step uses what the one
    before has left, and passes on where the steps are independent (`jax.lax.map`).
    """
    p = equation.params
    counts = (0, *compat.scan_counts(equation))
    _, consts, carries, stacked = loop_parts(counts, operands)
    leading = [axes[0] for axes in stacked]
    steps = leading[0] if leading else context.store.fresh(p["length"])
    for node in leading[1:]:
        context.unify(steps, node)
    if carries or compat.unpack(p["jaxpr"])[0].effects:
        context.pin([steps], "each step follows the one before")
    before = len(context.macs)
    slices = [axes[1:] for axes in stacked]
    fixed = equation.invars[: len(consts)]
    body, outputs = context.call(p["jaxpr"], [*consts, *carries, *slices], fixed)
    context.macs[before:] = [(steps, *axes) for axes in context.macs[before:]]
    n = len(carries)
    for carried in zip(carries, outputs[:n], strict=True):
        context.unify_arrays(carried)
    context.note = Loop(body, None, counts, steps)
    return [*carries, *((steps, *axes) for axes in outputs[n:])]


def rebuild_scan(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Scans the body at the small widths."""
    loop: Loop = resize.note
    assert loop.steps is not None
    p, n = equation.params, loop.counts[2]
    _, consts, carries, stacked = loop_parts(loop.counts, values)

    def step(carries: Values, slices: Values) -> tuple[Values, Values]:
        outputs = resize.call(loop.body, [*consts, *carries, *slices])
        return outputs[:n], outputs[n:]

    length = resize.size(loop.steps)
    carries, results = lax.scan(
        step, carries, stacked, length, reverse=p["reverse"], unroll=p["unroll"]
    )
    return [*carries, *results]


def while_(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Carries keep their axes. Work inside counts once, for the number of steps is not known."""
    p = equation.params
    counts = p["cond_nconsts"], p["body_nconsts"], len(equation.outvars)
    tests, consts, carries, _ = loop_parts(counts, operands)
    tested, fixed, *_ = loop_parts(counts, equation.invars)
    condition, decided = context.call(p["cond_jaxpr"], [*tests, *carries], tested)
    body, outputs = context.call(p["body_jaxpr"], [*consts, *carries], fixed)
    for carried in zip(carries, outputs, strict=True):
        context.unify_arrays(carried)
    for axes in carries:  # a batched loop decides per entry of the leading axes
        context.unify_arrays([*decided, axes[: len(decided[0])]])
    context.note = Loop(body, condition, counts)
    return carries


def rebuild_while(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Loops over the body at the small widths.

    A loop that was batched decides per entry: entries that are done keep their values.
    """
    del equation
    loop: Loop = resize.note
    condition = loop.condition
    assert condition is not None
    rank = len(compat.shape_of(compat.unpack(condition.jaxpr)[0].outvars[0]))
    tests, consts, carries, _ = loop_parts(loop.counts, values)

    def decide(carries: Values) -> jax.Array:
        return jnp.asarray(resize.call(condition, [*tests, *carries])[0])

    def body(carries: Values) -> Values:
        after = resize.call(loop.body, [*consts, *carries])
        if not rank:
            return after
        going = decide(carries)
        masks = [lax.broadcast_in_dim(going, jnp.shape(x), range(rank)) for x in after]
        return [lax.select(*parts) for parts in zip(masks, after, carries, strict=True)]

    return lax.while_loop(lambda carries: decide(carries).any(), body, carries)


def cond(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Branches take the same operands and agree on the results; the heaviest counts as work."""
    before = len(context.macs)
    frames: list[Frame] = []
    results: list[Axes] = []
    work: list[list[Axes]] = []
    for branch in equation.params["branches"]:
        frame, outputs = context.call(branch, operands[1:], equation.invars[1:])
        for axes in zip(results or outputs, outputs, strict=True):
            context.unify_arrays(axes)
        frames.append(frame)
        results = results or outputs
        work.append(context.macs[before:])
        del context.macs[before:]
    size = context.store.size
    context.macs += max(work, key=lambda macs: sum(math.prod(map(size, m)) for m in macs))
    context.note = Branches(tuple(frames))
    return results


def rebuild_cond(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Chooses among the branches at the small widths."""
    branches = [functools.partial(_branch, resize, frame) for frame in resize.note.frames]
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        return lax.switch(values[0], branches, *values[1:])
    named = [(p, b) for ps, b in zip(platforms, branches, strict=True) for p in ps or ("default",)]
    return lax.platform_dependent(*values[1:], **dict(named))


def _branch(resize: Resize, frame: Frame, *values: ArrayLike) -> Values:
    return resize.call(frame, values)


RULES = {
    "scan": Rule(scan, rebuild_scan),
    "while": Rule(while_, rebuild_while),
    "cond": Rule(cond, rebuild_cond),
}
