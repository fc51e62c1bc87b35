"""How far a long call is: one line that is rewritten on a terminal, nothing anywhere else."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL = 0.2  # seconds between two lines


@contextmanager
def shown_progress(
    total: int, description: str, unit: str, after: float | int = 0
) -> Iterator[Callable[[], None]]:
    """Shows on stderr how many of a number of steps are done, where it is a terminal.

    Args:
      total: how many there are.
      description: what is done.
      unit: of what, in the plural.
      after: seconds before which nothing is shown: nothing at all of what takes less.

    Yields:
      A function to be called after every step, in any thread.

    Example:
      >>> with shown_progress(3, "read", "batches") as done:
      ...     for _ in range(3):
      ...         done()
    """
    shown, lock = sys.stderr.isatty(), threading.Lock()
    begin, last, count = time.monotonic(), 0.0, 0

    def write(now: float, end: str) -> None:
        text = f"\r{description}: {count}/{total} {unit}, {now - begin:.0f} s"
        print(text, end=end, file=sys.stderr, flush=True)

    def done() -> None:
        nonlocal last, count
        with lock:
            count += 1
            now = time.monotonic()
            if shown and now - begin >= after and now - last >= INTERVAL:
                last = now
                write(now, "")

    try:
        yield done
    finally:
        now = time.monotonic()
        if shown and now - begin >= after:
            write(now, "\n")
