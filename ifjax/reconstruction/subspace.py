r"""Which directions of a space are read least: those that the others can make up for. Arrays alone.

With C the mean square of what a place reads, ``[n, n]``, and W its weights, leaving out the
directions N, ``[n, k]``, and solving for the rest leaves the squared error

.. math::
    \operatorname{tr} W' N (N' C^{-1} N)^{-1} N' W,

for one direction the cost of backward elimination. It depends on what N spans alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import linalg, optimize

from ifjax.parallel.threads import one_thread

RIDGE = 1e-6  # of the mean diagonal: what no input reaches has no infinite inverse
STEPS, ENOUGH = 200, 1e-7  # of L-BFGS: at most, and until a step gains no larger part
NARROW = 256  # directions up to which more threads of BLAS gain little


def least_read(
    grams: Float[np.ndarray, "S n n"],
    reads: Float[np.ndarray, "S n n"],
    count: int,
    energy: Float[np.ndarray, " S"] | None = None,
) -> Float[np.ndarray, "n k"]:
    r"""Directions without which the consumers of several places lose least, together.

    Minimises the sum over places of what is lost, by L-BFGS from those principal axes of the mean
    of the Gram matrices that cost least when each alone is left out. With :math:`S = N' C^{-1} N`
    the gradient of a place's loss is

    .. math::
        2 (W W' N - C^{-1} N S^{-1} N' W W' N) S^{-1}.

    Args:
      grams: mean squares of what is read, C, by place.
      reads: W W', by place, in units of their own: divided by what they give, tr W' C W, losses are
        relative.
      count: k, how many directions.
      energy: by place, the loss where all of the mean square is lost, of which a part is lost in
        proportion; None for none.

    Returns:
      An orthonormal basis of the directions.

    Example:
      >>> grams = np.diag([9.0, 4.0, 1.0])[None]  # the largest direction is hardly read
      >>> least_read(grams, np.diag([0.01, 1.0, 1.0])[None], 1).round(2).T
      array([[1., 0., 0.]])
    """
    n = grams.shape[1]
    units = np.einsum("snn->s", grams)[:, None, None] / n
    units = np.where(units > 0, units, 1)
    inverses = np.linalg.inv(grams + RIDGE * units * np.eye(n))
    terms = [*zip(inverses, reads, strict=True)]
    if energy is not None:  # what reads the channels as they are
        terms.append((np.eye(n), np.einsum("s,sij->ij", energy, grams / (units * n))))

    def lost(x: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss, and its gradient."""
        directions = x.reshape(n, count)
        total, gradient = 0.0, np.zeros((n, count))
        for inverse, read in terms:
            made, given = inverse @ directions, read @ directions
            left = np.linalg.inv(directions.T @ made)
            share = directions.T @ given @ left
            total += float(np.trace(share))
            gradient += 2 * (given - made @ left @ (directions.T @ given)) @ left
        return total, gradient.ravel()

    _, axes = np.linalg.eigh(grams.mean(0))
    alone = sum(((m @ axes) * axes).sum(0) / ((c @ axes) * axes).sum(0) for c, m in terms)
    first = axes[:, np.argsort(alone, kind="stable")[:count]].ravel()
    begin = lost(first)[0] or 1.0
    with one_thread(count <= NARROW):
        found = optimize.minimize(
            lambda x: tuple(y / begin for y in lost(x)),
            first,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": STEPS, "ftol": ENOUGH, "gtol": 0.0},
        )
    return linalg.orth(found.x.reshape(n, count))
