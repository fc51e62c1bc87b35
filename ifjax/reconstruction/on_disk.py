"""Small leaves in a file, where the full ones are in one too."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np


class OnDisk(dict[int, Any]):
    """Leaves by number, of which those that are written are memory maps of files without a name.

    A file is gone when its array is.

    Example:
      >>> leaves = OnDisk({0: np.zeros(2)}, tempfile.gettempdir())
      >>> leaves[0] = np.ones(3)
      >>> type(leaves[0]).__name__, leaves[0].tolist()
      ('memmap', [1.0, 1.0, 1.0])
    """

    def __init__(self, leaves: Mapping[int, Any], folder: str | os.PathLike[str]) -> None:
        """Of the leaves as they are; files are in a folder."""
        super().__init__(leaves)
        self.folder = folder

    def __setitem__(self, number: int, value: Any) -> None:
        """Writes an array of numpy to a file; others stay what they are."""
        super().__setitem__(number, _mapped(value, self.folder))


def _mapped(value: Any, folder: str | os.PathLike[str]) -> Any:
    if not isinstance(value, np.ndarray) or isinstance(value, np.memmap) or not value.size:
        return value
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        file.flush()
        return np.memmap(file, value.dtype, "r", shape=value.shape)
