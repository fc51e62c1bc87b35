"""Ridge regression towards given weights: arrays alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float
from scipy import linalg

from ifjax.activations.moments import Moments, added, summed
from ifjax.namespace import AnyArray
from ifjax.parallel.threads import one_thread
from ifjax.reconstruction.ridge_on_device import ridge_on_device, squared_error_on_device

NARROW = 2048  # rows of a kernel up to which more threads of BLAS gain little
WIDE = 0.3  # outputs per row from which on to diagonalise is faster than to solve five times
_VARIES = 1e-5  # of all squares: deviations of less are rounding
SHRINKAGES = (0.001, 0.01, 0.1, 1.0, 10.0)
Known = dict[Hashable, Any]
T = TypeVar("T")


class Fit(NamedTuple):
    """Weights and offsets, and the squared errors with them and before.

    Attributes:
      weights: V.
      offsets: d; None where there is none, or all stays as it is.
      shrinkage: the one that was chosen; infinite where weights stay.
      before: error on all rows.
      after: error on all rows.
      held_before: error on rows that are held out; NaN without any.
      held_after: the same, of what is solved without them.
    """

    weights: Float[AnyArray, "B K O"]
    offsets: Float[AnyArray, "B O"] | None
    shrinkage: float
    before: float
    after: float
    held_before: float
    held_after: float


def fit(
    training: Moments,
    test: Moments | None,
    start: Float[np.ndarray, "B K O"],
    intercept: bool,
    known: Known | None = None,
) -> Fit:
    """The solution of `ridge` on all rows, with the shrinkage that is best for those held out.

    The family ends with the weights as they are. On the host the Gram matrix of the others is
    diagonalised once for all shrinkages where there are many outputs.

    Args:
      training: sums over the positions that shrinkages are compared on.
      test: sums over those that are held out; None for a shrinkage of 0.01.
      start: the weights as they are.
      intercept: whether there is an offset.
      known: what was made of the same Gram matrices before, and will be: empty at first.

    Returns:
      The solution.

    Example:
      >>> x = np.array([[1.0], [2.0], [3.0]])
      >>> found = Moments(3.0, x.sum(0)[None], (x.T @ x)[None], (x.T @ (2 * x + 1))[None],
      ...                 (2 * x + 1).sum(0)[None], ((2 * x + 1) ** 2).sum(0)[None])
      >>> fit(found, found, np.zeros((1, 1, 1)), True).shrinkage
      0.001
    """
    if isinstance(training.gram, jax.Array):
        return _fit_on_device(training, test, start, intercept)
    with one_thread(start.shape[1] <= NARROW):
        return _fit(training, test, start, intercept, {} if known is None else known)


def _fit(
    training: Moments,
    test: Moments | None,
    start: Float[np.ndarray, "B K O"],
    intercept: bool,
    known: Known,
) -> Fit:
    """The same on the host."""
    left = left_over(training, start)
    rest = None if test is None else left_over(test, start)
    whole = left if rest is None else added(left, rest)
    shrinkage, held = 0.01, (math.nan, math.nan)
    if rest is not None:
        errors = held_out(left, rest, intercept, known)
        shrinkage, held = _best(errors, max(float(rest.square.sum()), 0.0))
    before = max(float(whole.square.sum()), 0.0)
    if shrinkage == math.inf and held[0] == held[1]:
        return Fit(start, None, shrinkage, before, before, *held)
    change, offsets, after = _change(whole, shrinkage, intercept, known)
    return Fit(start + change, offsets if intercept else None, shrinkage, before, after, *held)


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
      shrinkage: :math:`\lambda`; infinite for the weights as they are.
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
    change, offsets, _ = _change(left_over(moments, start), shrinkage, intercept, {})
    return start + change, offsets


def best_gain(
    training: Moments,
    test: Moments | None,
    start: Float[np.ndarray, "B K O"],
    intercept: bool,
) -> float:
    """The number that weights are best multiplied by, all alike.

    A norm over fewer neurons divides by another mean: what reads it would be too large by one
    factor, and to shrink towards that would keep it so.

    Args:
      training: sums over the positions that the number is found on.
      test: sums over those that are held out, on which it has to be better than one.
      start: the weights.
      intercept: whether there is an offset, which takes up the means.

    Returns:
      The number, above zero; one where what the weights give hardly varies, and where another
      number is no better.

    Example:
      >>> x = np.array([[1.0], [2.0], [3.0]])
      >>> found = Moments(3.0, x.sum(0)[None], (x.T @ x)[None], (x.T @ (2 * x))[None],
      ...                 (2 * x).sum(0)[None], ((2 * x) ** 2).sum(0)[None])
      >>> best_gain(found, found, np.ones((1, 1, 1)), True)
      2.0
    """
    given, square = _given(training, start)
    whole, made = float(square), (training.rows[:, None] @ start)[:, 0]
    if intercept:
        given -= float((made * training.target).sum() / training.count)
        square -= float((made * made).sum() / training.count)
    if not square > _VARIES * whole or not given > 0:
        return 1.0
    if test is None:
        return given / square
    cross, own = _given(test, start)
    there = (test.rows[:, None] @ start)[:, 0]

    def error(gain: float) -> float:
        """On the positions that are held out, but for what is the same for all numbers."""
        found = gain * gain * own - 2 * gain * cross
        if intercept:
            offset = (training.target - gain * made) / training.count
            found += float(
                (offset * (test.count * offset - 2 * (test.target - gain * there))).sum()
            )
        return found

    return min(1.0, given / square, key=error)


def _given(moments: Moments, start: Float[np.ndarray, "B K O"]) -> tuple[float, float]:
    """Sums of what weights give times the target, and of its squares."""
    return (
        float((start * moments.cross).sum()),
        float((start * (moments.gram @ start)).sum()),
    )


def left_over(moments: Moments, start: Float[np.ndarray, "B K O"]) -> Moments:
    """Moments of the same rows and of what weights leave over of the target."""
    cross = moments.cross - moments.gram @ start
    square = moments.square - (start * (moments.cross + cross)).sum(1)
    target = moments.target - (moments.rows[:, None] @ start)[:, 0]
    return moments._replace(cross=cross, target=target, square=square)


def _means(moments: Moments, intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of rows and target; zero without an intercept."""
    return tuple(x / moments.count if intercept else 0 * x for x in (moments.rows, moments.target))


