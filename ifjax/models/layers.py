"""Convolution and batch norm as torch computes them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn


def conv(
    features: int,
    size: int,
    stride: int = 1,
    *,
    bias: bool = False,
    dtype: Any = None,
    name: str | None = None,
) -> nn.Conv:
    """A convolution with torch's padding of ``size // 2`` on each side.

    Flax's ``"SAME"`` pads a strided 3x3 convolution by (0, 1) instead of (1, 1).

    Args:
        features: the channels of the output.
        size: the height and width of the window.
        stride: the step of the window.
        bias: add a bias.
        dtype: the dtype to compute in.
        name: the module's name.

    Returns:
        The module.

    Example:
        >>> conv(8, 7, 2).padding
        ((3, 3), (3, 3))
    """
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        use_bias=bias,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        name=name,
    )


MOMENTUM = 0.9
"""How much of the running statistics of a batch norm a step of training leaves."""


def batch_norm(train: bool, *, dtype: Any = None, name: str | None = None) -> nn.BatchNorm:
    """A batch norm with torch's momentum and epsilon.

    Args:
        train: normalise with the statistics of the batch.
        dtype: the dtype to compute in.
        name: the module's name.

    Returns:
        The module.

    Example:
        >>> batch_norm(train=False).epsilon
        1e-05
    """
    return nn.BatchNorm(
        use_running_average=not train, momentum=MOMENTUM, epsilon=1e-5, dtype=dtype, name=name
    )
