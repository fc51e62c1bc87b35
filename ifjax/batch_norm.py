"""Batch norms: folded into their kernels before fusion, and refit afterwards.

A batch norm with scale g, offset b, mean mu and variance v after a kernel W is, in eval mode, the
affine map a (W x - mu) + b with a = g / sqrt(v + eps). Folding writes it as W_f x - mu_f + b with
W_f = a W, mu_f = a mu: kernel, bias and mean are scaled, and what is left of the norm has unit
slope. Any linear map of the neurons can then be applied to W_f, mu_f and b alike, and afterwards
scale s and variance s^2 - eps give the norm its unit slope back, exactly, for any s.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ifjax.spec import BatchNorm


def fold(leaves: Mapping[str, Any], norms: Iterable[BatchNorm]) -> dict[str, Any]:
    """Scales kernels, biases and means so that the norms' slope is one; the rest is unchanged.

    Args:
      leaves: arrays by path, at least float32.
      norms: the batch norms to fold.

    Returns:
      New leaves by path. Scale and variance still hold their values, for `spread` and `refit`.
    """
    folded = dict(leaves)
    for norm in norms:
        paths = [p for p in (norm.bias, norm.mean) if p is not None]
        kernel, *vectors = _scaled(
            leaves[norm.kernel],
            [leaves[p] for p in paths],
            leaves[norm.scale],
            leaves[norm.variance],
            norm.axis,
            norm.eps,
        )
        folded.update(zip(paths, vectors, strict=True))
        folded[norm.kernel] = kernel
    return folded


@functools.partial(jax.jit, static_argnames=("axis", "eps"))
def _scaled(
    kernel: Array, vectors: list[Array], scale: Array, variance: Array, axis: int, eps: float
) -> list[Array]:
    slope = scale / jnp.sqrt(variance + eps)
    return [kernel * _along(slope, axis, kernel.ndim), *(v * slope for v in vectors)]


@functools.partial(jax.jit, static_argnames=("axis",))
def spread(
    folded_kernel: Float[Array, "*shape"], scale: Float[Array, " n"], axis: int
) -> Float[Array, "*shape"]:
    """The kernel with rows of norm |g|: its Gram matrix models the covariance of the norm's output.

    The correlation of two channels before the norm is modelled by the cosine of their kernels, so
    that after it channel i has standard deviation |g_i|. A linear map of the rows gives rows whose
    norms are the standard deviations after fusion.

    Args:
      folded_kernel: the kernel after `fold`.
      scale: g, one per output channel.
      axis: the output axis of the kernel.

    Returns:
      An array of the kernel's shape.
    """
    length = _row_norms(folded_kernel, axis)
    unit = jnp.where(length > 0, jnp.abs(scale) / jnp.where(length > 0, length, 1), 0)
    return folded_kernel * _along(unit, axis, folded_kernel.ndim)


@functools.partial(jax.jit, static_argnames=("axis", "eps", "dtype"))
def refit(
    spread_rows: Float[Array, "*shape"], axis: int, eps: float, dtype: Any = jnp.float32
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Scale and variance of a folded and fused norm that give it unit slope.

    s_j^2 = sum_ik A_ji A_jk |g_i g_k| rho_ik, with rho the cosine of the kernels; at least eps, so
    that the stored variance s_j^2 - eps is not negative. Eval mode is exact for any s_j.

    Args:
      spread_rows: `spread` after the map A of the kernel's output axis.
      axis: that axis.
      eps: of the norm.
      dtype: that the variance is stored in; the scale is fitted to the rounded variance.

    Returns:
      Scale and variance.
    """
    squared = jnp.square(_row_norms(spread_rows, axis))
    # a dead channel (all its rows zero) gets any slope, but not 0/0
    floor = eps if eps > 0 else 1.0
    squared = jnp.where(squared > jnp.maximum(eps, 1e-12), squared, floor)
    variance = (squared - eps).astype(dtype).astype(squared.dtype)
    return jnp.sqrt(variance + eps), variance


def _along(vector: Float[Array, " n"], axis: int, ndim: int) -> Array:
    """A vector shaped to multiply along one axis."""
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _row_norms(kernel: Float[Array, "*shape"], axis: int) -> Float[Array, " n"]:
    rest = tuple(i for i in range(kernel.ndim) if i != axis)
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=rest))
