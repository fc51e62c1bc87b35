"""CIFAR-10 as TensorFlow Datasets prepares it, read without TensorFlow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from ifjax.data.dataset import Dataset, frozen
from ifjax.data.extras import require

CIFAR10_MEAN = (0.485, 0.456, 0.406)
"""What is subtracted from RGB / 255; the usual pretrained CIFAR ResNets were trained so."""

CIFAR10_STD = (0.229, 0.224, 0.225)
"""What is divided by afterwards."""

_PURPOSE = "Reading CIFAR-10"


def load_cifar10(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load CIFAR-10 into memory: 50,000 training and 10,000 test images of 32 x 32 x 3, uint8.

    Decoding takes 5 to 25 seconds and shows its progress.

    Args:
        data_dir: the folder that holds ``cifar10/3.0.2``; by default ``$TFDS_DATA_DIR``, else
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
    """
    train_images, train_labels = cifar10_split("train", data_dir)
    test_images, test_labels = cifar10_split("test", data_dir)
    return Dataset(
        name="cifar10",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=10,
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        crop_padding=4,
        flip=True,
    )


def cifar10_split(
    split: str, data_dir: str | os.PathLike[str] | None = None
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int32[np.ndarray, " n"]]:
    """Load one split of CIFAR-10, or a slice of one.

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
    tqdm = require("tqdm", "tqdm", _PURPOSE).tqdm
    source = _source(split, data_dir)
    images = np.empty((len(source), 32, 32, 3), dtype=np.uint8)
    labels = np.empty(len(source), dtype=np.int32)
    for index, example in enumerate(tqdm(source, desc=f"cifar10 {split}", unit=" images")):
        images[index], labels[index] = example["image"], example["label"]
    return frozen(images), frozen(labels)


def _source(split: str, data_dir: str | os.PathLike[str] | None) -> Any:
    tfds = require("tensorflow_datasets", "tensorflow-datasets", _PURPOSE)
    # TFDS does not depend on these, though it needs them here, and fails late without them.
    require("importlib_resources", "importlib_resources", _PURPOSE)
    require("array_record.python.array_record_data_source", "array_record", _PURPOSE)
    require("PIL.Image", "Pillow", _PURPOSE)
    folder = Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    # TFDS would look for a description of the data set on the network first.
    if not (folder / "cifar10").is_dir():
        raise _unprepared(folder, "no folder cifar10 there")
    builder = tfds.builder("cifar10", data_dir=folder)
    if not builder.is_prepared():
        raise _unprepared(folder, f"nothing complete in {builder.data_dir}")
    if builder.info.file_format.value != "array_record":
        raise _unprepared(folder, f"files of the format {builder.info.file_format.value}")
    return builder.as_data_source(split=split)


def _unprepared(folder: Path, found: str) -> FileNotFoundError:
    command = (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('cifar10', data_dir='{folder}', file_format='array_record')"
        '.download_and_prepare()"'
    )
    return FileNotFoundError(
        f"expected CIFAR-10 prepared as array_record in {str(folder)!r}, got {found}; pass "
        "data_dir or set TFDS_DATA_DIR to where it is, or prepare it once, with a network and "
        "TensorFlow:\n"
        f"  {command}"
    )
