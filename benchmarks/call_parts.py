"""What a call consists of: importing, tracing, lowering, XLA's compilation, and the rest.

Used by `first_call`. Of what jax says of itself the events within events and those of several
threads overlap; here every moment counts once, for the first part that it belongs to.
"""

from __future__ import annotations

import builtins
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import hlo
import jax

# In this order: importing is part of the tracing that asks for it.
EVENTS = {
    "importing s": "",
    "trace s": "/jax/core/compile/jaxpr_trace_duration",
    "lower s": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compile s": "/jax/core/compile/backend_compile_duration",
}
Interval = tuple[float, float]


class Parts:
    """Listens from when it is entered until it is left.

    Attributes:
      programs: how many were compiled.
      intervals: of every part, from when to when.
    """

    def __init__(self) -> None:
        """Hears nothing yet."""
        self.programs = 0
        self.intervals: dict[str, list[Interval]] = {part: [] for part in EVENTS}
        self._import, self._within = builtins.__import__, threading.local()
        self._began = self._ended = 0.0

    def __enter__(self) -> Parts:
        """Starts."""
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        builtins.__import__ = self._imported
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        """Stops listening."""
        self._ended = time.perf_counter()
        builtins.__import__ = self._import
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_: Any) -> None:
        now = time.perf_counter()
        for part, name in EVENTS.items():
            if event == name:
                self.intervals[part].append((now - seconds, now))
                self.programs += part == "compile s"

    def _imported(self, name: str, *args: Any, **options: Any) -> Any:
        if name in sys.modules or getattr(self._within, "one", False):
            return self._import(name, *args, **options)
        self._within.one, start = True, time.perf_counter()
        try:
            return self._import(name, *args, **options)
        finally:
            self._within.one = False
            self.intervals["importing s"].append((start, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Of every part what none before it has, and of the rest, ``run s``."""
        found, known, so_far = {}, 0.0, []
        for part, intervals in self.intervals.items():
            so_far += [(max(a, self._began), min(b, self._ended)) for a, b in intervals]
            found[part], known = covered(so_far) - known, covered(so_far)
        return {**found, "run s": self._ended - self._began - known}


def covered(intervals: Sequence[Interval]) -> float:
    """How long at least one of them lasts.

    >>> covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
    4.0
    """
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(stop - max(start, end), 0)
        end = max(end, stop)
    return total


def kernels() -> int:
    """Of all programs that this process holds; those of functions that are gone are not."""
    held = jax.devices()[0].client.live_executables()
    return sum(hlo.work(m.to_string()).kernels for x in held for m in x.hlo_modules())
