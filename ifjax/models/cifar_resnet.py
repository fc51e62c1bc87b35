"""CIFAR residual networks (ResNet-20 to ResNet-110), with every width given explicitly.

He et al., Deep Residual Learning for Image Recognition, section 4.2 (https://arxiv.org/abs/1512.03385).
"""

from __future__ import annotations

from typing import Any

from ifjax.models.resnet import ResNet
from ifjax.models.resnet_widths import ResNetWidths, Shortcut, check_shortcut
from ifjax.models.widths import scaled


class CifarResNet(ResNet):
    """The residual networks of three stages: a :class:`ResNet` with option-A shortcuts by default.

    Raises:
        ValueError: if the widths have no pads for option A, or have pads for option B.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = CifarResNet(ResNetWidths.standard(8, width=2), num_classes=3)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        >>> sorted(variables["params"])
        ['bn1', 'conv1', 'layer1_0', 'layer2_0', 'layer3_0', 'linear']
    """

    shortcut: Shortcut = "A"

    @classmethod
    def standard(
        cls,
        depth: int,
        num_classes: int = 10,
        *,
        shortcut: Shortcut = "A",
        width: float = 1.0,
        dtype: Any = None,
    ) -> CifarResNet:
        """Builds a network of the usual family, 16, 32 and 64 channels wide.

        Args:
            depth: 20, 32, 44, 56, 110, or any other 6 n + 2.
            num_classes: the number of logits.
            shortcut: option ``"A"`` or ``"B"``.
            width: multiplies all widths, to the nearest integer of at least 1, for option A to the
                nearest even one of at least 2.
            dtype: the dtype to compute in.

        Returns:
            The module.

        Raises:
            ValueError: if ``depth`` is not 6 n + 2, or shortcut or width are not valid.

        Example:
            >>> CifarResNet.standard(56).widths.depth
            56
            >>> CifarResNet.standard(20, width=0.25).widths.streams
            (4, 8, 16)
        """
        check_shortcut(shortcut)
        first = 2 * scaled(8, width) if shortcut == "A" else scaled(16, width)
        return cls(
            ResNetWidths.standard(depth, shortcut, first), num_classes, shortcut, dtype=dtype
        )
