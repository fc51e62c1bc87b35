"""All widths of a residual network, and the zero channels of its option-A shortcuts."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ifjax.models.widths import Variables, check_widths, leaf_shape, scaled
from ifjax.structure import axis as ex

Shortcut = Literal["A", "B"]

_STANDARD_STREAMS = (16, 32, 64)
# Blocks per stage, and whether they are bottlenecks, by depth: table 1 of the paper.
_FOUR_STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


@dataclasses.dataclass(frozen=True)
class ResNetWidths:
    """All widths of a residual network; hashable, so that it can be a static argument.

    Attributes:
        streams: the channels of the residual stream, one number per stage.
        inner: per stage, the channels inside each block: a number between the two convolutions of a
            basic block, a pair between the three of a bottleneck.
        pads: for option A only, per transition between stages the numbers of zero channels put
            (before, after) the channels of the shortcut; ``()`` for option B.
        stem: the channels of the stem where the first block projects them; by default it does not,
            and the stem has the channels of the first stage, as the two are added.

    Raises:
        ValueError: if a width is not positive, the numbers of stages differ, basic blocks and
            bottlenecks are mixed, or pads do not make up the difference of two streams.

    Example:
        >>> cut = ResNetWidths((16, 32, 64), inner=((8,), (16,), (32,)), pads=((8, 8), (16, 16)))
        >>> cut.depth
        8
        >>> ResNetWidths.standard(20).inner[2]
        (64, 64, 64)
        >>> ResNetWidths.four_stages(50, width=1 / 16).inner[0]
        ((4, 4), (4, 4), (4, 4))
    """

    streams: tuple[int, ...]
    inner: tuple[tuple[int | tuple[int, int], ...], ...]
    pads: tuple[tuple[int, int], ...] = ()
    stem: int | None = None

    def __post_init__(self) -> None:
        """Checks that the widths fit together."""
        check_widths("streams", self.streams)
        if not self.streams or len(self.inner) != len(self.streams):
            raise ValueError(
                f"expected one tuple of inner widths per stage, got {len(self.inner)} for "
                f"streams={self.streams!r}"
            )
        for stage, inner in enumerate(self.inner):
            if not inner:
                raise ValueError(f"expected at least one block at inner[{stage}], got ()")
            for block, width in enumerate(inner) if self.bottleneck else ():
                check_widths(f"inner[{stage}][{block}]", width)  # pyright: ignore[reportArgumentType]
                if len(width) != 2:  # pyright: ignore[reportArgumentType]
                    raise ValueError(
                        f"expected a pair at inner[{stage}][{block}], as in all blocks of a "
                        f"network of bottlenecks, got {width!r}"
                    )
            if not self.bottleneck:
                check_widths(f"inner[{stage}]", inner)  # pyright: ignore[reportArgumentType]
        if self.stem is not None:
            check_widths("stem", (self.stem,))
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
        """The widths of the usual family.

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

    @classmethod
    def four_stages(cls, depth: int, width: float = 1.0) -> ResNetWidths:
        """The widths of the ImageNet family, 64 to 512 channels (times 4 for bottlenecks).

        Args:
            depth: 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
            width: multiplies all widths, to the nearest integer of at least 1.

        Returns:
            The widths, for projected shortcuts.

        Raises:
            ValueError: if there is no such depth, or ``width`` is not positive.

        Example:
            >>> ResNetWidths.four_stages(18).streams, ResNetWidths.four_stages(50).streams
            ((64, 128, 256, 512), (256, 512, 1024, 2048))
        """
        if depth not in _FOUR_STAGES:
            raise ValueError(
                f"expected a depth out of {', '.join(map(str, _FOUR_STAGES))}, got depth={depth!r};"
                " give ResNetWidths of your own for other depths"
            )
        blocks, bottleneck = _FOUR_STAGES[depth]
        base = tuple(scaled(64 * 2**stage, width) for stage in range(4))
        if not bottleneck:
            return cls(base, tuple((w,) * n for w, n in zip(base, blocks, strict=True)))
        inner = tuple(((w, w),) * n for w, n in zip(base, blocks, strict=True))
        return cls(tuple(4 * w for w in base), inner, stem=base[0])

    @classmethod
    def from_variables(
        cls, variables: Variables, pads: tuple[tuple[int, int], ...] = ()
    ) -> ResNetWidths:
        """Reads the widths off the variables of a residual network.

        Args:
            variables: ``{"params", "batch_stats"}`` of arrays or of ``jax.ShapeDtypeStruct``.
            pads: of option A, which no leaf tells.

        Returns:
            The widths.

        Raises:
            ValueError: if a kernel that tells a width is missing, or pads do not fit.
        """

        def out(path: str) -> int:
            return leaf_shape(variables, f"params/{path}/kernel", 4)[3]

        params = variables.get("params", {})
        kinds = ["conv3" in block for name, block in params.items() if name.startswith("layer")]
        bottleneck = 2 * sum(kinds) > len(kinds)
        streams: list[int] = []
        inner: list[tuple[int | tuple[int, int], ...]] = []
        while not streams or f"layer{len(streams) + 1}_0" in params:
            stage = len(streams) + 1
            blocks = [f"layer{stage}_0"]
            while f"layer{stage}_{len(blocks)}" in params:
                blocks.append(f"layer{stage}_{len(blocks)}")
            if bottleneck:
                inner.append(tuple((out(f"{b}/conv1"), out(f"{b}/conv2")) for b in blocks))
                streams.append(out(f"{blocks[0]}/conv3"))
            else:
                inner.append(tuple(out(f"{b}/conv1") for b in blocks))
                streams.append(out(f"{blocks[0]}/conv2"))
        stem = out("conv1")
        projects = "shortcut_conv" in params["layer1_0"]
        return cls(tuple(streams), tuple(inner), pads, stem if projects else None)

    @property
    def bottleneck(self) -> bool:
        """Whether the blocks have three convolutions, and pairs of inner widths."""
        return isinstance(next(iter(self.inner[0]), 0), tuple)

    @property
    def depth(self) -> int:
        """The layers on the longest path: two or three per block, the stem and the classifier."""
        return (2 + self.bottleneck) * sum(len(inner) for inner in self.inner) + 2


def check_shortcut(shortcut: str) -> None:
    """Raises unless ``shortcut`` is ``"A"`` or ``"B"``.

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


def pads_around(
    before: ex.Expression, after: ex.Expression, widths: dict[str, int]
) -> tuple[int, int]:
    """The small pads at a transition, read off the axis expressions of two streams.

    Args:
        before: axis of the stream before the transition.
        after: axis of the stream after it, which holds the other between zero channels.
        widths: neurons kept, by group.

    Returns:
        The small sizes of the segments before and after the stream.

    Raises:
        ValueError: if ``after`` does not hold ``before``.
    """
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


def standard_pads(streams: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The pads of the usual family.

    Args:
        streams: the channels of every stage.

    Returns:
        A quarter of the wider stream on each side.

    Raises:
        ValueError: if the streams are not those of the usual family, so that pads must be given.
    """
    if streams != _STANDARD_STREAMS:
        raise ValueError(
            f"expected pads=((before, after), ...) for the streams {streams}, got none: "
            "the shapes do not tell on which side of an option-A shortcut zero channels were cut; "
            "pass how many remain on each side, transition by transition"
        )
    return tuple((width // 4, width // 4) for width in streams[1:])
