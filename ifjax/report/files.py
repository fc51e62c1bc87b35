"""Files that are there whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: the file; one that exists is replaced.
        write: writes the content to the path it is given, a neighbour of ``path``.

    Raises:
        OSError: if the folder cannot be written to; what ``write`` raises is passed on. In both
            cases ``path`` is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(f"{folder}/a.txt", lambda file: file.write_text("content"))
        ...     os.listdir(folder)
        ['a.txt']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
