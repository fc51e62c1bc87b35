"""A data set too large for memory: images are decoded, cropped and batched as they are needed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray, UInt8

from ifjax.data.batching import Batch, check_batch_size, epoch_order, epoch_steps, padded
from ifjax.data.dataset import normalize
from ifjax.data.extras import require
from ifjax.data.prepared import Source


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedDataset:
    """Images read by index, transformed and batched ahead of use in threads or processes (grain).

    What a batch holds depends on ``(seed, epoch)`` and its place alone, not on the number of
    threads or processes: the order is the one of :func:`ifjax.data.train_batches`, and image number
    ``i`` of an epoch is transformed with ``numpy.random.default_rng((seed, epoch, i))``.

    Attributes:
        name: what :func:`ifjax.data.load` calls it.
        train_source: training examples by index, with ``"image"`` and ``"label"``.
        test_source: test examples.
        num_classes: the number of classes.
        image_shape: height, width and channels after the transformation.
        mean: per channel, what :meth:`normalize` subtracts, in units where white is 1.
        std: per channel, what it divides by.
        train_transform: ``(image, rng) -> pixels``, decoding and augmentation of one image.
        test_transform: ``image -> pixels``.
        workers: processes that prepare batches; 0 for threads of this process only. Processes get
            copies of sources and transforms, which therefore must pickle, and import the main
            script again, which therefore needs its ``if __name__ == "__main__":``.
        threads: threads that prepare batches in each process, one batch each; as many batches are
            held in memory.

    Raises:
        ImportError: if grain is not installed.
        ValueError: if a number of threads or processes is out of range, or ``mean`` and ``std`` do
            not fit the channels.

    Example:
        >>> import numpy as np
        >>> source = [{"image": np.full((2, 2, 1), i, np.uint8), "label": i} for i in range(5)]
        >>> data = StreamedDataset(
        ...     "none", source, source, 5, (2, 2, 1), (0.5,), (0.25,),
        ...     train_transform=lambda image, rng: image, test_transform=lambda image: image,
        ... )
        >>> [batch.labels.tolist() for batch in data.eval_batches(2)]
        [[0, 1], [2, 3], [4, 0]]
    """

    name: str
    train_source: Source
    test_source: Source
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_transform: Callable[[Any, np.random.Generator], np.ndarray]
    test_transform: Callable[[Any], np.ndarray]
    workers: int = 0
    threads: int = 8

    def __post_init__(self) -> None:
        """Checks the settings, and that grain is there."""
        require("grain", "grain", f"Streaming {self.name}")
        if self.workers < 0 or self.threads < 1:
            raise ValueError(
                f"expected at least 0 workers and 1 thread for {self.name!r}, got "
                f"workers={self.workers!r}, threads={self.threads!r}"
            )
        channels = self.image_shape[2]
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"expected a mean and a std for each of the {channels} channels of {self.name!r}, "
                f"got mean={self.mean!r}, std={self.std!r}"
            )

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.train_source)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.test_source)

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, skip: int = 0
    ) -> Iterator[Batch]:
        """Goes once through the training images in random order, dropping the remainder.

        Args:
            batch_size: the images of a step.
            seed: of the whole training run.
            epoch: the number of the pass; ``(seed, epoch)`` alone fixes order and augmentation.
            skip: how many batches to leave out at the start; they are not decoded.

        Returns:
            An iterator over ``num_train // batch_size - skip`` batches of uint8 images.

        Raises:
            ValueError: if ``batch_size`` is not in ``1..num_train``, or ``skip`` is negative.
        """
        steps = epoch_steps(self.num_train, batch_size, skip)
        example = functools.partial(
            _train_example,
            self.train_source,
            self.train_transform,
            self.image_shape,
            epoch_order(self.num_train, seed, epoch),
            (seed, epoch),
        )
        full = np.ones(batch_size, dtype=bool)
        positions = range(steps.start * batch_size, steps.stop * batch_size)
        stream = self._stream(example, positions, batch_size)
        return (Batch(images, labels, full) for images, labels in stream)

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Goes once through the test images in their order; the last batch is filled and masked.

        Args:
            batch_size: the images of a step.

        Returns:
            An iterator over ``ceil(num_test / batch_size)`` batches of uint8 images.

        Raises:
            ValueError: if ``batch_size`` is not positive.
        """
        check_batch_size(batch_size)
        example = functools.partial(
            _test_example, self.test_source, self.test_transform, self.image_shape
        )
        stream = self._stream(example, range(self.num_test), batch_size)
        return (padded(images, labels, batch_size) for images, labels in stream)

    def normalize(
        self, images: Num[Array | np.ndarray, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Applies :func:`ifjax.data.normalize` with this data set's constants."""
        return normalize(images, self.mean, self.std)

    def augment(
        self, key: PRNGKeyArray, images: Num[Array | np.ndarray, "batch height width channels"]
    ) -> Num[Array, "batch height width channels"]:
        """The images as they are: ``train_transform`` has augmented them on the host."""
        del key
        return jnp.asarray(images)

    def _stream(
        self, example: Callable[[int], Any], positions: range, batch_size: int
    ) -> Iterator[Any]:
        if not positions:
            return iter(())
        import grain  # an extra, and slow to import

        # Batches are whole before threads and processes share them out, so that their number
        # changes neither the batches nor their order.
        batches = grain.MapDataset.range(positions.start, positions.stop).map(example)
        batches = batches.batch(batch_size, drop_remainder=False)
        stream = batches.to_iter_dataset(
            grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.threads)
        )
        if self.workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                # grain's processes read absl's flags, which only absl's own main would parse.
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=self.workers))
        return iter(stream)


def _train_example(
    source: Source,
    transform: Callable[[Any, np.random.Generator], np.ndarray],
    shape: tuple[int, ...],
    order: np.ndarray,
    seeds: tuple[int, int],
    position: int,
) -> tuple[UInt8[np.ndarray, "height width channels"], np.int32]:
    index = int(order[position])
    found = source[index]
    pixels = transform(found["image"], np.random.default_rng((*seeds, position)))
    return _checked(pixels, shape, index), np.int32(found["label"])


def _test_example(
    source: Source, transform: Callable[[Any], np.ndarray], shape: tuple[int, ...], index: int
) -> tuple[UInt8[np.ndarray, "height width channels"], np.int32]:
    found = source[index]
    return _checked(transform(found["image"]), shape, index), np.int32(found["label"])


def _checked(pixels: np.ndarray, shape: tuple[int, ...], index: int) -> np.ndarray:
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(
            f"expected a transform that gives uint8 pixels of shape {shape}, got "
            f"{pixels.dtype} {pixels.shape} for example {index}"
        )
    return pixels
