"""Batches of one shape: seeded permutations for training, padding with a mask for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Num


class Batch(NamedTuple):
    """Images and labels of one step.

    Attributes:
        images: NHWC.
        labels: one class index per image.
        mask: False where an image only fills up the batch.
    """

    images: Num[np.ndarray, "batch height width channels"]
    labels: Int32[np.ndarray, " batch"]
    mask: Bool[np.ndarray, " batch"]


def train_batches(
    images: Num[np.ndarray, "n height width channels"],
    labels: Int32[np.ndarray, " n"],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
) -> Iterator[Batch]:
    """Go once through the images in random order, dropping the remainder.

    Args:
        images: all training images.
        labels: their labels.
        batch_size: the images of a step.
        seed: of the whole training run.
        epoch: the number of the pass; ``(seed, epoch)`` alone fixes the order.
        start: the step to begin with, for a run that continues in the middle of an epoch.

    Returns:
        An iterator over ``n // batch_size - start`` batches, their masks all True.

    Raises:
        ValueError: if ``batch_size`` is not in 1..n, or images and labels differ in number.

    Example:
        >>> import numpy as np
        >>> images, labels = np.zeros((5, 2, 2, 1)), np.arange(5, dtype=np.int32)
        >>> [len(b.labels) for b in train_batches(images, labels, 2, seed=0, epoch=1)]
        [2, 2]
    """
    _check(images, labels, batch_size)
    if batch_size > len(images):
        raise ValueError(
            f"expected a batch_size of at most {len(images)}, the number of training images, got "
            f"{batch_size}; the remainder of an epoch is dropped, so no batch would be left"
        )
    order = np.random.default_rng((seed, epoch)).permutation(len(images))
    full = np.ones(batch_size, dtype=bool)
    chunks = (
        order[step * batch_size : (step + 1) * batch_size]
        for step in range(start, len(images) // batch_size)
    )
    return (Batch(images[chunk], labels[chunk], full) for chunk in chunks)


def eval_batches(
    images: Num[np.ndarray, "n height width channels"],
    labels: Int32[np.ndarray, " n"],
    batch_size: int,
) -> Iterator[Batch]:
    """Go once through all images in their order; the last batch is filled up and masked.

    Every batch has the same shape, so a jitted step compiles once. Count only where ``mask`` is
    True.

    Args:
        images: all images.
        labels: their labels.
        batch_size: the images of a step.

    Returns:
        An iterator over ``ceil(n / batch_size)`` batches.

    Raises:
        ValueError: if ``batch_size`` is not positive, or images and labels differ in number.

    Example:
        >>> import numpy as np
        >>> images, labels = np.zeros((5, 2, 2, 1)), np.arange(5, dtype=np.int32)
        >>> [int(b.mask.sum()) for b in eval_batches(images, labels, 2)]
        [2, 2, 1]
    """
    _check(images, labels, batch_size)
    return (
        _padded(images[at : at + batch_size], labels[at : at + batch_size], batch_size)
        for at in range(0, len(images), batch_size)
    )


def _padded(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Batch:
    missing = batch_size - len(images)
    return Batch(
        np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
        np.pad(labels, (0, missing)),
        np.arange(batch_size) < len(images),
    )


def _check(images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"expected a batch_size of at least 1, got {batch_size!r}")
    if len(images) != len(labels):
        raise ValueError(
            f"expected one label per image, got {len(images)} images and {len(labels)} labels"
        )
