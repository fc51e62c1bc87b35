from __future__ import annotations

import jax
import numpy as np

from ifjax.models import BasicBlock, Bottleneck
from tests.models.compression import drawn


def conv(kernel, x, stride=1):
    size = kernel.shape[0]
    side = size // 2
    x = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return np.einsum("bhwikl,klio->bhwo", patches[:, ::stride, ::stride], kernel)


def check(block, expected):
    """Compare a block with its definition in float64."""
    x = np.random.default_rng(1).normal(size=(2, 6, 5, 3)).astype(np.float32)
    variables = drawn(jax.eval_shape(block.init, jax.random.key(0), x))
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)

    def layer(conv_name, bn_name, y, stride=1):
        y = conv(exact["params"][conv_name]["kernel"], y, stride)
        stats, affine = exact["batch_stats"][bn_name], exact["params"][bn_name]
        y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        return y * affine["scale"] + affine["bias"]

    want = expected(layer, x.astype(np.float64))
    assert (want > 0).any()
    np.testing.assert_allclose(jax.jit(block.apply)(variables, x), want, atol=1e-5)


def test_bottleneck_strides_in_its_second_convolution():
    def expected(layer, x):
        y = np.maximum(layer("conv1", "bn1", x), 0)
        y = np.maximum(layer("conv2", "bn2", y, stride=2), 0)
        y = layer("conv3", "bn3", y)
        return np.maximum(y + layer("shortcut_conv", "shortcut_bn", x, stride=2), 0)

    check(Bottleneck((2, 4), 5, stride=2, project=True), expected)


def test_bottleneck_with_identity_shortcut():
    def expected(layer, x):
        y = np.maximum(layer("conv1", "bn1", x), 0)
        y = np.maximum(layer("conv2", "bn2", y), 0)
        return np.maximum(layer("conv3", "bn3", y) + x, 0)

    check(Bottleneck((4, 2), 3), expected)


def test_basic_block_with_projection():
    def expected(layer, x):
        y = np.maximum(layer("conv1", "bn1", x, stride=2), 0)
        y = layer("conv2", "bn2", y)
        return np.maximum(y + layer("shortcut_conv", "shortcut_bn", x, stride=2), 0)

    check(BasicBlock(4, 5, stride=2, project=True), expected)
