"""Pieces that several bare functions of the zoo share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def layer_norm(x, scale, offset, axis=-1):
    x = x - x.mean(axis, keepdims=True)
    return x * lax.rsqrt((x * x).mean(axis, keepdims=True) + 1e-6) * scale + offset


def rms_norm(x, scale):
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale


def batch_norm(p, name, x):
    mean, variance = p[f"{name}_mean"], p[f"{name}_var"]
    return (x - mean) / jnp.sqrt(variance + 1e-5) * p[f"{name}_scale"] + p[f"{name}_offset"]


def norm_shapes(name, n):
    return {f"{name}_{k}": (n,) for k in ("mean", "var", "scale", "offset")}


def conv(x, kernel, stride=1, groups=1, **options):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        options.pop("padding", "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        **options,
    )


def attend(q, k, v, bias=0.0):
    """Attention of [b, t, h, d], softmax over the keys."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(4.0) + bias
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


def causal(length):
    return jnp.where(jnp.tril(jnp.ones((length, length), bool)), 0.0, -1e9)


def rotary(x):
    """Rotates pairs of halves of the last axis by the position on axis 1 (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 10.0 ** -jnp.arange(half)
    sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
