"""Everything in which the order along an axis matters, or its position: that axis is pinned.

So are the axes of matrices that are decomposed or solved.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import Values
from ifjax.jaxprs.rules.rearranged import Permutation
from ifjax.jaxprs.rules.rule import Flow, Resize, Rule
from ifjax.jaxprs.traits import TRAITS, traits_of
from ifjax.jaxprs.walk import Axes, Context

LARGEST = "the largest along this axis are taken"
SOLVED = "axis of a matrix that is decomposed or solved"


def _over(equation: JaxprEqn, name: str) -> list[int]:
    """The axes that a parameter names, from the front."""
    value, rank = equation.params[name], len(compat.shape_of(equation.invars[0]))
    return [int(i) % rank for i in (value if isinstance(value, tuple | list) else (value,))]


def ordered(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """What depends on the order along some axes, of unchanged shape."""
    context.unify_arrays(operands)
    over = _over(equation, traits_of(equation).over)
    context.pin([operands[0][i] for i in over], "the order along this axis matters")
    return [operands[0] for _ in equation.outvars]


def reverse(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """The neurons of a reversed axis stand in another order; a pinned one stays as it is."""
    store, out = context.store, list(operands[0])
    for axis in _over(equation, "dimensions"):
        if not store.is_pinned(out[axis]):
            out[axis] = store.permuted(out[axis], range(store.size(out[axis]))[::-1])
    return [tuple(out)]


def rebuild_reverse(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Reverses the axes that are whole; of others, what a permutation of them is when cut."""
    (x,), (before,), (after,) = values, resize.inputs, resize.outputs
    whole = []
    for axis in _over(equation, "dimensions"):
        n = compat.shape_of(equation.invars[0])[axis]
        if resize.size(before[axis]) == n:
            whole.append(axis)
        else:
            order = Permutation(tuple(range(n))[::-1])
            index = order.small(resize, before[axis], (after[axis],))
            if not np.array_equal(index, np.arange(len(index))):
                x = jnp.take(jnp.asarray(x), index, axis)
    return compat.bind(equation, [x], dimensions=tuple(whole)) if whole else [x]


def search(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """The result is a position along the axis, which is pinned unless it only chooses there."""
    over = _over(equation, "axes")
    context.place(equation.outvars[0], operands[0][over[0]], "searched along this axis")
    return [tuple(a for i, a in enumerate(operands[0]) if i not in over)]


def top_k(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """The k largest, and their positions: the axis is pinned unless these only choose there."""
    (axis,) = _over(equation, "axis")
    positions = equation.outvars[1]
    assert context.frame is not None
    read = (v for e in context.frame.jaxpr.eqns for v in e.invars)
    if any(v is positions for v in (*read, *context.frame.jaxpr.outvars)):
        context.place(positions, operands[0][axis], LARGEST)
    else:  # ranked, and nothing is chosen
        context.pin([operands[0][axis]], LARGEST)
    return _largest(context, equation, operands[0], axis)


def approx_top_k(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """The k largest, and their positions, which pin the axis."""
    (axis,) = _over(equation, "reduction_dimension")
    context.pin([operands[0][axis]], LARGEST)
    return _largest(context, equation, operands[0], axis)


def _largest(context: Context, equation: JaxprEqn, axes: Axes, axis: int) -> list[Axes]:
    """The axes with k entries in the place of one."""
    k = context.pinned([compat.shape_of(equation.outvars[0])[axis]], LARGEST)
    return [(*axes[:axis], *k, *axes[axis + 1 :]) for _ in equation.outvars]


def rebuild_top_k(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Refuses to take more than are left."""
    (axis,), k = _over(equation, "axis"), equation.params["k"]
    left = resize.size(resize.inputs[0][axis])
    if k > left:
        raise ValueError(
            f"top_k at {compat.source_line(equation)} takes the {k} largest of an axis that the "
            f"spec cuts to {left}: keep at least {k} there"
        )
    return compat.bind(equation, values)


def fourier(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Transformed axes, the last ones, are pinned; the others pass on."""
    shape = compat.shape_of(equation.outvars[0])
    kept = len(shape) - len(equation.params["fft_lengths"])
    context.pin(operands[0][kept:], "Fourier transform along this axis")
    new = context.pinned(shape[kept:], "Fourier transform along this axis")
    return [(*operands[0][:kept], *new)]


def window(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """An axis with a window of one passes on; the others are pinned."""
    p = equation.params
    arrays = [a for a in operands if a]  # initial values are scalars
    out = []
    for i, n in enumerate(compat.shape_of(equation.outvars[0])):
        nodes = [axes[i] for axes in arrays]
        steps = [p[k][i] for k in STEPS if p.get(k) is not None]
        if set(steps) == {1} and tuple(p["padding"][i]) == (0, 0):
            for node in nodes[1:]:
                context.unify(nodes[0], node)
            out.append(nodes[0])
        else:
            out.append(context.pinned_instead(nodes, n, "a window moves along this axis"))
    return [tuple(out) for _ in equation.outvars]


def fold(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """A reduction by a function of the caller, who may count on the order."""
    arrays = operands[: len(operands) // 2]
    over = _over(equation, "dimensions")
    context.unify_arrays(arrays)
    context.pin([arrays[0][i] for i in over], "reduced in order along this axis")
    kept = tuple(a for i, a in enumerate(arrays[0]) if i not in over)
    return [kept for _ in equation.outvars]


def decompose(rank: int) -> Flow:
    """A rule where the first operand has ``rank`` axes of its own after the batch axes."""

    def flow(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
        batch = operands[0][: len(operands[0]) - rank]
        for axes in operands:
            for a, b in zip(batch, axes, strict=False):
                context.unify(a, b)
            context.pin(axes[len(batch) :], SOLVED)
        shapes = [compat.shape_of(v)[len(batch) :] for v in equation.outvars]
        return [(*batch, *context.pinned(shape, SOLVED)) for shape in shapes]

    return flow


def triangular_solve(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """The other axis of the right-hand side passes on: every column is solved by itself."""
    a, b = operands
    context.unify_arrays([a[:-2], b[:-2]])
    solved = b[-2] if equation.params["left_side"] else b[-1]
    context.pin([*a[-2:], solved], SOLVED)
    return [b]


STEPS = ("window_dimensions", "window_strides", "base_dilation")
WINDOW = "reduce_window reduce_window_sum reduce_window_max reduce_window_min"
GRADIENT = "select_and_scatter_add select_and_gather_add"
MATRIX = "cholesky cholesky_update eig eigh hessenberg lu qr schur svd tridiagonal"
MATRIX += " householder_product symmetric_product"
VECTOR = "tridiagonal_solve lu_pivots_to_permutation"

RULES = {
    **dict.fromkeys(("argmax", "argmin"), Rule(search)),
    **dict.fromkeys(f"{WINDOW} {GRADIENT}".split(), Rule(window)),
    **{name: Rule(ordered) for name, traits in TRAITS.items() if traits.kind == "ordered"},
    "rev": Rule(reverse, rebuild_reverse),
    "top_k": Rule(top_k, rebuild_top_k),
    "approx_top_k": Rule(approx_top_k),
    "fft": Rule(fourier),
    "reduce": Rule(fold),
    **dict.fromkeys(MATRIX.split(), Rule(decompose(2))),
    **dict.fromkeys(VECTOR.split(), Rule(decompose(1))),
    "triangular_solve": Rule(triangular_solve),
}
