"""Progress of long loops: a bar that moves on a terminal, one line at the end anywhere else."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ifjax.data.extras import require

if TYPE_CHECKING:
    from tqdm import tqdm

LINE = "{desc}: {n_fmt}/{total_fmt}{unit} in {elapsed}{postfix}"


@contextmanager
def progress(
    total: int, description: str, unit: str, *, done: int = 0, shown: bool = True
) -> Iterator[tqdm]:
    """Shows on stderr how far a loop is.

    Where stderr is no terminal, such as a log file, nothing is written before the loop ends, and
    then one line; none if nothing was left to do.

    Args:
        total: how much there is to do.
        description: what is done.
        unit: of what, in the plural.
        done: how much of it was done before.
        shown: False to write nothing at all.

    Yields:
        A tqdm bar: call its ``update()``.

    Raises:
        ImportError: if tqdm is missing, with the command that installs it.

    Example:
        >>> with progress(3, "read", "images", shown=False) as bar:
        ...     for _ in range(3):
        ...         _ = bar.update()
    """
    tqdm = require("tqdm", "tqdm", "A progress bar").tqdm
    options = {"total": total, "initial": done, "desc": description, "unit": f" {unit}"}
    options["disable"] = not shown  # whatever tqdm's own environment variables say
    if not shown or sys.stderr.isatty():
        with tqdm(**options) as bar:
            yield bar
    else:
        # It counts, and what it draws at its beginning goes nowhere.
        bar = tqdm(**options, file=io.StringIO(), mininterval=math.inf, bar_format=LINE)
        try:
            yield bar
        finally:
            if bar.n > done:
                print(bar, file=sys.stderr)
            bar.close()
