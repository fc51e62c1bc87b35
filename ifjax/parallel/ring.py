"""Products and distances of arrays that lie spread over devices: blocks go round."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Inexact

from ifjax.parallel.placement import devices_over, names_over, other_axis, split_along, whole_along

# Bytes of rows that a device sends at once: as many arrive at the same time.
_BLOCK = 2**24


def _padded(x: Array, axis: int, k: int) -> Array:
    """To a multiple of k, by zeros."""
    width = -x.shape[axis] % k
    return jnp.pad(x, [(0, width * (i == axis)) for i in range(x.ndim)]) if width else x


def _ring(k: int) -> list[tuple[int, int]]:
    return [(i, (i + 1) % k) for i in range(k)]


def pairwise(
    distance: Callable[[Array, Array], Array],
    x: Float[Array, "_ _"],
    y: Float[Array, "_ _"],
    axis: int = 0,
) -> Float[Array, "n m"]:
    """Distances between two sets of rows, those of x spread: blocks of y go round the devices.

    Args:
      distance: of ``x`` and of some rows of ``y``, as a matrix with a row per row of ``x``.
      x: one set, ``[n, d]``.
      y: the other, ``[m, d]``.
      axis: 1 where the rows lie as columns.

    Example:
      >>> pairwise(lambda x, y: abs(x - y.T), jnp.array([[0.0], [3.0]]), jnp.array([[1.0]]))
      Array([[1.],
             [2.]], dtype=float32)
    """
    n, m = x.shape[axis], y.shape[axis]
    names = names_over(min(n, m))
    if not names:
        return distance(x, y)
    k = devices_over(names)
    # The rows of a device go round in so many parts: a power of two, which mostly divides them.
    parts = 1
    while parts < m // k and y.size * y.dtype.itemsize > k * parts * _BLOCK:
        parts *= 2
    rows = -(-m // (k * parts))

    def local(x: Array, y: Array) -> Array:
        me = jax.lax.axis_index(names)

        def round_of(cost: Array, part: Array) -> tuple[Array, None]:
            def step(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
                block, cost = state
                column = ((me - i) % k * parts + part) * rows
                cost = jax.lax.dynamic_update_slice(cost, distance(x, block), (0 * column, column))
                return (jax.lax.ppermute(block, names, _ring(k)), cost), None

            block = jax.lax.dynamic_slice_in_dim(y, part * rows, rows, axis)
            return jax.lax.scan(step, (block, cost), jnp.arange(k))[0][1], None

        shape = jax.eval_shape(distance, x, y)
        cost = jnp.zeros((shape.shape[0], k * parts * rows), shape.dtype)
        return jax.lax.scan(round_of, cost, jnp.arange(parts))[0]

    split = _only(x, axis, names)
    # Without the check, which wants the distance to know of the mesh.
    run = jax.shard_map(local, in_specs=(split, split), out_specs=P(names), check_vma=False)
    cost = run(
        _padded(split_along(x, axis), axis, k), _padded(split_along(y, axis), axis, k * parts)
    )
    return cost[:n, :m]


def product(by: Inexact[Array, "m n"], x: Array, axis: int) -> Array:
    """An axis of a leaf multiplied by a matrix that is spread along its n columns.

    What goes round the devices is the smaller: partial sums of the result, or the matrix, a block
    at a time.

    >>> product(jnp.array([[1.0, 1.0]]), jnp.array([[1.0, 2.0], [3.0, 4.0]]), 0)
    Array([[4., 6.]], dtype=float32)
    """
    (m, n), other = by.shape, other_axis(x.shape, axis)
    if other is not None and x.size >= n * n and (names := names_over(min(n, x.shape[other]))):
        return _of_moving_matrix(by, x, axis, other, names)
    if other is not None and (names := names_over(min(m, n))):
        return _of_moving_sums(by, x, axis, names)
    return _multiplied(by, x, axis)


def _multiplied(by: Array, x: Array, axis: int) -> Array:
    y = jnp.tensordot(by, x, (1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(y, 0, axis)


def _of_moving_matrix(by: Array, x: Array, axis: int, other: int, names: tuple[str, ...]) -> Array:
    """With another axis of the leaf spread."""
    k = devices_over(names)
    block = -(-by.shape[1] // k)

    def local(by: Array, x: Array) -> Array:
        me = jax.lax.axis_index(names)

        def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            by, total = carry
            part = jax.lax.dynamic_slice_in_dim(x, (me - i) % k * block, block, axis)
            total = total + _multiplied(by, part, axis)
            return (jax.lax.ppermute(by, names, _ring(k)), total), None

        total = _zeros(x, axis, by.shape[0], names)
        return jax.lax.scan(step, (by, total), jnp.arange(k))[0][1]

    split = _only(x, other, names)
    run = jax.shard_map(local, in_specs=(P(None, names), split), out_specs=split)
    y = run(_padded(by, 1, k), _padded(_padded(whole_along(x, axis), axis, k), other, k))
    return jax.lax.slice_in_dim(y, 0, x.shape[other], axis=other)


def _of_moving_sums(by: Array, x: Array, axis: int, names: tuple[str, ...]) -> Array:
    """With the multiplied axis spread, before and after."""
    k = devices_over(names)
    block = -(-by.shape[0] // k)

    def local(by: Array, x: Array) -> Array:
        me = jax.lax.axis_index(names)

        def step(total: Array, i: Array) -> tuple[Array, None]:
            rows = jax.lax.dynamic_slice_in_dim(by, (me - i - 1) % k * block, block)
            return jax.lax.ppermute(total, names, _ring(k)) + _multiplied(rows, x, axis), None

        return jax.lax.scan(step, _zeros(x, axis, block, names), jnp.arange(k))[0]

    split = _only(x, axis, names)
    run = jax.shard_map(local, in_specs=(P(None, names), split), out_specs=split)
    y = run(_padded(_padded(by, 0, k), 1, k), _padded(split_along(x, axis), axis, k))
    return jax.lax.slice_in_dim(y, 0, by.shape[0], axis=axis)


def _only(x: Array, axis: int, names: tuple[str, ...]) -> P:
    return P(*(names if i == axis else None for i in range(x.ndim)))


def _zeros(x: Array, axis: int, size: int, names: tuple[str, ...]) -> Array:
    """Like a part of an array, with another size along an axis."""
    zeros = jnp.zeros([size if i == axis else n for i, n in enumerate(x.shape)], x.dtype)
    return jax.lax.pcast(zeros, names, to="varying")
