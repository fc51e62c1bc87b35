"""Decompositions and solves of matrices: batch axes are shared, matrix axes are pinned."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from ifjax.jaxprs import compat
from ifjax.jaxprs.rules.rule import Flow, Rule
from ifjax.jaxprs.walk import Axes, Context

REASON = "axis of a matrix that is decomposed or solved"


def decompose(rank: int) -> Flow:
    """A rule where the first operand has ``rank`` axes of its own after the batch axes."""

    def flow(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
        batch = operands[0][: len(operands[0]) - rank]
        for axes in operands:
            for a, b in zip(batch, axes, strict=False):
                context.unify(a, b)
            context.pin(axes[len(batch) :], REASON)
        shapes = [compat.shape_of(v)[len(batch) :] for v in equation.outvars]
        return [(*batch, *context.pinned(shape, REASON)) for shape in shapes]

    return flow


def triangular_solve(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """The other axis of the right-hand side passes on: every column is solved by itself."""
    a, b = operands
    for x, y in zip(a[:-2], b[:-2], strict=True):
        context.unify(x, y)
    solved = b[-2] if equation.params["left_side"] else b[-1]
    context.pin([*a[-2:], solved], REASON)
    return [b]


MATRIX = "cholesky cholesky_update eig eigh hessenberg lu qr schur svd tridiagonal"
MATRIX += " householder_product symmetric_product"
VECTOR = "tridiagonal_solve lu_pivots_to_permutation"

RULES = {
    **dict.fromkeys(MATRIX.split(), Rule(decompose(2))),
    **dict.fromkeys(VECTOR.split(), Rule(decompose(1))),
    "triangular_solve": Rule(triangular_solve),
}
