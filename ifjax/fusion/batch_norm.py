"""Batch norms: folded into their kernels before fusion, and refit afterwards.

A batch norm with scale g, offset b, mean mu and variance v after a kernel W is, in eval mode, the
affine map a (W x - mu) + b with a = g / sqrt(v + eps). Folding writes it as W_f x - mu_f + b with
W_f = a W, mu_f = a mu: kernel, bias and mean are scaled, and what is left of the norm has unit
slope. Any linear map A of the neurons can then be applied to W_f, mu_f and b alike. Afterwards the
norm is refit: with any slope alpha and any spread s, kernel A W_f / alpha, mean A mu_f / alpha,
scale s sign(alpha) and variance s^2 / alpha^2 - eps are the same function in eval mode, exactly.

s is what makes train mode continue from there: the standard deviation of the fused norm's output.
alpha is chosen so that weights keep their units: it is A |a| with the sign of the target's a. Then
a kernel row is an average of the rows (up to sign) that went into it, neurons that are equal keep
their kernel, mean and variance, and the optimizer's moments of the kept neurons go on fitting.
"""

from __future__ import annotations

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from ifjax.namespace import AnyArray, Arrays, along, namespace, others, total
from ifjax.structure.structure import BatchNorm


def fold(leaves: Arrays, norm: BatchNorm) -> dict[str, AnyArray]:
    """Scales kernel, bias and mean so that the norm's slope is one.

    Args:
      leaves: arrays by path, at least float32.
      norm: the batch norm to fold.

    Returns:
      The leaves that change, by path. Scale and variance still hold their values, for `spread` and
      `refit`.
    """
    paths = [p for p in (norm.kernel, norm.bias, norm.mean) if p is not None]
    kernel, *vectors = (leaves[p] for p in paths)
    a = leaves[norm.scale] / namespace(kernel).sqrt(leaves[norm.variance] + norm.eps)
    scaled = [kernel * along(a, norm.axis, kernel.ndim), *(v * a for v in vectors)]
    return dict(zip(paths, scaled, strict=True))


def slope(
    kernel: Float[AnyArray, "*shape"],
    scale: Float[AnyArray, " n"],
    variance: Float[AnyArray, " n"],
    axis: int,
    eps: float,
) -> Float[AnyArray, " n"]:
    """The size of a = g / sqrt(v + eps); of a dead channel zero.

    Args:
      kernel: a channel with a row of zeros is dead.
      scale: g.
      variance: v.
      axis: the output axis of the kernel.
      eps: of the norm.

    Returns:
      The sizes.
    """
    xp = namespace(kernel)
    size = xp.where(row_norms(kernel, axis) > 0, xp.abs(scale), 0)
    return size / xp.sqrt(variance + eps)


def spread(
    kernel: Float[AnyArray, "*shape"], scale: Float[AnyArray, " n"], axis: int
) -> Float[AnyArray, "*shape"]:
    """Rows g_i W_i / |W_i|: their Gram matrix models the covariance of the norm's output.

    The correlation of two channels before the norm is modelled by the cosine of their kernels, so
    that after it channel i has standard deviation |g_i|. A linear map of the rows gives rows whose
    norms are the standard deviations after fusion. Folding changes a row by a factor of the sign of
    g_i, so that of a folded kernel the same rows are those of |g_i|.

    Args:
      kernel: the kernel W.
      scale: g, one per output channel.
      axis: the output axis of the kernel.

    Returns:
      An array of the kernel's shape.
    """
    xp, length = namespace(kernel), row_norms(kernel, axis)
    return kernel * along(scale / xp.where(length > 0, length, 1), axis, kernel.ndim)


def unfold(
    leaves: Arrays,
    norm: BatchNorm,
    spread_rows: Float[AnyArray, "*shape"],
    alpha: Float[AnyArray, " m"],
    dtype: DTypeLike = np.float32,
) -> dict[str, AnyArray]:
    """A folded and fused norm with the slope alpha, and the kernel before it divided by alpha.

    Args:
      leaves: folded and fused arrays by path.
      norm: the batch norm.
      spread_rows: `spread` after the map A of the kernel's output axis.
      alpha: the slope wanted; where it is zero, one.
      dtype: that the variance is stored in; the scale is fitted to the rounded variance.

    Returns:
      The leaves that change, by path.
    """
    paths = [p for p in (norm.kernel, norm.bias, norm.mean) if p is not None]
    alpha = namespace(alpha).where(alpha == 0, 1, alpha)
    kernel, *vectors = (leaves[p] for p in paths)
    divided = [kernel / along(alpha, norm.axis, kernel.ndim), *(v / alpha for v in vectors)]
    scale, variance = refit(spread_rows, alpha, norm.axis, norm.eps, dtype)
    return {**dict(zip(paths, divided, strict=True)), norm.scale: scale, norm.variance: variance}


def refit(
    spread_rows: Float[AnyArray, "*shape"],
    alpha: Float[AnyArray, " m"],
    axis: int,
    eps: float,
    dtype: DTypeLike = np.float32,
) -> tuple[Float[AnyArray, " m"], Float[AnyArray, " m"]]:
    """Scale and variance that give a norm the slope alpha.

    scale_j = s_j sign(alpha_j), variance_j = s_j^2 / alpha_j^2 - eps with
    s_j^2 = sum_ik A_ji A_jk |g_i g_k| rho_ik, where rho is the cosine of the kernels; at least
    eps alpha_j^2, so that no variance is negative. Eval mode is exact for any s_j.

    Args:
      spread_rows: `spread` after the map A of the kernel's output axis.
      alpha: the slope of every channel, not zero.
      axis: the output axis of the kernel.
      eps: of the norm.
      dtype: that the variance is stored in; the scale is fitted to the rounded variance.

    Returns:
      Scale and variance.
    """
    xp = namespace(spread_rows)
    before = xp.square(row_norms(spread_rows, axis) / alpha)  # the variance of what is normalised
    # a dead channel (all its rows zero) gets any slope, but not 0/0
    before = xp.where(before > xp.maximum(eps, 1e-12), before, eps if eps > 0 else 1.0)
    variance = (before - eps).astype(dtype).astype(before.dtype)
    return alpha * xp.sqrt(variance + eps), variance


def row_norms(kernel: Float[AnyArray, "*shape"], axis: int) -> Float[AnyArray, " n"]:
    """The 2-norms of the rows that lie along an axis; derivatives are finite, also at zero."""
    xp, squares = namespace(kernel), total(kernel * kernel, others(kernel, axis))
    # Two choices, for the derivative of a root at zero is infinite.
    return xp.where(squares > 0, xp.sqrt(xp.where(squares > 0, squares, 1)), 0)
