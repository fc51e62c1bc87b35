r"""Which directions of a space are read least: those that the others can make up for. Arrays alone.

With C the mean square of what a place reads, ``[n, n]``, and W its weights, leaving out the
directions N, ``[n, k]``, and solving for the rest leaves the squared error

.. math::
    \operatorname{tr} W' N (N' C^{-1} N)^{-1} N' W,

for one direction the cost of backward elimination. It depends on what N spans alone.
"""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float
from scipy import optimize

from ifjax.parallel.threads import one_thread

RIDGE = 1e-6  # of the mean diagonal: what no input reaches has no infinite inverse
STEPS, ENOUGH = 200, 1e-7  # of L-BFGS: at most, and until a step gains less of the first loss
ROUNDING = float(np.finfo(np.float32).eps)  # of what is summed
NARROW = 1024  # channels up to which more threads of BLAS gain little
Term = tuple[np.ndarray, np.ndarray]  # the inverse of C, and W W'


def least_read(
    grams: Float[np.ndarray, "S n n"],
    reads: Float[np.ndarray, "S n n"],
    count: int,
    energy: Float[np.ndarray, " S"] | None = None,
) -> Float[np.ndarray, "n k"]:
    r"""Directions without which the consumers of several places lose little, together.

    Lowers the sum over places of what is lost, by L-BFGS from those principal axes of the mean of
    the Gram matrices that cost least when each alone is left out. With :math:`S = N' C^{-1} N` the
    gradient of a place's loss is

    .. math::
        2 (W W' N - C^{-1} N S^{-1} N' W W' N) S^{-1}.

    Args:
      grams: mean squares of what is read, C, by place; a place of zeros counts nothing.
      reads: W W', by place, in units of their own: divided by what they give, tr W' C W, losses are
        relative.
      count: k, how many directions.
      energy: by place, the loss where all of the mean square is lost, of which a part is lost in
        proportion; None for none.

    Returns:
      An orthonormal basis of the directions, which cost no more than the minor axes.

    Example:
      >>> grams = np.diag([9.0, 4.0, 1.0])[None]  # the largest direction is hardly read
      >>> np.abs(least_read(grams, np.diag([0.01, 1.0, 1.0])[None], 1)).round(2).T
      array([[1., 0., 0.]])
    """
    n = grams.shape[1]
    seen = [s for s, gram in enumerate(grams) if np.trace(gram) > 0]
    terms = [(_inverse(grams[s]), reads[s]) for s in seen]
    if energy is not None:  # what reads the channels as they are
        terms.append((np.eye(n), sum(energy[s] / np.trace(grams[s]) * grams[s] for s in seen)))
    _, axes = np.linalg.eigh(grams.mean(0))
    alone = sum(
        (((m @ axes) * axes).sum(0) / ((c @ axes) * axes).sum(0) for c, m in terms), np.zeros(n)
    )
    minor, first = axes[:, :count], axes[:, np.argsort(alone, kind="stable")[:count]]
    unit, given = (
        loss(terms, minor)[0],
        sum(float((m * grams[s]).sum()) for s, m in enumerate(reads)),
    )
    if not unit > ROUNDING * given:
        return minor  # on which nothing lies, or nothing that is read
    with one_thread(n <= NARROW):
        found = optimize.minimize(
            lambda x: tuple(y / unit for y in loss(terms, x.reshape(n, count))),
            first.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": STEPS, "ftol": ENOUGH, "gtol": 0.0},
        )
    if not found.success and found.nit < STEPS:
        warnings.warn(f"the search for a subspace ended early: {found.message}", stacklevel=2)
    basis, _ = np.linalg.qr(found.x.reshape(n, count))
    return basis if loss(terms, basis)[0] <= loss(terms, minor)[0] else minor


def loss(terms: list[Term], directions: Float[np.ndarray, "n k"]) -> tuple[float, np.ndarray]:
    """What is lost without some directions, and its gradient, as one vector.

    Args:
      terms: by place, the inverse of C, and W W'.
      directions: N.

    Returns:
      The sum over places of the losses, and its derivative by the directions.

    Example:
      >>> loss([(np.eye(2), np.diag([1.0, 3.0]))], np.array([[1.0], [0.0]]))[0]
      1.0
    """
    total, gradient = 0.0, np.zeros_like(directions)
    for inverse, read in terms:
        made, given = inverse @ directions, read @ directions
        left = np.linalg.inv(directions.T @ made)
        share = directions.T @ given @ left
        total += float(np.trace(share))
        gradient += 2 * (given @ left - made @ (left @ share))
    return total, gradient.ravel()


def _inverse(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """With a ridge, of what float32 may have made indefinite."""
    values, vectors = np.linalg.eigh(gram)
    least = max(RIDGE * np.trace(gram) / len(gram), ROUNDING * float(values[-1]))
    return vectors / (np.maximum(values, 0) + least) @ vectors.T
