"""Tensors from files in the safetensors format."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every tensor of a safetensors file.

    Args:
        path: the file.

    Returns:
        The arrays by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated or not in this format.
        ImportError: if the package safetensors is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "weights.safetensors"
        ...     save_file({"linear.bias": np.zeros(3, np.float32)}, file)
        ...     load_safetensors(file)["linear.bias"].shape
        (3,)
    """
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "reading safetensors files needs the package safetensors; "
            "run: pip install 'ifjax[train]'"
        ) from error
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a safetensors file at {str(path)!r}, got no such file")
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"expected a complete safetensors file at {str(path)!r}, got {path.stat().st_size} "
            f"bytes that do not read as one ({error}); fetch or export the file again"
        ) from error
