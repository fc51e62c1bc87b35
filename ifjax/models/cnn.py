"""A small convolutional network with batch norm, for digits and CIFAR."""

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
    numbered,
)


class SmallCNN(FromSpec, nn.Module):
    """Stages of conv 3x3, batch norm, ReLU and max-pool 2x2; then dense layers.

    Stage k is ``convk`` (no bias) and ``bnk``, the dense layers are ``fc1``, ``fc2``, ..., the
    classifier is ``linear``. The flattening makes each channel of the last stage feed a block of
    rows of the first dense kernel, one row per pixel.

    Attributes:
        widths: the channels of every convolution, from the input on; at least one.
        hidden: the width of every dense layer before the classifier; may be empty.
        num_classes: the number of logits.
        dtype: the dtype to compute in; by default that of the parameters and the input.

    Raises:
        ValueError: if a width or ``num_classes`` is not a positive integer, or ``widths`` is empty.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = SmallCNN(widths=(4, 6), hidden=(8,), num_classes=3)
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
        >>> jax.jit(model.apply)(variables, jnp.ones((2, 8, 8, 1))).shape
        (2, 3)
    """

    widths: tuple[int, ...] = (16, 32)
    hidden: tuple[int, ...] = (64,)
    num_classes: int = 10
    dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the widths."""
        check_widths("widths", self.widths)
        check_widths("hidden", self.hidden)
        check_widths("num_classes", (self.num_classes,))
        if not self.widths:
            raise ValueError("expected at least one convolution, got widths=(); use MLP for none")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array | np.ndarray, "batch height width channels"],
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        """Computes the logits.

        Args:
            x: images, NHWC; each side must be at least 2 to the power of the number of stages.
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
                f"{len(self.widths)} max-pools, got shape {x.shape}; give fewer widths"
            )
        for index, width in enumerate(self.widths, start=1):
            x = conv(width, 3, dtype=self.dtype, name=f"conv{index}")(x)
            x = batch_norm(train, dtype=self.dtype, name=f"bn{index}")(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = jnp.reshape(x, (x.shape[0], -1))
        for index, width in enumerate(self.hidden, start=1):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"fc{index}")(x))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="linear")(x)

    @classmethod
    def from_variables(cls, variables: Variables, *, dtype: Any = None) -> SmallCNN:
        """Builds the network that ``variables`` belong to, dense or compressed.

        Args:
            variables: ``{"params", "batch_stats"}`` of arrays or of ``jax.ShapeDtypeStruct``.
            dtype: the dtype to compute in.

        Returns:
            A module whose ``apply`` accepts ``variables`` for images of the size they belong to.

        Raises:
            ValueError: if the tree is not that of a ``SmallCNN``; the message names the leaf.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> model = SmallCNN(widths=(4, 6), hidden=(5,), num_classes=3)
            >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
            >>> small = SmallCNN.from_variables(variables)
            >>> small.widths, small.hidden, small.num_classes
            ((4, 6), (5,), 3)
        """
        stages = max(1, numbered(variables, "conv"))
        convs = [leaf_shape(variables, f"params/conv{k + 1}/kernel", 4) for k in range(stages)]
        dense = [f"params/fc{k + 1}/kernel" for k in range(numbered(variables, "fc"))]
        kernels = [leaf_shape(variables, path, 2) for path in (*dense, "params/linear/kernel")]
        outputs = tuple(shape[1] for shape in kernels)
        model = cls(
            widths=tuple(shape[3] for shape in convs),
            hidden=outputs[:-1],
            num_classes=outputs[-1],
            dtype=dtype,
        )
        pixels, rest = divmod(kernels[0][0], convs[-1][3])
        if rest or not pixels:
            raise ValueError(
                f"expected a multiple of the {convs[-1][3]} channels of conv{stages} as the number "
                f"of rows at {(*dense, 'params/linear/kernel')[0]!r}, got {kernels[0][0]}; "
                "cut the kernel's rows together with the channels"
            )
        scale = 2**stages
        # Which height and width gave so many pixels does not matter to the shapes.
        check_variables(model, variables, (1, scale, scale * pixels, convs[0][2]))
        return model
