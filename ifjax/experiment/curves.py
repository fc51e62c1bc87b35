"""Curves of a run, as TensorBoard reads them."""

import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.summary import scalar


@contextmanager
def open_curves(folder: Path, step: int = 0) -> Iterator[EventsWriter]:
    """Opens an event file of a run that begins, or goes on, at a step.

    Args:
        folder: of the run; ``tensorboard --logdir`` takes it or a folder above it.
        step: TensorBoard forgets what an earlier, interrupted process wrote for this step and later
            ones, which are done again.

    Yields:
        The file, for :func:`add`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, open_curves(Path(name)) as curves:
        ...     add(curves, 10, {"train/loss": 0.25})
        ...     len(list(Path(name).iterdir()))
        1
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The file itself, and not tensorboardX's SummaryWriter: its thread may write later than flush()
    # returns, and never in a process that is killed. The suffix keeps files of one second apart.
    curves = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
    start = SessionLog(status=SessionLog.START)
    curves.write_event(Event(wall_time=time.time(), step=step, session_log=start))
    try:
        yield curves
    finally:
        curves.close()


def add(curves: EventsWriter, step: int, values: Mapping[str, float]) -> None:
    """Adds a point to every named curve; it is on disk afterwards, so that a killed run loses none.

    Args:
        curves: as :func:`open_curves` gives it.
        step: the number of steps done.
        values: by name; names that share what stands before ``/`` are shown together.
    """
    for name, value in values.items():
        event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
        curves.write_event(event)
    curves.flush()


def read(folder: Path) -> dict[str, dict[int, float]]:
    """Reads the curves of a run back, as TensorBoard shows them.

    Args:
        folder: of the run.

    Returns:
        By name, values by step; without those that an interrupted process wrote and another one
        did again.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with open_curves(Path(name)) as curves:
        ...         add(curves, 10, {"train/loss": 0.25})
        ...     read(Path(name))
        {'train/loss': {10: 0.25}}
    """
    found: dict[str, dict[int, float]] = {}
    for event in _events(folder):
        if event.session_log.status == SessionLog.START:
            found = {
                name: {step: value for step, value in curve.items() if step < event.step}
                for name, curve in found.items()
            }
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def _events(folder: Path) -> Iterator[Event]:
    """Events in the order of their files; a TFRecord is length, checksum, message, checksum."""
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content, at = file.read_bytes(), 0
        while at + 16 <= len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            if at + 16 + length <= len(content):  # else the last one of a process that was killed
                yield Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
