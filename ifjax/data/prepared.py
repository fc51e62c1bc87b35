"""Data sets that TensorFlow Datasets prepared as array_record, opened without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from ifjax.data.extras import require

# What a user has to fetch by hand before TFDS can prepare a data set.
_MANUAL = {
    "imagenet2012": (
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which "
        "https://image-net.org/download-images gives to registered users"
    )
}


@runtime_checkable
class Source(Protocol):
    """Examples by their index; each is a mapping with an ``"image"`` and a ``"label"``."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: SupportsIndex, /) -> Mapping[str, Any]:
        """Reads one example."""
        ...


def open_prepared(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    decode_images: bool = True,
) -> Source:
    """Opens a split of a data set that TensorFlow Datasets prepared; nothing is read or fetched.

    Args:
        name: what TFDS calls the data set.
        split: in the language of TFDS: ``"train"``, ``"test[:512]"``.
        data_dir: the folder that holds the folder ``name``; by default ``$TFDS_DATA_DIR``, else
            TFDS' own, ``~/tensorflow_datasets``.
        decode_images: whether examples hold pixels, or the bytes of the image file.

    Returns:
        The examples, by index.

    Raises:
        ImportError: if array_record, Pillow or another optional package is missing.
        FileNotFoundError: if the data set or the split is not prepared there; the message has the
            command that prepares it.

    Example:
        >>> open_prepared("cifar10", "test", "/nowhere")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileNotFoundError: expected cifar10 prepared as array_record in '/nowhere', ...
    """
    purpose = f"Reading {name}"
    tfds = require("tensorflow_datasets", "tensorflow-datasets", purpose)
    # TFDS does not depend on these, though it needs them here, and fails late without them.
    require("importlib_resources", "importlib_resources", purpose)
    require("array_record.python.array_record_data_source", "array_record", purpose)
    require("PIL.Image", "Pillow", purpose)
    folder = Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    # TFDS would look for a description of the data set on the network first.
    if not (folder / name).is_dir():
        raise _unprepared(name, folder, f"no folder {name} there")
    builder = tfds.builder(name, data_dir=folder)
    if not builder.is_prepared():
        raise _unprepared(name, folder, f"nothing complete in {builder.data_dir}")
    if builder.info.file_format.value != "array_record":
        raise _unprepared(name, folder, f"files of the format {builder.info.file_format.value}")
    if split.partition("[")[0] not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise _unprepared(name, folder, f"the splits {known} and no {split}")
    decoders = None if decode_images else {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=decoders)


def _unprepared(name: str, folder: Path, found: str) -> FileNotFoundError:
    command = (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{folder}', file_format='array_record')"
        '.download_and_prepare()"'
    )
    manual = ""
    if name in _MANUAL:
        manual = f" (after putting {_MANUAL[name]}, into {folder / 'downloads' / 'manual'})"
    return FileNotFoundError(
        f"expected {name} prepared as array_record in {str(folder)!r}, got {found}; pass "
        "data_dir or set TFDS_DATA_DIR to where it is, or prepare it once, with a network and "
        f"TensorFlow{manual}:\n  {command}"
    )
