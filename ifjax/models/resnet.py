"""Residual networks for small images and for ImageNet, with every width given explicitly.

He et al., Deep Residual Learning for Image Recognition (https://arxiv.org/abs/1512.03385).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ifjax.models.layers import batch_norm, conv
from ifjax.models.resnet_blocks import BasicBlock, Bottleneck
from ifjax.models.resnet_widths import (
    ResNetWidths,
    Shortcut,
    check_shortcut,
    pads_around,
    standard_pads,
)
from ifjax.models.widths import (
    FromSpec,
    Variables,
    check_variables,
    check_widths,
    leaf_shape,
)
from ifjax.spec.spec import FusionSpec

Stem = Literal["cifar", "imagenet"]
_ResNet = TypeVar("_ResNet", bound="ResNet")


class ResNet(FromSpec, nn.Module):
    """A residual network: stem, stages of blocks, mean over space, classifier.

    Modules mirror the torch names: ``conv1``, ``bn1``, blocks ``layer1_0`` ... (each with
    ``conv1``, ``bn1``, ``conv2``, ``bn2``, in a bottleneck ``conv3``, ``bn3``, and where the
    shortcut is projected ``shortcut_conv``, ``shortcut_bn``), ``linear``.

    Attributes:
        widths: every width; see :class:`ResNetWidths`.
        num_classes: the number of logits.
        shortcut: how the stream changes its width between stages: ``"A"`` subsamples and pads with
            zero channels, ``"B"`` projects by a 1x1 convolution with batch norm.
        stem: ``"cifar"`` is a 3x3 convolution, ``"imagenet"`` one of 7x7 with stride 2 and a 3x3
            max-pool with stride 2.
        dtype: the dtype to compute in; by default that of the parameters and the input.

    Raises:
        ValueError: if widths, shortcut and stem do not belong together.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = ResNet.standard(18, num_classes=3, width=1 / 32)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> jax.eval_shape(model.apply, variables, jnp.zeros((2, 32, 32, 3))).shape
        (2, 3)
    """

    widths: ResNetWidths
    num_classes: int = 10
    shortcut: Shortcut = "B"
    stem: Stem = "cifar"
    dtype: Any = None

    def __post_init__(self) -> None:
        """Checks that widths, shortcut and stem belong together."""
        check_shortcut(self.shortcut)
        check_widths("num_classes", (self.num_classes,))
        if self.stem not in ("cifar", "imagenet"):
            raise ValueError(f"expected stem 'cifar' or 'imagenet', got {self.stem!r}")
        transitions = len(self.widths.streams) - 1
        expected = transitions if self.shortcut == "A" else 0
        if len(self.widths.pads) != expected:
            raise ValueError(
                f"expected {expected} pairs of pads for shortcut={self.shortcut!r}, got "
                f"widths.pads={self.widths.pads!r}; option A needs one pair per transition, "
                "option B none"
            )
        if self.shortcut == "A" and (self.widths.bottleneck or self.widths.stem is not None):
            raise ValueError(
                "expected basic blocks and no projected stem for shortcut='A', got "
                f"{self.widths!r}; use shortcut='B'"
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
            x: normalised images, NHWC.
            train: normalise with the statistics of the batch and update the running ones
                (apply with ``mutable=["batch_stats"]``).

        Returns:
            One row of logits per image.
        """
        widths, dtype = self.widths, self.dtype
        imagenet = self.stem == "imagenet"
        features = widths.streams[0] if widths.stem is None else widths.stem
        y = conv(features, *((7, 2) if imagenet else (3, 1)), dtype=dtype, name="conv1")(x)
        y = nn.relu(batch_norm(train, dtype=dtype, name="bn1")(y))
        if imagenet:
            around: Any = ((1, 1), (1, 1))  # annotated as str alone
            y = nn.max_pool(y, (3, 3), strides=(2, 2), padding=around)
        for stage, inner in enumerate(widths.inner):
            for block, width in enumerate(inner):
                enters = stage > 0 and block == 0
                options: dict[str, Any] = {
                    "inner": width,
                    "features": widths.streams[stage],
                    "stride": 2 if enters else 1,
                    "project": (enters and self.shortcut == "B")
                    or (stage == block == 0 and widths.stem is not None),
                    "dtype": dtype,
                    "name": f"layer{stage + 1}_{block}",
                }
                if enters and self.shortcut == "A":
                    options["pad"] = widths.pads[stage - 1]
                y = (Bottleneck if widths.bottleneck else BasicBlock)(**options)(y, train)
        y = jnp.mean(y, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=dtype, name="linear")(y)

    @classmethod
    def standard(
        cls: type[_ResNet],
        depth: int,
        num_classes: int = 10,
        *,
        width: float = 1.0,
        stem: Stem = "cifar",
        dtype: Any = None,
    ) -> _ResNet:
        """Builds a network of the ImageNet family, 64 to 512 channels wide.

        Args:
            depth: 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
            num_classes: the number of logits.
            width: multiplies all widths, to the nearest integer of at least 1.
            stem: ``"cifar"`` or ``"imagenet"``.
            dtype: the dtype to compute in.

        Returns:
            The module, with projected shortcuts.

        Raises:
            ValueError: if depth, width or stem is not valid.

        Example:
            >>> ResNet.standard(50).widths.depth
            50
        """
        return cls(ResNetWidths.four_stages(depth, width), num_classes, "B", stem, dtype)

    @classmethod
    def from_variables(
        cls: type[_ResNet],
        variables: Variables,
        *,
        pads: tuple[tuple[int, int], ...] | None = None,
        dtype: Any = None,
    ) -> _ResNet:
        """Builds the network that ``variables`` belong to, dense or compressed.

        Args:
            variables: ``{"params", "batch_stats"}`` of arrays or of ``jax.ShapeDtypeStruct``.
            pads: for option A, the zero channels (before, after) the shortcut's at each transition.
                No leaf tells how many stand on which side, so they are needed wherever the residual
                stream is not 16, 32, 64 channels wide.
            dtype: the dtype to compute in.

        Returns:
            A module whose ``apply`` accepts ``variables``.

        Raises:
            ValueError: if the tree is not that of a residual network (naming the leaves), or if
                pads are missing, or do not fit the streams.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> cut = ResNetWidths((3, 5, 9), ((2,), (4,), (6,)), pads=((1, 1), (4, 0)))
            >>> image = jnp.zeros((1, 8, 8, 3))
            >>> variables = jax.eval_shape(ResNet(cut, 10, "A").init, jax.random.key(0), image)
            >>> ResNet.from_variables(variables, pads=((1, 1), (4, 0))).widths == cut
            True
        """
        size, _, channels, _ = leaf_shape(variables, "params/conv1/kernel", 4)
        num_classes = leaf_shape(variables, "params/linear/kernel", 2)[1]
        widths, shortcut = ResNetWidths.from_variables(variables), "B"
        if not _projects(variables):
            pads = standard_pads(widths.streams) if pads is None else pads
            widths, shortcut = dataclasses.replace(widths, pads=pads), "A"
        stem = "imagenet" if size == 7 else "cifar"
        model = cls(widths, num_classes, shortcut, stem, dtype)
        check_variables(model, variables, (1, 8, 8, channels))
        return model

    @classmethod
    def from_spec(cls: type[_ResNet], spec: FusionSpec, *, dtype: Any = None) -> _ResNet:
        """Builds the network at the widths of a spec that was made for its variables.

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
            >>> from ifjax.models import CifarResNet
            >>> module, image = CifarResNet.standard(20), jnp.zeros((1, 8, 8, 3))
            >>> variables = jax.eval_shape(module.init, jax.random.key(0), image)
            >>> spec = ifjax.trace(module.apply, variables, image).spec(0.5)
            >>> CifarResNet.from_spec(spec).widths.pads
            ((4, 4), (8, 8))
        """
        small = spec.small_struct()
        if "layer1_0" not in small.get("params", {}) or _projects(small):
            return cls.from_variables(small, dtype=dtype)
        pads = []
        stage = 2
        while f"layer{stage}_0" in small["params"]:
            before, after = (
                spec.structure.leaf[f"params/layer{k}_0/bn2/scale"].axes[0]
                for k in (stage - 1, stage)
            )
            pads.append(pads_around(before, after, spec.structure.widths))
            stage += 1
        return cls.from_variables(small, pads=tuple(pads), dtype=dtype)


def _projects(variables: Variables) -> bool:
    """Whether any shortcut is projected, as with option B."""
    blocks = (b for name, b in variables["params"].items() if name.startswith("layer"))
    return any("shortcut_conv" in block for block in blocks)