def _gram_about(moments: Moments, x: np.ndarray) -> Float[np.ndarray, "B K K"]:
    """The Gram matrix of rows minus x."""
    if not x.any():
        return moments.gram
    half = _outer(moments.rows - moments.count / 2 * x, x)
    return moments.gram - half - half.swapaxes(1, 2)


def _cross_about(moments: Moments, x: np.ndarray, t: np.ndarray) -> Float[np.ndarray, "B K O"]:
    """Products of rows minus x and target minus t."""
    if not (x.any() or t.any()):
        return moments.cross
    return moments.cross - _outer(moments.rows - moments.count * x, t) - _outer(x, moments.target)


def _square_about(moments: Moments, t: np.ndarray) -> float:
    return float((moments.square + t * (moments.count * t - 2 * moments.target)).sum())


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, :, None] * b[:, None]


def _units(moments: Moments) -> Float[np.ndarray, " B"]:
    """The mean diagonals of the Gram matrices."""
    return np.einsum("bkk->b", moments.gram) / max(moments.gram.shape[1], 1)


def _once(known: Known, key: Hashable, make: Callable[[], T]) -> T:
    if key not in known:
        known[key] = make()
    return known[key]


def held_out(training: Moments, test: Moments, intercept: bool, known: Known) -> list[float]:
    """Errors on the test rows, with each of the shrinkages and an infinite one.

    Args:
      training: sums over the other rows, of what the weights leave over.
      test: sums over the rows.
      intercept: whether there is an offset.
      known: what was made of the same Gram matrices before, and will be.

    Returns:
      The errors.
    """
    rows, outputs = training.cross.shape[1:]
    if outputs >= WIDE * rows or ("spectrum", intercept) in known:
        return _by_spectrum(training, test, intercept, known)
    own = _once(known, "training", dict)
    family = (*SHRINKAGES, math.inf)
    return [squared_error(test, *_change(training, s, intercept, own)[:2]) for s in family]


