"""CIFAR-10 and CIFAR-100 as TensorFlow Datasets prepares them, held in memory."""

from __future__ import annotations

import os

import numpy as np
from jaxtyping import Int32, UInt8

from ifjax.data.dataset import Dataset, frozen
from ifjax.data.prepared import open_prepared
from ifjax.data.progress import progress

CIFAR10_MEAN = (0.485, 0.456, 0.406)
"""What is subtracted from RGB / 255; the usual pretrained CIFAR ResNets were trained so."""

CIFAR10_STD = (0.229, 0.224, 0.225)
"""What is divided by afterwards."""

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
"""Mean of CIFAR-100's training images per channel (https://github.com/weiaicunzai/pytorch-cifar100)."""

CIFAR100_STD = (0.2673, 0.2564, 0.2762)
"""Their standard deviation, from the same place."""


def load_cifar10(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads CIFAR-10 into memory: 50,000 training and 10,000 test images of 32 x 32 x 3, uint8.

    Decoding takes 5 to 25 seconds and shows its progress.

    Args:
        data_dir: the folder that holds ``cifar10``; by default ``$TFDS_DATA_DIR``, else
            TensorFlow Datasets' own, ``~/tensorflow_datasets``.

    Returns:
        The data set; normalisation is that of :data:`CIFAR10_MEAN` and :data:`CIFAR10_STD`,
        augmentation crops with 4 pixels of padding and flips.

    Raises:
        ImportError: if array_record, Pillow or another optional package is missing.
        FileNotFoundError: if the data set is not prepared there; the message has the command that
            does it.

    Example:
        >>> data = load_cifar10("~/tensorflow_datasets")  # doctest: +SKIP
        >>> data.train_images.shape  # doctest: +SKIP
        (50000, 32, 32, 3)

    References:
        Krizhevsky, `Learning Multiple Layers of Features from Tiny Images
        <https://www.cs.toronto.edu/~kriz/cifar.html>`_, 2009.
    """
    return _load("cifar10", data_dir, 10, CIFAR10_MEAN, CIFAR10_STD)


def load_cifar100(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads CIFAR-100 into memory: images as in CIFAR-10, of 100 classes.

    Args:
        data_dir: the folder that holds ``cifar100``; the default is that of :func:`load_cifar10`.

    Returns:
        The data set; normalisation is that of :data:`CIFAR100_MEAN` and :data:`CIFAR100_STD`,
        augmentation that of :func:`load_cifar10`.

    Raises:
        ImportError: if array_record, Pillow or another optional package is missing.
        FileNotFoundError: if the data set is not prepared there; the message has the command that
            does it.

    Example:
        >>> load_cifar100("~/tensorflow_datasets").num_classes  # doctest: +SKIP
        100
    """
    return _load("cifar100", data_dir, 100, CIFAR100_MEAN, CIFAR100_STD)


def cifar10_split(
    split: str, data_dir: str | os.PathLike[str] | None = None
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int32[np.ndarray, " n"]]:
    """Loads one split of CIFAR-10, or a slice of one.

    Args:
        split: in the language of TensorFlow Datasets: ``"train"``, ``"test"``, ``"test[:512]"``.
        data_dir: as for :func:`load_cifar10`.

    Returns:
        Images and labels, both read-only.

    Raises:
        ImportError: if array_record, Pillow or another optional package is missing.
        FileNotFoundError: if the data set is not prepared there; the message has the command that
            does it.

    Example:
        >>> images, labels = cifar10_split("test[:512]")  # doctest: +SKIP
        >>> images.shape, images.dtype  # doctest: +SKIP
        ((512, 32, 32, 3), dtype('uint8'))
    """
    return _split("cifar10", split, data_dir)


def _load(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    train_images, train_labels = _split(name, "train", data_dir)
    test_images, test_labels = _split(name, "test", data_dir)
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=num_classes,
        mean=mean,
        std=std,
        crop_padding=4,
        flip=True,
    )


def _split(
    name: str, split: str, data_dir: str | os.PathLike[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    source = open_prepared(name, split, data_dir)
    images = np.empty((len(source), 32, 32, 3), dtype=np.uint8)
    labels = np.empty(len(source), dtype=np.int32)
    with progress(len(source), f"{name} {split}", "images") as bar:
        for index in range(len(source)):
            example = source[index]
            images[index], labels[index] = example["image"], example["label"]
            bar.update()
    return frozen(images), frozen(labels)
