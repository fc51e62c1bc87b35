"""The ridge solution on an accelerator, in the precision that the sums were made in.

Cholesky's factor is backward stable: its solution is that of a matrix as near to the given one as
the sums are to exact ones. A step of refinement takes what is left over.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ifjax.activations.moments import Moments
from ifjax.parallel.hosts import on_host
from ifjax.parallel.matrices import TIMES, mesh_of, placed, solver

STEPS = 1  # of refinement


def ridge_on_device(
    moments: Moments,
    start: Float[Array | np.ndarray, "B K O"],
    shrinkage: float,
    intercept: bool,
) -> tuple[Float[Array, "B K O"], Float[Array, "B O"]]:
    """Weights and offsets, see `ifjax.reconstruction.ridge.ridge`.

    Args:
      moments: sums over the positions, on the device, or spread over a mesh.
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
    mesh = mesh_of(moments.gram)
    start = placed(_as(start, moments.gram.dtype), mesh)
    if shrinkage == math.inf:
        rest = moments.target - TIMES("bk,bko->bo", moments.rows, start)
        return start, rest / moments.count if intercept else jnp.zeros_like(rest)
    while True:
        solved, offsets = _solved(moments, start, shrinkage, intercept, mesh)
        if bool(jnp.isfinite(solved).all()):
            return solved, offsets
        shrinkage *= 10


def _as(x: Any, dtype: Any) -> Any:
    """An array in a dtype, where it is."""
    return x.astype(dtype) if isinstance(x, jax.Array) else np.asarray(x, dtype)


@functools.partial(jax.jit, static_argnames=("intercept", "mesh"))
def _solved(
    moments: Moments, start: Array, shrinkage: Array | float, intercept: bool, mesh: Mesh | None
) -> tuple[Array, Array]:
    rows, gram, cross, target, n = *moments[1:5], moments.gram.shape[1]
    unit = jnp.trace(gram, axis1=1, axis2=2) / n
    shift = (shrinkage * jnp.where(unit > 0, unit, 1))[:, None, None]  # of nothing: V stays
    if intercept:  # eliminated: what remains is of centred rows
        mean = rows / moments.count
        gram = gram - rows[:, :, None] * mean[:, None]
        cross = cross - mean[:, :, None] * target[:, None]
    gram = placed(gram, mesh)
    solve = solver(gram + shift * jnp.eye(n, dtype=gram.dtype), mesh)
    right = placed(cross - TIMES("bkl,blo->bko", gram, start), mesh)
    found = solve(right)
    for _ in range(STEPS):
        found = found + solve(
            right - placed(TIMES("bkl,blo->bko", gram, found), mesh) - shift * found
        )
    v = placed(start + found, mesh)
    offset = (target - TIMES("bk,bko->bo", rows, v)) / moments.count
    return v, offset if intercept else jnp.zeros_like(offset)


def squared_error_on_device(
    moments: Moments,
    weights: Float[Array | np.ndarray, "B K O"],
    offsets: Float[Array | np.ndarray, "B O"],
) -> float:
    """The squared error, see `ifjax.reconstruction.ridge.squared_error`."""
    dtype, mesh = moments.gram.dtype, mesh_of(moments.gram)
    weights = placed(_as(weights, dtype), mesh)
    found = _errors(moments, weights, jnp.asarray(offsets, dtype), mesh)
    return max(float(on_host(found, np.float64).sum()), 0.0)


@functools.partial(jax.jit, static_argnames="mesh")
def _errors(
    moments: Moments, weights: Array, offsets: Array, mesh: Mesh | None
) -> Float[Array, "B O"]:
    """By output; centred where there is an offset, as far as the sums can be."""
    read = placed(TIMES("bkl,blo->bko", moments.gram, weights), mesh)
    found = moments.square + (weights * (read - 2 * moments.cross)).sum(1)
    shifted = moments.count * offsets - 2 * moments.target
    shifted = shifted + 2 * TIMES("bk,bko->bo", moments.rows, weights)
    return found + offsets * shifted