def _by_spectrum(training: Moments, test: Moments, intercept: bool, known: Known) -> list[float]:
    r"""The same for any shrinkages once the Gram matrix is diagonal.

    With :math:`U \Lambda U'` the Gram matrix of the training rows, G that of the test rows, and R,
    S their products with the targets, the change of the weights is
    :math:`U (\Lambda + s)^{-1} U'R`, so that

    .. math::
        \sum_i \frac{((U'R)(U'S)')_{ii}}{\Lambda_i + s} \quad\text{and}\quad
        \sum_{ij} \frac{(U'GU)_{ij} (U'R R'U)_{ij}}{(\Lambda_i + s) (\Lambda_j + s)}

    say the error for any s. An intercept takes both about the means of the training rows.
    """
    x, t = _means(training, intercept)

    def spectrum() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values, vectors = np.linalg.eigh(_gram_about(training, x))
        held = vectors.swapaxes(1, 2) @ _gram_about(test, x) @ vectors
        return np.maximum(values, 0), vectors, held

    values, vectors, held = _once(known, ("spectrum", intercept), spectrum)
    inverse = vectors.swapaxes(1, 2)
    turned = inverse @ _cross_about(training, x, t)
    single = np.einsum("bko,bko->bk", turned, inverse @ _cross_about(test, x, t))
    double = held * (turned @ turned.swapaxes(1, 2))
    units, square = _units(training)[:, None], _square_about(test, t)
    found = []
    for shrinkage in SHRINKAGES:
        w = np.where(units > 0, 1 / (values + np.where(units > 0, shrinkage * units, 1)), 0)
        change = (w[:, None] @ double @ w[:, :, None]).sum() - 2 * (w * single).sum()
        found.append(max(square + float(change), 0.0))
    return [*found, max(square, 0.0)]


def _best(errors: list[float], before: float) -> tuple[float, tuple[float, float]]:
    """The best shrinkage, and the errors before and after; all stays where none is better."""
    best = len(errors) - 1 - int(np.argmin(errors[::-1]))  # the largest of equals
    if not errors[best] < before:
        return math.inf, (before, before)
    return (*SHRINKAGES, math.inf)[best], (before, errors[best])


def _change(
    left: Moments, shrinkage: float, intercept: bool, known: Known
) -> tuple[Float[np.ndarray, "B K O"], Float[np.ndarray, "B O"], float]:
    """How weights and offsets change, from what the weights leave over, and the error with it."""
    x, t = _means(left, intercept)
    cross, error, units = _cross_about(left, x, t), _square_about(left, t), _units(left)
    change = np.zeros_like(cross)

    def factors() -> list[tuple[np.ndarray, float] | None]:
        pairs = zip(_gram_about(left, x), units, strict=True)
        return [_factor(gram, shrinkage * unit) if unit > 0 else None for gram, unit in pairs]

    found = [] if shrinkage == math.inf else _once(known, (shrinkage, intercept), factors)
    for b, pair in enumerate(found):
        if pair is not None:
            factor, shift = pair
            change[b] = linalg.cho_solve((factor, True), cross[b], check_finite=False)
            error -= float((change[b] * (cross[b] + shift * change[b])).sum())
    offsets = t - (x[:, None] @ change)[:, 0]
    return change, offsets, max(error, 0.0)


def _factor(gram: Float[np.ndarray, "K K"], shift: float) -> tuple[np.ndarray, float]:
    """Cholesky's factor of the shifted matrix; shifted further where rounding asks for it."""
    while True:
        shifted = gram.copy(order="F")
        shifted[np.diag_indices(len(gram))] += shift
        try:
            factor, _ = linalg.cho_factor(shifted, True, overwrite_a=True, check_finite=False)
            return factor, shift
        except linalg.LinAlgError:
            shift *= 10


def _fit_on_device(
    training: Moments, test: Moments | None, start: Float[np.ndarray, "B K O"], intercept: bool
) -> Fit:
    """The same on an accelerator, a solution for each shrinkage."""
    none = np.zeros(start.shape[::2])
    whole = training if test is None else summed(test, training)
    before = squared_error(whole, start, none)
    shrinkage, held = 0.01, (math.nan, math.nan)
    if test is not None:
        family = (*SHRINKAGES, math.inf)
        errors = [squared_error(test, *ridge(training, start, s, intercept)) for s in family]
        shrinkage, held = _best(errors, squared_error(test, start, none))
    if shrinkage == math.inf and held[0] == held[1]:
        return Fit(start, None, shrinkage, before, before, *held)
    weights, offsets = ridge(whole, start, shrinkage, intercept)
    after = squared_error(whole, weights, offsets)
    return Fit(weights, offsets if intercept else None, shrinkage, before, after, *held)


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
