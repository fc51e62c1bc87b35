"""A data set held in memory, and how its images are normalised and augmented."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Num, PRNGKeyArray

from ifjax.data.augmentation import augment
from ifjax.data.batching import Batch, eval_batches, train_batches


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of a training and a test split.

    Attributes:
        name: what :func:`ifjax.data.load` calls it.
        train_images: NHWC, uint8 in 0..255 or float in 0..1.
        train_labels: int32, one class index per training image.
        test_images: as the training images.
        test_labels: as the training labels.
        num_classes: the number of classes.
        mean: per channel, what :meth:`normalize` subtracts, in units where white is 1.
        std: per channel, what it divides by.
        crop_padding: the pixels by which :meth:`augment` shifts at most; 0 for none.
        flip: whether it mirrors half of the images.

    Raises:
        ValueError: if images and labels do not fit together, or a label is no class index.

    Example:
        >>> import numpy as np
        >>> images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4, dtype=np.int32)
        >>> data = Dataset("none", images, labels, images, labels, 4, mean=(0.5,), std=(0.25,))
        >>> data.image_shape, float(data.normalize(data.train_images)[0, 0, 0, 0])
        ((8, 8, 1), -2.0)
    """

    name: str
    train_images: Num[np.ndarray, "train height width channels"]
    train_labels: Int32[np.ndarray, " train"]
    test_images: Num[np.ndarray, "test height width channels"]
    test_labels: Int32[np.ndarray, " test"]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        """Checks that the parts fit together."""
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.ndim != 4 or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"expected NHWC images and one label per image in {split} of {self.name!r}, "
                    f"got images {images.shape} and labels {labels.shape}"
                )
            if labels.size and not 0 <= labels.min() <= labels.max() < self.num_classes:
                raise ValueError(
                    f"expected labels in 0..{self.num_classes - 1} in {split} of {self.name!r}, "
                    f"got {labels.min()}..{labels.max()}"
                )
        channels = self.train_images.shape[-1]
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"expected a mean and a std for each of the {channels} channels of {self.name!r}, "
                f"got mean={self.mean!r}, std={self.std!r}"
            )

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.train_labels)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.test_labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, skip: int = 0
    ) -> Iterator[Batch]:
        """:func:`ifjax.data.train_batches` of the training images."""
        return train_batches(
            self.train_images, self.train_labels, batch_size, seed=seed, epoch=epoch, skip=skip
        )

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """:func:`ifjax.data.eval_batches` of the test images."""
        return eval_batches(self.test_images, self.test_labels, batch_size)

    def normalize(
        self, images: Num[Array | np.ndarray, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Applies :func:`normalize` with this data set's mean and standard deviation.

        Args:
            images: raw images of this data set.

        Returns:
            What the networks take, float32.
        """
        return normalize(images, self.mean, self.std)

    def augment(
        self, key: PRNGKeyArray, images: Num[Array | np.ndarray, "batch height width channels"]
    ) -> Num[Array, "batch height width channels"]:
        """Applies :func:`ifjax.data.augment` as far as it suits this data set.

        Args:
            key: a random key, a new one for every batch.
            images: raw images of this data set.

        Returns:
            Images of the same shape and dtype.
        """
        return augment(key, images, padding=self.crop_padding, flip=self.flip)


def normalize(
    images: Num[Array | np.ndarray, "batch height width channels"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "batch height width channels"]:
    """``(images - mean) / std`` per channel in float32, of images scaled to 0..1.

    Args:
        images: NHWC, uint8 in 0..255 or floating point in 0..1.
        mean: one number per channel, in units where white is 1.
        std: one positive number per channel.

    Returns:
        Normalised images, float32.

    Raises:
        TypeError: if the images are of another integer type.

    Example:
        >>> import numpy as np
        >>> float(normalize(np.full((1, 1, 1, 1), 255, np.uint8), (0.5,), (0.25,)).sum())
        2.0
    """
    images = jnp.asarray(images)
    scaled = images.astype(jnp.float32)
    if images.dtype == jnp.uint8:
        scaled = scaled / 255
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"expected uint8 images in 0..255 or floating point in 0..1, got {images.dtype}"
        )
    per_channel = (1, 1, 1, len(mean))
    shift = jnp.asarray(mean, jnp.float32).reshape(per_channel)
    return (scaled - shift) / jnp.asarray(std, jnp.float32).reshape(per_channel)


def frozen(array: np.ndarray) -> np.ndarray:
    """``array`` marked read-only, as several users may share it.

    Args:
        array: the array, changed in place.

    Returns:
        The same array.

    Example:
        >>> import numpy as np
        >>> frozen(np.zeros(2)).flags.writeable
        False
    """
    array.flags.writeable = False
    return array
