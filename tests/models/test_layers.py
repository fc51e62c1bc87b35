from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from ifjax.models.layers import batch_norm, conv


@pytest.mark.parametrize(("size", "stride"), [(1, 2), (3, 2), (7, 2), (3, 1)])
def test_convolution_pads_both_sides_alike(size, stride):
    x = np.random.default_rng(0).normal(size=(1, 8, 6, 2)).astype(np.float32)
    layer = conv(3, size, stride, bias=True)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    side = size // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (side, side), (side, side), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    expected = np.einsum("bhwikl,klio->bhwo", patches[:, ::stride, ::stride], kernel)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), expected, atol=1e-5)


def test_bias_is_an_option():
    struct = jax.eval_shape(conv(3, 3).init, jax.random.key(0), np.zeros((1, 4, 4, 2), "f"))
    assert set(struct["params"]) == {"kernel"}


def test_batch_norm_is_torchs():
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    layer: nn.BatchNorm = batch_norm(train=True, name="bn")
    variables = layer.init(jax.random.key(0), x)
    y, new = layer.apply(variables, x, mutable=["batch_stats"])
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * exact.mean(0), atol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * exact.var(0), atol=1e-6)
