"""CIFAR residual networks (ResNet-20 to ResNet-110), with every width given explicitly.

He et al., Deep Residual Learning for Image Recognition, section 4.2 (https://arxiv.org/abs/1512.03385).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ifjax.models.resnet_widths import (
    ResNetWidths,
    Shortcut,
    check_shortcut,
    pads_around,
    standard_pads,
)
from ifjax.models.widths import Variables, check_variables, check_widths, leaf_shape
from ifjax.spec import FusionSpec


def _conv(features: int, size: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    # Torch's padding: flax's "SAME" pads a strided 3x3 convolution by (0, 1) instead of (1, 1).
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        name=name,
    )


def _norm(train: bool, dtype: Any, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )


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
        """Compute ``relu(residual(x) + shortcut(x))``.

        Args:
            x: the residual stream, NHWC.
            train: normalise with the statistics of the batch.

        Returns:
            The residual stream after the block.
        """
        y = _conv(self.inner, 3, self.stride, self.dtype, "conv1")(x)
        y = nn.relu(_norm(train, self.dtype, "bn1")(y))
        y = _conv(self.features, 3, 1, self.dtype, "conv2")(y)
        y = _norm(train, self.dtype, "bn2")(y)
        if self.project:
            x = _conv(self.features, 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = _norm(train, self.dtype, "shortcut_bn")(x)
        elif self.stride > 1 or any(self.pad):
            x = x[:, :: self.stride, :: self.stride, :]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), self.pad))
        return nn.relu(y + x)


class CifarResNet(nn.Module):
    """A residual network for small images: stem, basic blocks, mean over space, classifier.

    Modules mirror the torch names: ``conv1``, ``bn1``, blocks ``layer1_0`` ... (each with
    ``conv1``, ``bn1``, ``conv2``, ``bn2`` and, in option B, ``shortcut_conv``, ``shortcut_bn``),
    ``linear``.

    Attributes:
        widths: every width; see :class:`ResNetWidths`.
        num_classes: the number of logits.
        shortcut: how the stream changes its width between stages: ``"A"`` subsamples and pads with
            zero channels, ``"B"`` projects by a 1x1 convolution with batch norm.
        dtype: the dtype to compute in; by default that of the parameters and the input.

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

    widths: ResNetWidths
    num_classes: int = 10
    shortcut: Shortcut = "A"
    dtype: Any = None

    def __post_init__(self) -> None:
        """Check that widths and shortcut belong together."""
        check_shortcut(self.shortcut)
        check_widths("num_classes", (self.num_classes,))
        transitions = len(self.widths.streams) - 1
        expected = transitions if self.shortcut == "A" else 0
        if len(self.widths.pads) != expected:
            raise ValueError(
                f"expected {expected} pairs of pads for shortcut={self.shortcut!r}, got "
                f"widths.pads={self.widths.pads!r}; option A needs one pair per transition, "
                "option B none"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array | np.ndarray, "batch height width channels"],
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        """Compute the logits.

        Args:
            x: normalised images, NHWC.
            train: normalise with the statistics of the batch and update the running ones
                (apply with ``mutable=["batch_stats"]``).

        Returns:
            One row of logits per image.
        """
        streams, pads = self.widths.streams, self.widths.pads
        x = _conv(streams[0], 3, 1, self.dtype, "conv1")(x)
        x = nn.relu(_norm(train, self.dtype, "bn1")(x))
        for stage, inner in enumerate(self.widths.inner):
            for block, width in enumerate(inner):
                enters = stage > 0 and block == 0
                x = BasicBlock(
                    inner=width,
                    features=streams[stage],
                    stride=2 if enters else 1,
                    pad=pads[stage - 1] if enters and self.shortcut == "A" else (0, 0),
                    project=enters and self.shortcut == "B",
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{block}",
                )(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="linear")(x)

    @classmethod
    def standard(
        cls, depth: int, num_classes: int = 10, *, shortcut: Shortcut = "A", dtype: Any = None
    ) -> CifarResNet:
        """Build a network of the usual family, 16, 32 and 64 channels wide.

        Args:
            depth: 20, 32, 44, 56, 110, or any other 6 n + 2.
            num_classes: the number of logits.
            shortcut: option ``"A"`` or ``"B"``.
            dtype: the dtype to compute in.

        Returns:
            The module.

        Raises:
            ValueError: if ``depth`` is not 6 n + 2, or the shortcut is unknown.

        Example:
            >>> CifarResNet.standard(56).widths.depth
            56
        """
        return cls(ResNetWidths.standard(depth, shortcut), num_classes, shortcut, dtype)

    @classmethod
    def from_variables(
        cls,
        variables: Variables,
        *,
        pads: tuple[tuple[int, int], ...] | None = None,
        dtype: Any = None,
    ) -> CifarResNet:
        """Build the network that ``variables`` belong to, dense or compressed.

        Args:
            variables: ``{"params", "batch_stats"}`` of arrays or of ``jax.ShapeDtypeStruct``.
            pads: for option A, the zero channels (before, after) the shortcut's at each transition.
                No leaf tells how many stand on which side, so they are needed wherever the residual
                stream is not 16, 32, 64 channels wide.
            dtype: the dtype to compute in.

        Returns:
            A module whose ``apply`` accepts ``variables``.

        Raises:
            ValueError: if the tree is not that of a CIFAR ResNet (naming the leaves), or if pads
                are missing, or do not fit the streams.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> cut = ResNetWidths((3, 5, 9), ((2,), (4,), (6,)), pads=((1, 1), (4, 0)))
            >>> image = jnp.zeros((1, 8, 8, 3))
            >>> variables = jax.eval_shape(CifarResNet(cut).init, jax.random.key(0), image)
            >>> CifarResNet.from_variables(variables, pads=((1, 1), (4, 0))).widths == cut
            True
        """
        channels = leaf_shape(variables, "params/conv1/kernel", 4)[2]
        num_classes = leaf_shape(variables, "params/linear/kernel", 2)[1]
        streams: list[int] = []
        inner: list[tuple[int, ...]] = []
        params = variables["params"]
        while not streams or f"layer{len(streams) + 1}_0" in params:
            blocks = [f"params/layer{len(streams) + 1}_0"]
            while f"layer{len(streams) + 1}_{len(blocks)}" in params:
                blocks.append(f"params/layer{len(streams) + 1}_{len(blocks)}")
            inner.append(tuple(leaf_shape(variables, f"{b}/conv1/kernel", 4)[3] for b in blocks))
            streams.append(leaf_shape(variables, f"{blocks[0]}/conv2/kernel", 4)[3])
        projected = any("shortcut_conv" in params[f"layer{k + 1}_0"] for k in range(len(streams)))
        if not projected and pads is None:
            pads = standard_pads(tuple(streams))
        widths = ResNetWidths(tuple(streams), tuple(inner), pads or ())
        model = cls(widths, num_classes, "B" if projected else "A", dtype)
        check_variables(model, variables, (1, 8, 8, channels))
        return model

    @classmethod
    def from_spec(cls, spec: FusionSpec, *, dtype: Any = None) -> CifarResNet:
        """Build the network at the widths of a spec that was made for its variables.

        Args:
            spec: made from ``ifjax.trace`` of this network's ``apply``; it tells the pads too.
            dtype: the dtype to compute in.

        Returns:
            A module whose ``apply`` accepts what ``ifjax.fuse_params`` returns.

        Raises:
            ValueError: if the spec is of another network.

        Example:
            >>> import ifjax, jax
            >>> import jax.numpy as jnp
            >>> module, image = CifarResNet.standard(20), jnp.zeros((1, 8, 8, 3))
            >>> variables = jax.eval_shape(module.init, jax.random.key(0), image)
            >>> spec = ifjax.trace(module.apply, variables, image).spec(0.5)
            >>> CifarResNet.from_spec(spec).widths.pads
            ((4, 4), (8, 8))
        """
        small = spec.small_struct()
        if "params" not in small or "shortcut_conv" in small["params"].get("layer2_0", {}):
            return cls.from_variables(small, dtype=dtype)
        pads = []
        stage = 2
        while f"layer{stage}_0" in small["params"]:
            before, after = (
                spec.plan.leaf[f"params/layer{k}_0/bn2/scale"].axes[0] for k in (stage - 1, stage)
            )
            pads.append(pads_around(before, after, spec.plan.widths))
            stage += 1
        return cls.from_variables(small, pads=tuple(pads), dtype=dtype)
