"""Batch norms: folded into their kernels before fusion, and refit afterwards.

A batch norm with scale g, offset b, mean mu and variance v after a kernel W is, in eval mode, the
affine map a (W x - mu) + b with a = g / sqrt(v + eps). Folding writes it as W_f x - mu_f + b with
W_f = a W, mu_f = a mu: kernel, bias and mean are scaled, and what is left of the norm has unit
slope. Any linear map of the neurons can then be applied to W_f, mu_f and b alike, and afterwards
scale s and variance s^2 - eps give the norm its unit slope back, exactly, for any s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from ifjax.spec import BatchNorm

Leaves = Mapping[str, Array]


def fold(leaves: Leaves, norms: Iterable[BatchNorm]) -> dict[str, Array]:
    """Scales kernels, biases and means so that the norms' slope is one; the rest is unchanged.

    Args:
      leaves: full-precision arrays by path.
      norms: the batch norms to fold.

    Returns:
      New leaves by path. Scale and variance still hold their values, for `refit`.
    """
    folded = dict(leaves)
    for norm in norms:
        slope = leaves[norm.scale] / jnp.sqrt(leaves[norm.variance] + norm.eps)
        kernel = leaves[norm.kernel]
        folded[norm.kernel] = kernel * _along(slope, norm.axis, kernel.ndim)
        folded[norm.mean] = leaves[norm.mean] * slope
        if norm.bias is not None:
            folded[norm.bias] = leaves[norm.bias] * slope
    return folded


def spread(folded: Leaves, norm: BatchNorm) -> Float[Array, "..."]:
    """The kernel with rows of norm |g|: its Gram matrix models the covariance of the norm's output.

    The correlation of two channels before the norm is modelled by the cosine of their kernels, so
    that after it channel i has standard deviation |g_i|. A linear map of the rows gives rows whose
    norms are the standard deviations after fusion.

    Args:
      folded: leaves of `fold`.
      norm: one of the folded norms.

    Returns:
      An array of the kernel's shape.
    """
    kernel = folded[norm.kernel]
    length = _row_norms(kernel, norm.axis)
    scale = jnp.abs(folded[norm.scale])
    unit = jnp.where(length > 0, scale / jnp.where(length > 0, length, 1), 0)
    return kernel * _along(unit, norm.axis, kernel.ndim)


def refit(
    leaves: Leaves,
    norm: BatchNorm,
    spread_rows: Float[Array, "..."],
    rounding: Callable[[Array], Array] = lambda x: x,
) -> dict[str, Array]:
    """Gives a folded and mapped norm the scale and variance of its fused channels.

    s_j^2 = sum_ik A_ji A_jk |g_i g_k| rho_ik, with rho the cosine of the kernels; at least eps, so
    that the stored variance s_j^2 - eps is not negative. Eval mode is exact for any s_j.

    Args:
      leaves: folded leaves after all maps.
      norm: the norm.
      spread_rows: `spread` after the map of the kernel's output axis.
      rounding: rounds to the precision that the variance is stored in; the scale is fitted to it.

    Returns:
      The new scale and variance, by path.
    """
    squared = jnp.square(_row_norms(spread_rows, norm.axis))
    # a dead channel (all its rows zero) gets the unit of its dtype rather than 0/0
    floor = norm.eps if norm.eps > 0 else 1.0
    squared = jnp.where(squared > jnp.maximum(norm.eps, 1e-12), squared, floor)
    variance = rounding(squared - norm.eps)
    return {norm.scale: jnp.sqrt(variance + norm.eps), norm.variance: variance}


def _along(vector: Float[Array, " n"], axis: int, ndim: int) -> Array:
    """A vector shaped to multiply along one axis."""
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _row_norms(kernel: Float[Array, "..."], axis: int) -> Float[Array, " n"]:
    rest = tuple(i for i in range(kernel.ndim) if i != axis)
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=rest))
