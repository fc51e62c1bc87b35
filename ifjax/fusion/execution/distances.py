"""Distances between neurons for parameters on the host: one program of fixed size on the device.

`ifjax.transport.costs.cost_matrix` is compiled for every shape, which takes longer than all else
that is done with a network once. Here a few tiles of fixed size are compiled, once per kind of
norm, and called for all blocks of sources, targets and features; small problems are left to SciPy.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ifjax.jaxprs.compiling import default_platform

# Differences |x - y| that SciPy takes in the time that a tile takes to be begun.
_SMALL = 2**23
# Pairs whose squared distance, relative to their squared norms, is below this lose digits in a
# product of matrices, and are computed again.
_NEAR = 1 / 32
# Differences from which a second form of tile is compiled, in a tenth of the time that they take.
_LARGE = 2**33
# Calls that run, or wait to, while the blocks of the next one are laid out.
_AHEAD = 4


def distances(
    x: Float[np.ndarray, "d n"], y: Float[np.ndarray, "d m"], p: float | int | str
) -> Float[np.ndarray, "n m"]:
    """`ifjax.transport.costs.cost_matrix` of features that lie as columns, in numpy.

    >>> distances(np.array([[0.0, 3.0], [2.0, 4.0]]), np.array([[0.0], [1.0]]), 1).tolist()
    [[1.0], [6.0]]
    """
    x, y = (z.astype(np.result_type(x, y), copy=False) for z in (x, y))
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
    form = _form(x.shape[0] * x.shape[1] * y.shape[1])
    rows, columns = (_blocks(z, form.depth, form.side) for z in (x, y))
    scales = None if by is None else _blocks(by, form.side, form.side)
    found = np.zeros((rows.shape[1], columns.shape[1], form.side, form.side), x.dtype)
    fold = np.maximum if math.isinf(p) else np.add
    begun: deque[tuple[np.ndarray, Array]] = deque()

    def finish() -> None:
        places, tiles = begun.popleft()
        for (_, i, j), tile in zip(places, np.asarray(tiles), strict=False):
            fold(found[i, j], tile, out=found[i, j])

    # Blocks of features one after another, so that small problems fill the lanes with them.
    jobs = iter(np.ndindex(rows.shape[0], *found.shape[:2]))
    while some := list(itertools.islice(jobs, form.lanes)):
        places = np.array(some)
        k, i, j = places[np.arange(form.lanes) % len(some)].T  # what is left over is not read
        scale = None if scales is None else scales[i, j]
        tiles = (_wide_tiles if form.wide else _tiles)(rows[k, i], columns[k, j], scale, form, p)
        tiles.copy_to_host_async()
        begun.append((places, tiles))
        if len(begun) > _AHEAD:
            finish()
    while begun:
        finish()
    size = rows.shape[1] * form.side, columns.shape[1] * form.side
    return found.swapaxes(1, 2).reshape(size)[: x.shape[1], : y.shape[1]]


class _Form(NamedTuple):
    """Of a call: every lane takes a block of sources and one of targets, ``[depth, side]`` both."""

    lanes: int
    depth: int  # features
    side: int  # neurons
    chunk: int  # features a step: XLA fuses so many into one loop over the block
    wide: bool = False  # all of the processor's vectors


def _form(differences: int) -> _Form:
    """Few and large tiles where there is much to do; accelerators start few steps."""
    if default_platform() != "cpu":
        return _Form(1, 512, 512, 64)
    if differences < _LARGE:
        return _Form(8, 256, 128, 16, wide=True)
    return _Form(1, 512, 512, 16, wide=True)


def _blocks(x: np.ndarray, depth: int, side: int) -> np.ndarray:
    """A matrix as ``[i, j, depth, side]``, filled up with zeros."""
    rows, columns = -(-x.shape[0] // depth), -(-x.shape[1] // side)
    whole = np.zeros((rows * depth, columns * side), x.dtype)
    whole[: x.shape[0], : x.shape[1]] = x
    return whole.reshape(rows, depth, columns, side).swapaxes(1, 2)


def _folded(x: Array, y: Array, by: Array | None, form: _Form, p: float) -> Array:
    """Folds the features of blocks ``[lanes, depth, side]`` each: ``[lanes, side, side]``.

    A sum over an axis of ``|x[:, :, :, None] - y[:, :, None]|`` says the same, but XLA for GPUs
    tunes it for a minute.
    """

    def step(i: Array, total: Array) -> Array:
        u, v = (jax.lax.dynamic_slice_in_dim(z, i * form.chunk, form.chunk, 1) for z in (x, y))
        for k in range(form.chunk):
            t = jnp.abs(u[:, k, :, None] - v[:, k, None])
            if math.isinf(p):
                total = jnp.maximum(total, t)
            else:
                total = total + (t if p == 1 or by is None else (t * by) ** p)
        return total

    nothing = jnp.zeros((form.lanes, form.side, form.side), x.dtype)
    return jax.lax.fori_loop(0, form.depth // form.chunk, step, nothing)


_tiles = jax.jit(_folded, static_argnames=("form", "p"))
# Of vectors of 512 bits XLA uses 256 unless it is asked; CPUs with narrower ones do not mind.
_wide_tiles = jax.jit(
    _folded,
    static_argnames=("form", "p"),
    compiler_options={"xla_cpu_prefer_vector_width": 512},
)
