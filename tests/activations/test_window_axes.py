"""Axes that windows slide along, through whatever lies between them and the input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from ifjax.activations.window_axes import window_axes
from ifjax.jaxprs.program import flatten

W = jnp.ones((3, 3, 3, 4))  # HWIO


def conv(w, x):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.promotes(dtypes="flax's pooling divides by an integer")
@pytest.mark.parametrize(
    ("apply", "shape", "axes"),
    [
        (conv, (2, 8, 8, 3), (1, 2)),
        (lambda w, x: conv(w, (x.transpose(0, 2, 3, 1) - 0.5) / 2), (2, 3, 8, 8), (2, 3)),
        (lambda w, x: jax.vmap(lambda y: conv(w, y[None])[0])(x), (2, 8, 8, 3), (1, 2)),
        (
            lambda w, x: jax.jit(conv)(w, jnp.pad(x[..., None], [(0, 0)] * 3 + [(0, 2)])),
            (2, 8, 8),
            (1, 2),
        ),
        (lambda w, x: nn.avg_pool(x, (2,), (2,)) @ w[0, 0], (2, 8, 3), (1,)),
        (lambda w, x: conv(w, x.reshape(2, 8, 8, 3)), (2, 192), ()),
        (lambda w, x: x @ w[0, 0], (2, 8, 3), ()),
    ],
    ids=["last", "first", "vmap", "padded", "pooled", "split", "dense"],
)
def test_they_are_found(apply, shape, axes):
    jaxpr = jax.make_jaxpr(apply)(W, jnp.ones(shape))
    assert window_axes(flatten(jaxpr, [False, True]), 1, len(shape)) == axes
