"""Batches of one shape: seeded permutations for training, padding with a mask for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, Num


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
    skip: int = 0,
) -> Iterator[Batch]:
    """Goes once through the images in random order, dropping the remainder.

    Args:
        images: all training images.
        labels: their labels.
        batch_size: the images of a step.
        seed: of the whole training run.
        epoch: the number of the pass; ``(seed, epoch)`` alone fixes the order.
        skip: how many batches to leave out at the start, for a run that continues in the middle of
            an epoch.

    Returns:
        An iterator over ``n // batch_size - skip`` batches, their masks all True.

    Raises:
        ValueError: if ``batch_size`` is not in ``1..n``, ``skip`` is negative, or images and labels
            differ in number.

    Example:
        >>> import numpy as np
        >>> images, labels = np.zeros((5, 2, 2, 1)), np.arange(5, dtype=np.int32)
        >>> [len(b.labels) for b in train_batches(images, labels, 2, seed=0, epoch=1)]
        [2, 2]
    """
    _check_pairs(images, labels)
    steps = epoch_steps(len(images), batch_size, skip)
    order = epoch_order(len(images), seed, epoch)
    full = np.ones(batch_size, dtype=bool)
    chunks = (order[step * batch_size : (step + 1) * batch_size] for step in steps)
    return (Batch(images[chunk], labels[chunk], full) for chunk in chunks)


def eval_batches(
    images: Num[np.ndarray, "n height width channels"],
    labels: Int32[np.ndarray, " n"],
    batch_size: int,
) -> Iterator[Batch]:
    """Goes once through all images in their order; the last batch is filled up and masked.

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
    _check_pairs(images, labels)
    check_batch_size(batch_size)
    return (
        padded(images[at : at + batch_size], labels[at : at + batch_size], batch_size)
        for at in range(0, len(images), batch_size)
    )


def epoch_order(n: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """The order in which epoch ``epoch`` of a run goes through ``n`` training images.

    Args:
        n: the number of images.
        seed: of the whole training run.
        epoch: the number of the pass.

    Returns:
        A permutation of ``0..n-1``.

    Example:
        >>> sorted(epoch_order(3, seed=0, epoch=1).tolist())
        [0, 1, 2]
    """
    return np.random.default_rng((seed, epoch)).permutation(n)


def padded(
    images: Num[np.ndarray, "n height width channels"],
    labels: Int32[np.ndarray, " n"],
    batch_size: int,
) -> Batch:
    """Fills a batch up to its size with black images that the mask leaves out.

    Args:
        images: at most ``batch_size`` images.
        labels: their labels.
        batch_size: the size to reach.

    Returns:
        The batch.

    Example:
        >>> import numpy as np
        >>> padded(np.ones((1, 2, 2, 1)), np.ones(1, np.int32), 3).mask.tolist()
        [True, False, False]
    """
    missing = batch_size - len(images)
    return Batch(
        np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
        np.pad(labels, (0, missing)),
        np.arange(batch_size) < len(images),
    )


def epoch_steps(n: int, batch_size: int, skip: int = 0) -> range:
    """The steps of an epoch over ``n`` training images that are left after ``skip``.

    Args:
        n: the number of images.
        batch_size: the images of a step; the remainder of the epoch is dropped.
        skip: how many steps to leave out at the start.

    Returns:
        The numbers of the steps.

    Raises:
        ValueError: if ``batch_size`` is not in ``1..n``, or ``skip`` is negative.

    Example:
        >>> epoch_steps(10, 3, skip=1)
        range(1, 3)
    """
    check_batch_size(batch_size)
    if batch_size > n:
        raise ValueError(
            f"expected a batch_size of at most {n}, the number of training images, got "
            f"{batch_size}; the remainder of an epoch is dropped, so no batch would be left"
        )
    if skip < 0:
        raise ValueError(f"expected to skip at least 0 batches, got {skip!r}")
    return range(min(skip, n // batch_size), n // batch_size)


def check_batch_size(batch_size: int) -> None:
    """Refuses a batch size that is not positive.

    Args:
        batch_size: the images of a step.

    Raises:
        ValueError: if it is less than 1.

    Example:
        >>> check_batch_size(64)
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch_size of at least 1, got {batch_size!r}")


def _check_pairs(images: np.ndarray, labels: np.ndarray) -> None:
    if len(images) != len(labels):
        raise ValueError(
            f"expected one label per image, got {len(images)} images and {len(labels)} labels"
        )
