"""The blocks of residual networks: basic and bottleneck, with every width given explicitly.

He et al., Deep Residual Learning for Image Recognition (https://arxiv.org/abs/1512.03385).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ifjax.models.layers import batch_norm, conv


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them.

    Attributes:
        inner: the channels between the two convolutions.
        features: the channels of the output.
        stride: that of the first convolution and of the shortcut.
        pad: zero channels (before, after) the shortcut's (option A).
        project: project the shortcut by a 1x1 convolution and batch norm (option B).
        dtype: the dtype to compute in.
    """

    inner: int
    features: int
    stride: int = 1
    pad: tuple[int, int] = (0, 0)
    project: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch out_height out_width features"]:
        """``relu(residual(x) + shortcut(x))``.

        Args:
            x: the residual stream, NHWC.
            train: normalise with the statistics of the batch.

        Returns:
            The residual stream after the block.
        """
        dtype = self.dtype
        y = conv(self.inner, 3, self.stride, dtype=dtype, name="conv1")(x)
        y = nn.relu(batch_norm(train, dtype=dtype, name="bn1")(y))
        y = conv(self.features, 3, dtype=dtype, name="conv2")(y)
        y = batch_norm(train, dtype=dtype, name="bn2")(y)
        if self.project:
            x = conv(self.features, 1, self.stride, dtype=dtype, name="shortcut_conv")(x)
            x = batch_norm(train, dtype=dtype, name="shortcut_bn")(x)
        elif self.stride > 1 or any(self.pad):
            x = x[:, :: self.stride, :: self.stride, :]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), self.pad))
        return nn.relu(y + x)


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1 with batch norm, and a shortcut around them.

    The stride is that of the 3x3 convolution, as in torchvision, and not that of the first one, as
    in the paper.

    Attributes:
        inner: the channels after the first and after the second convolution.
        features: the channels of the output.
        stride: that of the second convolution and of the shortcut.
        project: project the shortcut by a 1x1 convolution and batch norm.
        dtype: the dtype to compute in.
    """

    inner: tuple[int, int]
    features: int
    stride: int = 1
    project: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch out_height out_width features"]:
        """``relu(residual(x) + shortcut(x))``.

        Args:
            x: the residual stream, NHWC.
            train: normalise with the statistics of the batch.

        Returns:
            The residual stream after the block.
        """
        dtype, (first, second) = self.dtype, self.inner
        y = conv(first, 1, dtype=dtype, name="conv1")(x)
        y = nn.relu(batch_norm(train, dtype=dtype, name="bn1")(y))
        y = conv(second, 3, self.stride, dtype=dtype, name="conv2")(y)
        y = nn.relu(batch_norm(train, dtype=dtype, name="bn2")(y))
        y = conv(self.features, 1, dtype=dtype, name="conv3")(y)
        y = batch_norm(train, dtype=dtype, name="bn3")(y)
        if self.project:
            x = conv(self.features, 1, self.stride, dtype=dtype, name="shortcut_conv")(x)
            x = batch_norm(train, dtype=dtype, name="shortcut_bn")(x)
        return nn.relu(y + x)
