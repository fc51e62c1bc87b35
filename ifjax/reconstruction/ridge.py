"""Ridge regression towards given weights: arrays alone."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jaxtyping import Float
from scipy import linalg

from ifjax.activations.moments import Moments
from ifjax.namespace import AnyArray
from ifjax.parallel.threads import each
from ifjax.reconstruction.ridge_on_device import ridge_on_device, squared_error_on_device

SHRINKAGES = (0.001, 0.01, 0.1, 1.0, 10.0)
WIDE = 4096  # rows of a kernel beyond which one shrinkage after another is tried, for their memory


def ridge(
    moments: Moments,
    start: Float[np.ndarray, "B K O"],
    shrinkage: float,
    intercept: bool,
) -> tuple[Float[AnyArray, "B K O"], Float[AnyArray, "B O"]]:
    r"""Weights and offsets that give the target best, shrunk towards given weights.

    With X the rows, T the target, :math:`\mu` the mean of the diagonal of X'X, and 1 appended to
    the rows for an offset d that is not shrunk

    .. math::
        \min_{V, d} \|X V + 1 d' - T\|^2 + \lambda \mu \|V - V_0\|^2.

    Args:
      moments: sums over the positions; those on an accelerator stay there.
      start: the weights :math:`V_0`.
      shrinkage: :math:`\lambda`.
      intercept: whether there is an offset.

    Returns:
      V and d; d is zero without an intercept.

    Example:
      >>> x = np.array([[1.0], [2.0], [3.0]])
      >>> found = Moments(3.0, x.sum(0)[None], (x.T @ x)[None], (x.T @ (2 * x + 1))[None],
      ...                 (2 * x + 1).sum(0)[None], ((2 * x + 1) ** 2).sum(0)[None])
      >>> v, d = ridge(found, np.zeros((1, 1, 1)), 1e-12, True)
      >>> v.round(6).item(), d.round(6).item()
      (2.0, 1.0)
    """
    if isinstance(moments.gram, jax.Array):
        return ridge_on_device(moments, start, shrinkage, intercept)
    solved, offsets = np.empty_like(start), np.zeros(start.shape[::2])
    for b, gram in enumerate(moments.gram):
        cross, k = moments.cross[b], len(gram)
        unit = float(np.trace(gram)) / max(k, 1)
        if not unit > 0:
            solved[b] = start[b]
            if intercept:
                offsets[b] = moments.target[b] / moments.count
            continue
        if intercept:  # eliminated: what remains is of centred rows
            mean = moments.rows[b] / moments.count
            gram = gram - np.outer(moments.rows[b], mean)
            cross = cross - np.outer(mean, moments.target[b])
        right = cross - gram @ start[b]
        factor = _factor(gram, shrinkage * unit)
        solved[b] = start[b] + linalg.cho_solve(factor, right, check_finite=False)
        if intercept:
            offsets[b] = (moments.target[b] - moments.rows[b] @ solved[b]) / moments.count
    return solved, offsets


def best_shrinkage(
    training: Moments,
    test: Moments | None,
    start: Float[np.ndarray, "B K O"],
    intercept: bool,
) -> tuple[float, tuple[float, float]]:
    """The shrinkage with the least squared error on what was held out.

    Args:
      training: sums over the positions that weights are solved for.
      test: sums over the others; None for a shrinkage of 0.01.
      start: the weights as they are.
      intercept: whether there is an offset.

    Returns:
      The shrinkage; and the error before and after, which are NaN without a test.
    """
    if test is None:
        return 0.01, (float("nan"), float("nan"))
    none = np.zeros(start.shape[::2])
    before = squared_error(test, start, none)

    def error(shrinkage: float) -> float:
        return squared_error(test, *ridge(training, start, shrinkage, intercept))

    k = start.shape[1]
    calls = [functools.partial(error, shrinkage) for shrinkage in SHRINKAGES]
    side_by_side = k <= WIDE and not isinstance(training.gram, jax.Array)
    found = each(calls, [start.size * k] * len(calls)) if side_by_side else [c() for c in calls]
    best = int(np.argmin(found))
    return SHRINKAGES[best], (before, found[best])


def _factor(gram: Float[np.ndarray, "K K"], shift: float) -> tuple[np.ndarray, bool]:
    """Cholesky's factor of the shifted matrix; shifted further where rounding asks for it."""
    while True:
        shifted = gram + shift * np.eye(len(gram))
        try:
            factor, _ = linalg.cho_factor(shifted, lower=True, check_finite=False)
            return factor, True
        except linalg.LinAlgError:
            shift *= 10


def squared_error(
    moments: Moments, weights: Float[AnyArray, "B K O"], offsets: Float[AnyArray, "B O"]
) -> float:
    """The squared error of weights and offsets, summed over positions and outputs."""
    if isinstance(moments.gram, jax.Array):
        return squared_error_on_device(moments, weights, offsets)
    total = float(moments.square.sum())
    total -= 2 * float((weights * moments.cross).sum())
    total += float((weights * (moments.gram @ weights)).sum())
    total += float((moments.count * offsets**2 - 2 * offsets * moments.target).sum())
    total += 2 * float((offsets * np.einsum("bk,bko->bo", moments.rows, weights)).sum())
    return max(total, 0.0)
