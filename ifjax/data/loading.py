"""Data sets by name."""

from __future__ import annotations

import os

from ifjax.data.cifar10 import load_cifar10
from ifjax.data.dataset import Dataset
from ifjax.data.digits import load_digits

DATASETS: tuple[str, ...] = ("digits", "cifar10")
"""The names :func:`load` knows."""


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set into memory.

    Args:
        name: ``"digits"`` (part of scikit-learn, no files needed) or ``"cifar10"`` (prepared by
            TensorFlow Datasets).
        data_dir: for ``"cifar10"``, the folder that holds ``cifar10/3.0.2``; by default
            ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Returns:
        Both splits.

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
    if name == "cifar10":
        return load_cifar10(data_dir)
    raise ValueError(f"expected a data set out of {', '.join(DATASETS)}; got {name!r}")
