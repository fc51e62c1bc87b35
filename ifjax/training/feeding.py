"""Batches for every fold, on their devices before the step asks for them."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Num, Shaped

from ifjax.data import Dataset, ImageDataset, part
from ifjax.data.batching import epoch_order
from ifjax.training.layout import AXIS, Layout

AHEAD = 2
"""Batches of a streamed data set that are on their way to the devices while a step runs."""


class SplitBatch(NamedTuple):
    """Images and labels of one step of all folds, row by row on the local devices.

    Attributes:
        images: as stored, neither augmented nor normalised.
        labels: one class index per image.
    """

    images: Num[Array, "devices lanes batch height width channels"]
    labels: Int[Array, "devices lanes batch"]


Feed = Callable[[int, int], Iterator[SplitBatch]]
"""``(epoch, skip) -> batches``: the rest of an epoch after its first ``skip`` steps."""


def fold_steps(folds: Sequence[Int[np.ndarray, " _"]], batch_size: int) -> int:
    """The steps of an epoch, the same for folds of any size.

    All folds do as many steps, those of a pass over a fold of mean size: the whole epoch costs what
    one over all the data costs, shared by ``k``. Where sizes differ, a small fold goes through its
    images more often, and a large one less; each in passes of its own.

    Args:
        folds: indices of the training images of every fold.
        batch_size: the images of a fold's step.

    Returns:
        ``floor(mean size / batch_size)``.

    Raises:
        ValueError: if a fold has fewer images than a batch.

    Example:
        >>> fold_steps([np.arange(70), np.arange(30)], 10)
        5
    """
    sizes = [len(fold) for fold in folds]
    for number, size in enumerate(sizes):
        if not 1 <= batch_size <= size:
            raise ValueError(
                f"expected a batch_size in 1..{size}, the training images of fold {number}, got "
                f"{batch_size}; the remainder of a pass is dropped, so no batch would be left: "
                "choose fewer folds, smaller batches, or folds with min_size"
            )
    return sum(sizes) // len(sizes) // batch_size


def make_feed(
    dataset: ImageDataset,
    folds: Sequence[Int[np.ndarray, " _"]],
    layout: Layout,
    batch_size: int,
    *,
    seed: int = 0,
) -> Feed:
    """Feeds every fold's model with its own images, in the order of an ordinary run.

    Step ``t`` of fold ``i`` has the images that step ``t`` of an ordinary run has on
    ``part(dataset, folds[i])`` with seed ``seed + i``: its position follows from the step alone,
    whatever was fed before. A data set in memory is copied to the devices once, each fold's images
    to the devices that train it, and batches are gathered there: a step moves indices only. A
    streamed one is decoded by each host for its own folds, two batches ahead.

    Args:
        dataset: in memory or streamed.
        folds: indices of the training images of every fold, as :func:`ifjax.data.make_folds` gives
            them.
        layout: of the folds.
        batch_size: the images of a fold's step; its replicas share them.
        seed: of the run.

    Returns:
        The batches from a position in the run, for :func:`ifjax.training.fit`; an epoch has
        ``fold_steps(folds, batch_size)`` steps.

    Raises:
        ValueError: if folds, layout and batch size do not fit together.

    Example:
        >>> from ifjax.data import load, make_folds
        >>> from ifjax.training.layout import make_layout
        >>> digits = load("digits")
        >>> folds, layout = make_folds(digits, 2), make_layout(2, 64, jax.devices()[:1])
        >>> feed = make_feed(digits, folds, layout, 64)
        >>> [batch.labels.shape for batch in feed(0, 9)]
        [(1, 2, 64), (1, 2, 64)]
    """
    steps = fold_steps(folds, batch_size)
    if len(folds) != layout.folds or batch_size % layout.replicas:
        raise ValueError(
            f"expected the {layout.folds} folds of the layout and a batch_size that its "
            f"{layout.replicas} replicas can share, got {len(folds)} folds and {batch_size}"
        )
    if isinstance(dataset, Dataset):
        following = _resident(dataset, folds, layout, batch_size, seed)
    else:
        following = _streamed(dataset, folds, layout, batch_size, seed)

    def feed(epoch: int, skip: int) -> Iterator[SplitBatch]:
        first = epoch * steps + skip
        return itertools.islice(following(first), max(0, steps - skip))

    return feed


def _resident(
    dataset: Dataset,
    folds: Sequence[np.ndarray],
    layout: Layout,
    batch_size: int,
    seed: int,
) -> Callable[[int], Iterator[SplitBatch]]:
    """Batches from images that lie on the devices."""
    assignment = layout.assignment[layout.local_positions]
    held = [list(dict.fromkeys(row)) for row in assignment.tolist()]
    rows = [np.concatenate([folds[fold] for fold in mine]) for mine in held]
    # Every device needs a row of one length; what fills up the shorter ones is never read.
    rows = np.stack([np.pad(row, (0, max(map(len, rows)) - len(row))) for row in rows])
    stored = jax.device_put(
        (dataset.train_images[rows], dataset.train_labels[rows]), layout.sharding
    )
    begins = np.array(
        [
            [sum(len(folds[other]) for other in mine[: mine.index(fold)]) for fold in lanes]
            for mine, lanes in zip(held, assignment, strict=True)
        ]
    )

    def gather(stored: tuple[Array, Array], at: Array) -> SplitBatch:
        return SplitBatch(*(leaf.at[at].get(mode="promise_in_bounds") for leaf in stored))

    gather = jax.pmap(gather, axis_name=AXIS, devices=layout.devices)

    def following(first: int) -> Iterator[SplitBatch]:
        orders: dict[int, tuple[int, np.ndarray]] = {}
        for step in itertools.count(first):
            chosen = {}
            for fold in layout.local_folds:
                size = len(folds[fold])
                epoch, at = divmod(step, size // batch_size)
                if fold not in orders or orders[fold][0] != epoch:
                    orders[fold] = epoch, epoch_order(size, seed + fold, epoch)
                chosen[fold] = orders[fold][1][at * batch_size : (at + 1) * batch_size]
            at = begins[..., None] + _spread(chosen, layout)
            yield gather(stored, jax.device_put(at.astype(np.int32), layout.sharding))

    return following


def _streamed(
    dataset: ImageDataset,
    folds: Sequence[np.ndarray],
    layout: Layout,
    batch_size: int,
    seed: int,
) -> Callable[[int], Iterator[SplitBatch]]:
    """Batches that come from the host, on their way before they are asked for."""
    parts = {fold: part(dataset, folds[fold]) for fold in layout.local_folds}

    def passes(fold: int, first: int):
        epoch, skip = divmod(first, len(folds[fold]) // batch_size)
        while True:
            yield from parts[fold].train_batches(
                batch_size, seed=seed + fold, epoch=epoch, skip=skip
            )
            epoch, skip = epoch + 1, 0

    def following(first: int) -> Iterator[SplitBatch]:
        streams = {fold: passes(fold, first) for fold in parts}
        ahead: deque[SplitBatch] = deque()
        while True:
            while len(ahead) <= AHEAD:
                found = {fold: next(stream) for fold, stream in streams.items()}
                images = _spread({fold: batch.images for fold, batch in found.items()}, layout)
                labels = _spread({fold: batch.labels for fold, batch in found.items()}, layout)
                ahead.append(SplitBatch(*jax.device_put((images, labels), layout.sharding)))
            yield ahead.popleft()

    return following


def _spread(
    by_fold: dict[int, Shaped[np.ndarray, "batch ..."]], layout: Layout
) -> Shaped[np.ndarray, "devices lanes part ..."]:
    """Gives every lane of the local devices its part of its fold's batch."""
    return np.stack(
        [
            np.stack(
                [
                    np.split(by_fold[fold], layout.replicas)[position % layout.replicas]
                    for fold in layout.assignment[position].tolist()
                ]
            )
            for position in layout.local_positions
        ]
    )
