"""VGG with batch norm for small images, with every width given explicitly.

Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition
(https://arxiv.org/abs/1409.1556), table 1, with one linear classifier after the last stage.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ifjax.models.layers import batch_norm, conv
from ifjax.models.widths import (
    FromSpec,
    Variables,
    check_variables,
    check_widths,
    leaf_shape,
    scaled,
)

_CHANNELS = (64, 128, 256, 512, 512)
# Convolutions per stage, by the number of layers: columns A, B, D and E of the paper's table 1.
_CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(FromSpec, nn.Module):
    """Stages of 3x3 convolutions with batch norm and ReLU, a 2x2 max-pool after each; a classifier.

    Convolution i of stage s is ``convs_i`` (with bias), its norm ``bns_i``, both counted from 1 as
    in the paper; the classifier on the mean over space is ``linear``.

    Attributes:
        widths: the channels of every convolution, one tuple per stage.
        num_classes: the number of logits.
        dtype: the dtype to compute in; by default that of the parameters and the input.

    Raises:
        ValueError: if a width or ``num_classes`` is not a positive integer, or a stage is empty.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = VGG.standard(11, num_classes=3, width=1 / 32)
        >>> model.widths
        ((2,), (4,), (8, 8), (16, 16), (16, 16))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sorted(variables["params"])[:3]
        ['bn1_1', 'bn2_1', 'bn3_1']
    """

    widths: tuple[tuple[int, ...], ...]
    num_classes: int = 10
    dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the widths."""
        check_widths("num_classes", (self.num_classes,))
        for stage, widths in enumerate(self.widths):
            check_widths(f"widths[{stage}]", widths)
        if not self.widths or not all(self.widths):
            raise ValueError(
                f"expected at least one convolution in each of at least one stage, "
                f"got widths={self.widths!r}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array | np.ndarray, "batch height width channels"],
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        """Computes the logits.

        Args:
            x: normalised images, NHWC; each side at least 2 to the power of the number of stages,
                so 32 for the usual networks.
            train: normalise with the statistics of the batch and update the running ones
                (apply with ``mutable=["batch_stats"]``).

        Returns:
            One row of logits per image.

        Raises:
            ValueError: if the images are too small for the max-pools.
        """
        smallest = 2 ** len(self.widths)
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"expected images of at least {smallest} x {smallest} pixels for "
                f"{len(self.widths)} max-pools, got shape {x.shape}; resize them"
            )
        for stage, widths in enumerate(self.widths, start=1):
            for index, width in enumerate(widths, start=1):
                name = f"{stage}_{index}"
                x = conv(width, 3, bias=True, dtype=self.dtype, name=f"conv{name}")(x)
                x = nn.relu(batch_norm(train, dtype=self.dtype, name=f"bn{name}")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="linear")(x)

    @classmethod
    def standard(
        cls, depth: int, num_classes: int = 10, *, width: float = 1.0, dtype: Any = None
    ) -> VGG:
        """Builds a network of the paper's table 1, 64 to 512 channels wide.

        Args:
            depth: 11, 13, 16 or 19 layers (the classifier of the paper has two more of them than
                this one's).
            num_classes: the number of logits.
            width: multiplies all widths, to the nearest integer of at least 1.
            dtype: the dtype to compute in.

        Returns:
            The module.

        Raises:
            ValueError: if there is no such depth, or ``width`` is not positive.

        Example:
            >>> VGG.standard(16).widths[2]
            (256, 256, 256)
        """
        if depth not in _CONVOLUTIONS:
            raise ValueError(
                f"expected a depth out of {', '.join(map(str, _CONVOLUTIONS))}, "
                f"got depth={depth!r}; give widths of your own for other depths"
            )
        stages = zip(_CHANNELS, _CONVOLUTIONS[depth], strict=True)
        return cls(tuple((scaled(w, width),) * count for w, count in stages), num_classes, dtype)

    @classmethod
    def from_variables(cls, variables: Variables, *, dtype: Any = None) -> VGG:
        """Builds the network that ``variables`` belong to, dense or compressed.

        Args:
            variables: ``{"params", "batch_stats"}`` of arrays or of ``jax.ShapeDtypeStruct``.
            dtype: the dtype to compute in.

        Returns:
            A module whose ``apply`` accepts ``variables``.

        Raises:
            ValueError: if the tree is not that of a VGG; the message names the leaves.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> model = VGG(((3, 5), (4,)))
            >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
            >>> VGG.from_variables(variables).widths
            ((3, 5), (4,))
        """
        params = variables.get("params", {})
        stages: list[tuple[int, ...]] = []
        while not stages or f"conv{len(stages) + 1}_1" in params:
            widths: list[int] = []
            while not widths or f"conv{len(stages) + 1}_{len(widths) + 1}" in params:
                path = f"params/conv{len(stages) + 1}_{len(widths) + 1}/kernel"
                widths.append(leaf_shape(variables, path, 4)[3])
            stages.append(tuple(widths))
        channels = leaf_shape(variables, "params/conv1_1/kernel", 4)[2]
        num_classes = leaf_shape(variables, "params/linear/kernel", 2)[1]
        model = cls(tuple(stages), num_classes, dtype)
        side = 2 ** len(stages)
        check_variables(model, variables, (1, side, side, channels))
        return model
