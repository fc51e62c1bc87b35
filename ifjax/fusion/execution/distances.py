"""Distances between neurons for parameters on the host: one program of fixed size on the device.

`ifjax.transport.costs.cost_matrix` is compiled for every shape, which takes longer than all else
that is done with a network once. Here a tile of fixed size is compiled, once per kind of norm, and
called for every block of sources, targets and features; small problems are left to SciPy.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ifjax.namespace import AnyArray

# Differences |x - y| that SciPy takes in the time that a tile takes to be begun.
_SMALL = 2**23
# Pairs whose squared distance, relative to their squared norms, is below this lose digits in a
# product of matrices, and are computed again.
_NEAR = 1 / 32


def distances(
    x: Float[np.ndarray, "d n"], y: Float[np.ndarray, "d m"], p: float | int | str
) -> Float[np.ndarray, "n m"]:
    """`ifjax.transport.costs.cost_matrix` of features that lie as columns, in numpy.

    >>> distances(np.array([[0.0, 3.0], [2.0, 4.0]]), np.array([[0.0], [1.0]]), 1).tolist()
    [[1.0], [6.0]]
    """
    if isinstance(p, str) or p == 2:
        return _euclidean(x, y, p)
    if x.shape[0] * x.shape[1] * y.shape[1] <= _SMALL:
        return _by_scipy(x, y, p)
    if p == 1:
        return _tiled(x, y, 1.0)
    largest = _tiled(x, y, math.inf)
    if math.isinf(p):
        return largest
    # Relative to the largest difference, so that high powers of small numbers do not vanish.
    scale = np.where(largest >= np.finfo(largest.dtype).tiny, largest, 1)
    return scale * _tiled(x, y, float(p), 1 / scale) ** (1 / p)


def _by_scipy(x: np.ndarray, y: np.ndarray, p: float | int) -> np.ndarray:
    from scipy.spatial.distance import cdist

    if p == 1 or math.isinf(p):
        return cdist(x.T, y.T, "cityblock" if p == 1 else "chebyshev").astype(x.dtype)
    return cdist(x.T, y.T, "minkowski", p=p).astype(x.dtype)


def _euclidean(x: np.ndarray, y: np.ndarray, p: float | int | str) -> np.ndarray:
    """Euclidean distances, or one minus the cosine: by a product, near pairs pair by pair."""
    dtype = x.dtype
    x, y = x.T, y.T
    sizes = [np.einsum("nd,nd->n", z, z, dtype=np.float64) for z in (x, y)]
    if p == "cosine":
        zero = (sizes[0] == 0)[:, None] ^ (sizes[1] == 0)
        x, y = (
            z / np.sqrt(np.where(s > 0, s, 1))[:, None].astype(dtype)
            for z, s in zip((x, y), sizes, strict=True)
        )
        sizes = [(s > 0).astype(np.float64) for s in sizes]
    size = sizes[0][:, None] + sizes[1]
    square = np.maximum(size - 2.0 * (x @ y.T), 0)
    rows, columns = np.nonzero(square < _NEAR * size)
    step = max(1, _SMALL // x.shape[1])
    for i in range(0, len(rows), step):
        a, b = rows[i : i + step], columns[i : i + step]
        difference = x[a] - y[b]
        square[a, b] = np.einsum("kd,kd->k", difference, difference, dtype=np.float64)
    found = np.where(zero, 1, square / 2) if p == "cosine" else np.sqrt(square)
    return found.astype(dtype)


def _tiled(x: np.ndarray, y: np.ndarray, p: float, by: np.ndarray | None = None) -> np.ndarray:
    """Folds |x_ik - y_jk| over the features k: the sum of powers, or the largest."""
    n, m, side = x.shape[1], y.shape[1], _side()
    rows, columns = _blocks(x, side), _blocks(y, side)
    scales = None if by is None else _blocks(by, side)
    totals: dict[tuple[int, int], AnyArray] = {}
    for k in range(rows.shape[0]):  # feature after feature, so that tiles run side by side
        for i in range(rows.shape[1]):
            for j in range(columns.shape[1]):
                total = totals.get((i, j), np.zeros((side, side), x.dtype))
                scale = None if scales is None else scales[i, j]
                totals[i, j] = _tile(total, rows[k, i], columns[k, j], scale, p=p, chunk=_chunk())
    found = np.empty((rows.shape[1] * side, columns.shape[1] * side), x.dtype)
    for (i, j), total in totals.items():
        found[i * side : (i + 1) * side, j * side : (j + 1) * side] = total
    return found[:n, :m]


def _side() -> int:
    return 256 if jax.default_backend() == "cpu" else 512


def _chunk() -> int:
    """Features a step: XLA fuses so many into one loop over the tile. Accelerators start fewer."""
    return 16 if jax.default_backend() == "cpu" else 64


def _blocks(x: np.ndarray, side: int) -> np.ndarray:
    """A matrix as ``[i, j, side, side]``, filled up with zeros."""
    rows, columns = (-(-size // side) for size in x.shape)
    whole = np.zeros((rows * side, columns * side), x.dtype)
    whole[: x.shape[0], : x.shape[1]] = x
    return np.ascontiguousarray(whole.reshape(rows, side, columns, side).swapaxes(1, 2))


@functools.partial(jax.jit, static_argnames=("p", "chunk"))
def _tile(total: Array, x: Array, y: Array, by: Array | None, p: float, chunk: int) -> Array:
    """One block of features ``[d, n]`` and ``[d, m]`` more.

    A sum over an axis of ``|x[:, :, None] - y[:, None]|`` says the same, but XLA for GPUs tunes it
    for a minute.
    """

    def step(i: Array, total: Array) -> Array:
        u, v = (jax.lax.dynamic_slice_in_dim(z, i * chunk, chunk) for z in (x, y))
        for k in range(chunk):
            t = jnp.abs(u[k, :, None] - v[k])
            if math.isinf(p):
                total = jnp.maximum(total, t)
            else:
                total = total + (t if p == 1 or by is None else (t * by) ** p)
        return total

    return jax.lax.fori_loop(0, x.shape[0] // chunk, step, total)
