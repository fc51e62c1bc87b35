"""A map of neurons times an array that holds them, where every target has few sources.

A vertex of the transport polytope, which the exact solver returns, has at most n + m - 1 positive
entries: a target has about n / m sources. On a CPU it is then ten times faster to gather and add
the neurons of an array than to multiply it by the dense map. Elsewhere the product is faster.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ifjax.parallel import placement as mesh
from ifjax.parallel import ring

# Below these sizes a product takes no longer than gathers: neurons per source of a target (a gather
# costs about as much as 24 multiply-adds), and entries of the array per neuron.
_NEURONS = 24
_ENTRIES = 32
# What rounding leaves where a plan has no entry, relative to the largest of a row.
_ROUNDING = 1e-9


class NeuronMap(NamedTuple):
    """A matrix that neurons are multiplied by, and its rows as lists of sources.

    Attributes:
      matrix: row j holds the weights of the neurons that become neuron j.
      sources: the neurons of the largest weights in every row; none where lists do not pay.
      weights: these weights.
      complete: whether the lists hold every entry of the matrix that is not zero.
    """

    matrix: Float[Array, "m n"]
    sources: Int[Array, "m k"]
    weights: Float[Array, "m k"]
    complete: Bool[Array, ""]


def neuron_map(matrix: Float[Array, "m n"], kept: int | None) -> NeuronMap:
    """Lists the largest entries of every row: one more than the sources that a target has.

    Args:
      matrix: weights, not negative.
      kept: number of targets; the matrix may have further rows of zeros. None for no lists.

    Returns:
      The matrix with its lists.

    Example:
      >>> import jax.numpy as jnp
      >>> found = neuron_map(jnp.tile(jnp.eye(64), (1, 2)), 64)
      >>> found.sources.shape, bool(found.complete)
      ((64, 3), True)
    """
    n = matrix.shape[1]
    count = math.ceil(n / kept) + 1 if kept else 0
    if count * _NEURONS > n or mesh.active():
        count = 0
    # Behind a barrier: XLA would sort all of every row where only slices of the result are read.
    found = jax.lax.optimization_barrier(jax.lax.top_k(matrix, count)) if count else None
    weights, sources = found or (matrix[:, :0], jnp.zeros((matrix.shape[0], 0), jnp.int32))
    least = _ROUNDING * jnp.max(matrix, axis=1, keepdims=True)
    return NeuronMap(matrix, sources, weights, jnp.all(jnp.sum(matrix > least, axis=1) <= count))


def of_multiples(by: NeuronMap, factors: Float[Array, " n"]) -> NeuronMap:
    """The map of neurons that are multiplied by factors before.

    Example:
      >>> import jax.numpy as jnp
      >>> found = of_multiples(neuron_map(jnp.array([[0.5, 0.5]]), 1), jnp.array([2.0, 4.0]))
      >>> found.matrix.tolist()
      [[1.0, 2.0]]
    """
    return by._replace(matrix=by.matrix * factors, weights=by.weights * factors[by.sources])


def times(
    by: NeuronMap, x: Float[Array, "*full"], axis: int, whole: bool = False
) -> Float[Array, "*small"]:
    """The neurons along one axis multiplied by a map: out_j = sum_i by_ji x_i.

    Gathers where lists pay and hold every entry, else a product in full precision.

    Args:
      by: made by `neuron_map`.
      x: holds n neurons along ``axis``.
      axis: from 0.
      whole: the lists are known to be complete, as for a vertex with uniform marginals where m
        divides n. Spares the compilation of the product; NaN if they are not.

    Returns:
      The array with m neurons along ``axis``, in the dtype of ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> times(neuron_map(jnp.array([[0.5, 0.5]]), 1), jnp.array([[1.0, 3.0]]), 1).tolist()
      [[2.0]]
    """
    if not by.sources.shape[1] or x.size < _ENTRIES * x.shape[axis]:
        return _product(by, x, axis)

    # Barriers keep XLA from fusing gathers into each other and into what follows: 3 x slower.
    def gathered() -> Array:
        weights = jnp.where(by.complete, by.weights, jnp.nan)
        found, sources, weights = jax.lax.optimization_barrier((x, by.sources, weights))
        return jax.lax.optimization_barrier(_gathered(found, sources, weights, axis))

    def product() -> Array:
        return _product(by, x, axis)

    def lists() -> Array:
        return gathered() if whole else jax.lax.cond(by.complete, gathered, product)

    return jax.lax.platform_dependent(cpu=lists, default=product)


def _product(by: NeuronMap, x: Array, axis: int) -> Array:
    return ring.product(by.matrix.astype(x.dtype), x, axis)


def _gathered(x: Array, sources: Array, weights: Array, axis: int) -> Array:
    # With three axes the gathers stay in the order of the result; else XLA transposes at the end.
    rows = x.reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))
    take = jax.vmap(lambda row, index: row.at[index].get(mode="clip"), (0, None))
    weights = weights.astype(x.dtype)[None, :, :, None]
    terms = [weights[:, :, k] * take(rows, sources[:, k]) for k in range(weights.shape[2])]
    return sum(terms[1:], terms[0]).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
