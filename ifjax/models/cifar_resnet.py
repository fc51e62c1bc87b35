"""CIFAR residual networks (ResNet-20 to ResNet-110), with every width given explicitly.

He et al., Deep Residual Learning for Image Recognition, section 4.2 (https://arxiv.org/abs/1512.03385).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ifjax.graph import expression as ex
from ifjax.models.widths import Variables, check_variables, check_widths, leaf_shape
from ifjax.spec import FusionSpec

Shortcut = Literal["A", "B"]

_STANDARD_STREAMS = (16, 32, 64)


@dataclasses.dataclass(frozen=True)
class ResNetWidths:
    """All widths of a CIFAR ResNet; hashable, so that it can be a static argument.

    Attributes:
        streams: the channels of the residual stream, one number per stage. The stem has those of
            the first stage, as the two are added.
        inner: per stage, the channels between the two convolutions of each block.
        pads: for option A only, per transition between stages the numbers of zero channels put
            (before, after) the channels of the shortcut; ``()`` for option B.

    Raises:
        ValueError: if a width is not positive, the numbers of stages differ, or pads do not make up
            the difference of two streams.

    Example:
        >>> cut = ResNetWidths((16, 32, 64), inner=((8,), (16,), (32,)), pads=((8, 8), (16, 16)))
        >>> cut.depth
        8
        >>> ResNetWidths.standard(20).inner[2]
        (64, 64, 64)
    """

    streams: tuple[int, ...]
    inner: tuple[tuple[int, ...], ...]
    pads: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Check that the widths fit together."""
        check_widths("streams", self.streams)
        if not self.streams or len(self.inner) != len(self.streams):
            raise ValueError(
                f"expected one tuple of inner widths per stage, got {len(self.inner)} for "
                f"streams={self.streams!r}"
            )
        for stage, inner in enumerate(self.inner):
            check_widths(f"inner[{stage}]", inner)
            if not inner:
                raise ValueError(f"expected at least one block at inner[{stage}], got ()")
        if not self.pads:
            return
        if len(self.pads) != len(self.streams) - 1:
            raise ValueError(
                f"expected {len(self.streams) - 1} pairs of pads, one per transition, "
                f"got {self.pads!r}"
            )
        for stage, pad in enumerate(self.pads):
            check_widths(f"pads[{stage}]", pad, minimum=0)
            before, after = self.streams[stage : stage + 2]
            if len(pad) != 2 or before + sum(pad) != after:
                raise ValueError(
                    f"expected (before, after) with before + {before} + after = {after} at "
                    f"pads[{stage}], got {pad!r}; option A pads until the streams agree"
                )

    @classmethod
    def standard(cls, depth: int, shortcut: Shortcut = "A", width: int = 16) -> ResNetWidths:
        """Give the widths of the usual family.

        Args:
            depth: 6 n + 2 for n blocks per stage: 20, 32, 44, 56, 110, ...
            shortcut: ``"A"`` zero-pads the shortcut by half the new channels on each side, ``"B"``
                projects it.
            width: channels of the first stage; they double twice.

        Returns:
            Streams of ``width``, ``2 width``, ``4 width``, and inner widths equal to them.

        Raises:
            ValueError: if ``depth`` is not 6 n + 2, or option A cannot split ``width`` in halves.

        Example:
            >>> ResNetWidths.standard(8, width=4).pads
            ((2, 2), (4, 4))
        """
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(
                f"expected a depth of 6 n + 2 with n >= 1, got depth={depth!r}; "
                "use one of 20, 32, 44, 56, 110"
            )
        check_shortcut(shortcut)
        if shortcut == "A" and width % 2:
            raise ValueError(
                f"expected an even width for option A, got width={width!r}; "
                "give ResNetWidths with pads of your own, or use shortcut='B'"
            )
        streams = (width, 2 * width, 4 * width)
        pads = tuple((s // 4, s // 4) for s in streams[1:]) if shortcut == "A" else ()
        return cls(streams, tuple((s,) * blocks for s in streams), pads)

    @property
    def depth(self) -> int:
        """The number of layers on the longest path: two per block, the stem and the classifier."""
        return 2 * sum(len(inner) for inner in self.inner) + 2


def check_shortcut(shortcut: str) -> None:
    """Raise unless ``shortcut`` is ``"A"`` or ``"B"``.

    Args:
        shortcut: the option to check.

    Raises:
        ValueError: if it is another one.

    Example:
        >>> check_shortcut("B")
    """
    if shortcut not in ("A", "B"):
        raise ValueError(
            f"expected shortcut 'A' (zero-padded) or 'B' (projected), got {shortcut!r}"
        )


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
            pads = _standard_pads(tuple(streams))
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
            pads.append(_pads_around(before, after, spec.plan.widths))
            stage += 1
        return cls.from_variables(small, pads=tuple(pads), dtype=dtype)


def _pads_around(
    before: ex.Expression, after: ex.Expression, widths: dict[str, int]
) -> tuple[int, int]:
    """Small sizes of the segments of ``after`` on either side of the stream ``before``."""
    segments = after.segments if isinstance(after, ex.Sum) else (after,)
    inside = set(ex.atoms(before))
    place = [i for i, s in enumerate(segments) if inside & set(ex.atoms(s))]
    if not place:
        raise ValueError(
            "expected a stream that holds the stage before it between zero channels, as in a CIFAR "
            "ResNet with option-A shortcuts; the spec is of another network"
        )
    low, high = segments[: place[0]], segments[place[-1] + 1 :]
    return sum(ex.size(s, widths) for s in low), sum(ex.size(s, widths) for s in high)


def _standard_pads(streams: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if streams != _STANDARD_STREAMS:
        raise ValueError(
            f"expected pads=((before, after), ...) for the streams {streams}, got none: "
            "the shapes do not tell on which side of an option-A shortcut zero channels were cut; "
            "pass how many remain on each side, transition by transition"
        )
    return tuple((width // 4, width // 4) for width in streams[1:])
