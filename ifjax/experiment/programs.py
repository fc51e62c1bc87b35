"""Compiled programs that are kept from run to run, in the user's cache directory."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

DAYS = 30
"""Programs that no run has read for so long are removed from the user's cache."""

_FOLDER, _ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
_LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def programs_folder() -> str:
    """Where compiled programs are kept: ``$JAX_COMPILATION_CACHE_DIR``, or the user's cache.

    Returns:
        Without the variable ``ifjax/programs`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``
        (``~/Library/Caches`` on macOS). With it whatever JAX takes: a folder or an address.

    Example:
        >>> programs_folder() != ""
        True
    """
    if chosen := _setting(_FOLDER):
        return chosen
    home = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    caches = Path(os.environ.get("XDG_CACHE_HOME") or home).expanduser()
    return str(caches.absolute() / "ifjax" / "programs")


@contextlib.contextmanager
def kept_programs(keep: bool = True) -> Iterator[str | None]:
    """Looks programs up in :func:`programs_folder` before compiling them, and keeps new ones there.

    All of them, however short it takes to compile one: the many small ones of a run add up. What
    the environment says by JAX's own variables holds.

    Args:
        keep: False to read none and to write none, whatever the environment says.

    Yields:
        The folder; None where none is used: with ``keep=False``, with JAX's cache switched off, or
        where the folder cannot be made (which is told on stderr).

    Example:
        >>> with kept_programs(False) as folder:
        ...     print(folder)
        None
    """
    folder = None
    if keep and _setting(_ENABLED):
        folder = _made(programs_folder())
    changes: dict[str, str | float | bool] = {_ENABLED: folder is not None}
    if folder is not None:
        changes[_FOLDER] = folder
        if _LEAST not in os.environ:
            changes["jax_persistent_cache_min_compile_time_secs"] = 0.0
    before = {name: _setting(name) for name in changes}
    _set(changes)
    try:
        yield folder
    finally:
        _set(before)


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


def _set(values: Mapping[str, str | float | bool | None]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it may be open, on another folder


def _made(folder: str) -> str | None:
    """The folder, made or rid of what is old; a run does not fail for want of a cache."""
    if folder == _setting(_FOLDER):
        return folder  # JAX's to make
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written to")
        for file in filter(Path.is_file, Path(folder).iterdir()):
            with contextlib.suppress(FileNotFoundError):  # another run was first
                if time.time() - max(file.stat().st_atime, file.stat().st_mtime) > 86400 * DAYS:
                    file.unlink()
    except OSError as error:
        print(f"compiled programs are not kept: {error}", file=sys.stderr)
        return None
    return folder
