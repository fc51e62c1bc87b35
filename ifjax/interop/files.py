"""Tensors from files in the safetensors format."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

_DTYPES = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BF16": "bfloat16",
    **{f"F{n}": f"float{n}" for n in (16, 32, 64)},
    **{f"{s}{n}": f"{'u' * (s == 'U')}int{n}" for s in "UI" for n in (8, 16, 32, 64)},
    "BOOL": "bool",
}


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
    path = _there(path)
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"expected a complete safetensors file at {str(path)!r}, got {path.stat().st_size} "
            f"bytes that do not read as one ({error}); fetch or export the file again"
        ) from error


def map_safetensors(path: str | os.PathLike[str]) -> dict[str, np.memmap]:
    """The tensors of a safetensors file as parts of a memory map of it: read when they are used.

    The operating system reads pages that are looked at, and may forget them again.

    Args:
        path: the file; it must not change as long as the arrays are used.

    Returns:
        The arrays by name, which cannot be written.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, not in this format, or of a dtype that numpy lacks.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "weights.safetensors"
        ...     save_file({"kernel": np.ones((2, 2), np.float32)}, file)
        ...     map_safetensors(file)["kernel"].sum().item()
        4.0
    """
    path = _there(path)
    found = {}
    try:
        whole = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(whole[:8].tobytes(), "little")
        head = json.loads(whole[8:start].tobytes())
        if not isinstance(head, dict):
            raise ValueError(f"its header is a {type(head).__name__}")
        head.pop("__metadata__", None)
        for name, entry in head.items():
            first, last = entry["data_offsets"]
            dtype = jnp.dtype(_DTYPES[entry["dtype"]])
            if last - first != math.prod(entry["shape"]) * dtype.itemsize:
                raise ValueError(f"{name}: {last - first} bytes for {entry['shape']}")
            part = whole[start + first : start + last]
            found[name] = part.view(dtype).reshape(entry["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: does not read as a safetensors file ({error})") from error
    return found


def _there(path: str | os.PathLike[str]) -> Path:
    """The path of a file that exists."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a safetensors file at {str(path)!r}, got no such file")
    return path
