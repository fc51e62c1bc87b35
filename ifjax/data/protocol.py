"""What a training loop may ask of a data set, in memory or streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray

from ifjax.data.batching import Batch


@runtime_checkable
class ImageDataset(Protocol):
    """Labelled images in a training and a test split, as batches of one shape.

    :class:`ifjax.data.Dataset` holds its images in memory, :class:`ifjax.data.StreamedDataset`
    decodes them as they are asked for. A loop written against this protocol takes either:
    ``normalize(augment(key, batch.images))`` is what the network sees in training,
    ``normalize(batch.images)`` in evaluation.
    """

    @property
    def name(self) -> str:
        """What :func:`ifjax.data.load` calls it."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def num_train(self) -> int:
        """Number of training images."""
        ...

    @property
    def num_test(self) -> int:
        """Number of test images."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images in a batch."""
        ...

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, skip: int = 0
    ) -> Iterator[Batch]:
        """Goes once through the training images in random order, dropping the remainder.

        ``(seed, epoch)`` alone fixes what the batches hold; ``skip`` leaves out the first ones
        without decoding them.
        """
        ...

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Goes once through the test images in their order; the last batch is filled and masked."""
        ...

    def normalize(
        self, images: Num[Array | np.ndarray, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """What the networks take, on the device."""
        ...

    def augment(
        self, key: PRNGKeyArray, images: Num[Array | np.ndarray, "batch height width channels"]
    ) -> Num[Array | np.ndarray, "batch height width channels"]:
        """Does what is left of the augmentation, on the device and under jit."""
        ...
