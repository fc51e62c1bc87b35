"""How far a long call is: one line that is rewritten on a terminal, nothing anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL = 0.2  # seconds between two lines


@contextmanager
def shown_progress(total: int, description: str, unit: str) -> Iterator[Callable[[], None]]:
    """Shows on stderr how many of a number of steps are done, where it is a terminal.

    Args:
      total: how many there are.
      description: what is done.
      unit: of what, in the plural.

    Yields:
      A function to be called after every step.

    Example:
      >>> with shown_progress(3, "read", "batches") as done:
      ...     for _ in range(3):
      ...         done()
    """
    shown = sys.stderr.isatty()
    begin, last, count = time.monotonic(), 0.0, 0

    def write(now: float, end: str) -> None:
        text = f"\r{description}: {count}/{total} {unit}, {now - begin:.0f} s"
        print(text, end=end, file=sys.stderr, flush=True)

    def done() -> None:
        nonlocal last, count
        count += 1
        now = time.monotonic()
        if shown and now - last >= INTERVAL:
            last = now
            write(now, "")

    try:
        yield done
    finally:
        if shown:
            write(time.monotonic(), "\n")
