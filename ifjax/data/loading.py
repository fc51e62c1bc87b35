"""Data sets by name."""

from __future__ import annotations

import os

from ifjax.data.cifar import load_cifar10, load_cifar100
from ifjax.data.digits import load_digits
from ifjax.data.imagenet import load_imagenet2012
from ifjax.data.protocol import ImageDataset

DATASETS: tuple[str, ...] = ("digits", "cifar10", "cifar100", "imagenet2012")
"""The names :func:`load` knows."""

_PREPARED = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "imagenet2012": load_imagenet2012,
}


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> ImageDataset:
    """Loads a small data set into memory, or opens a large one.

    Args:
        name: ``"digits"`` (part of scikit-learn, no files needed), or one that TensorFlow Datasets
            has prepared as array_record: ``"cifar10"``, ``"cifar100"``, ``"imagenet2012"``.
        data_dir: for these, the folder that holds the folder of that name; by default
            ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Returns:
        Both splits: a :class:`ifjax.data.StreamedDataset` for ``"imagenet2012"``, else a
        :class:`ifjax.data.Dataset`.

    Raises:
        ValueError: if the name is unknown.
        ImportError: if an optional package is missing; the message has the command to install it.
        FileNotFoundError: if the data set is not prepared; the message has the command for it.

    Example:
        >>> load("digits").num_classes
        10
    """
    if name == "digits":
        return load_digits()
    if name in _PREPARED:
        return _PREPARED[name](data_dir)
    raise ValueError(f"expected a data set out of {', '.join(DATASETS)}; got {name!r}")
