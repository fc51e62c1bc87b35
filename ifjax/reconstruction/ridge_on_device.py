"""The ridge solution on an accelerator, in the precision that the sums were made in.

Cholesky's factor is backward stable: its solution is that of a matrix as near to the given one as
the sums are to exact ones. A step of refinement takes what is left over.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import linalg
from jaxtyping import Array, Float

from ifjax.activations.moments import Moments

TIMES = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
STEPS = 1  # of refinement


def ridge_on_device(
    moments: Moments,
    start: Float[Array | np.ndarray, "B K O"],
    shrinkage: float,
    intercept: bool,
) -> tuple[Float[Array, "B K O"], Float[Array, "B O"]]:
    """Weights and offsets, see `ifjax.reconstruction.ridge.ridge`.

    Args:
      moments: sums over the positions, on the device.
      start: the weights that they are shrunk towards.
      shrinkage: how much; more where the precision asks for it.
      intercept: whether there is an offset.

    Returns:
      The same as on the host, on the device.

    Example:
      >>> x = jnp.array([[1.0], [2.0], [3.0]])
      >>> found = Moments(3.0, x.sum(0)[None], (x.T @ x)[None], (x.T @ (2 * x + 1))[None],
      ...                 (2 * x + 1).sum(0)[None], ((2 * x + 1) ** 2).sum(0)[None])
      >>> v, d = ridge_on_device(found, jnp.zeros((1, 1, 1)), 1e-6, True)
      >>> v.round(3).item(), d.round(3).item()
      (2.0, 1.0)
    """
    start = jnp.asarray(start, moments.gram.dtype)
    if shrinkage == math.inf:
        rest = moments.target - TIMES("bk,bko->bo", moments.rows, start)
        return start, rest / moments.count if intercept else jnp.zeros_like(rest)
    while True:
        solved, offsets = _solved(moments, start, shrinkage, intercept)
        if bool(jnp.isfinite(solved).all()):
            return solved, offsets
        shrinkage *= 10


@functools.partial(jax.jit, static_argnames="intercept")
def _solved(
    moments: Moments, start: Array, shrinkage: Array | float, intercept: bool
) -> tuple[Array, Array]:
    def one(rows: Array, gram: Array, cross: Array, target: Array, v: Array) -> tuple[Array, Array]:
        unit = jnp.trace(gram) / len(gram)
        shift = shrinkage * jnp.where(unit > 0, unit, 1)  # of nothing: V stays
        if intercept:  # eliminated: what remains is of centred rows
            mean = rows / moments.count
            gram, cross = gram - jnp.outer(rows, mean), cross - jnp.outer(mean, target)
        factor = linalg.cho_factor(gram + shift * jnp.eye(len(gram), dtype=gram.dtype))
        right = cross - TIMES("kl,lo->ko", gram, v)
        found = linalg.cho_solve(factor, right)
        for _ in range(STEPS):
            rest = right - TIMES("kl,lo->ko", gram, found) - shift * found
            found = found + linalg.cho_solve(factor, rest)
        v = v + found
        offset = (target - TIMES("k,ko->o", rows, v)) / moments.count
        return v, offset if intercept else jnp.zeros_like(offset)

    return jax.vmap(one)(moments.rows, moments.gram, moments.cross, moments.target, start)


def squared_error_on_device(
    moments: Moments,
    weights: Float[Array | np.ndarray, "B K O"],
    offsets: Float[Array | np.ndarray, "B O"],
) -> float:
    """The squared error, see `ifjax.reconstruction.ridge.squared_error`."""
    dtype = moments.gram.dtype
    found = _errors(moments, jnp.asarray(weights, dtype), jnp.asarray(offsets, dtype))
    return max(float(np.asarray(found, np.float64).sum()), 0.0)


@jax.jit
def _errors(moments: Moments, weights: Array, offsets: Array) -> Float[Array, "B O"]:
    """By output; centred where there is an offset, as far as the sums can be."""
    read = TIMES("bkl,blo->bko", moments.gram, weights)
    found = moments.square + (weights * (read - 2 * moments.cross)).sum(1)
    shifted = moments.count * offsets - 2 * moments.target
    shifted = shifted + 2 * TIMES("bk,bko->bo", moments.rows, weights)
    return found + offsets * shifted
