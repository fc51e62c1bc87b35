"""A run that is asked to end: by SIGTERM (a preempted machine) or SIGINT (Control-C)."""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

Handler = Callable[[int, FrameType | None], None]

_calls = itertools.count()


class Interrupted(KeyboardInterrupt):
    """The process was asked to end.

    Attributes:
        code: what the process should exit with, 128 + the number of the signal: 143 for SIGTERM,
            130 for SIGINT.
    """

    def __init__(self, number: int) -> None:
        """Says which signal it was."""
        self.code = 128 + number
        super().__init__(f"interrupted by {signal.Signals(number).name}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets SIGTERM end a process as Control-C does: by an exception, so that files are closed.

    On several hosts JAX keeps SIGTERM to itself, see :func:`deferred`, and Control-C is passed on
    to it: no process ends while the others wait for it. A second Control-C ends the process at
    once; the others then end as if it had been lost.

    Yields:
        Nothing.

    Raises:
        Interrupted: where the process is when the signal comes.

    Example:
        >>> with interruptible():
        ...     try:
        ...         signal.raise_signal(signal.SIGTERM)
        ...     except Interrupted as stop:
        ...         print(stop.code)
        143
    """
    alone = jax.process_count() == 1
    with _handlers(_raise, (signal.SIGTERM,)) if alone else _handlers(_asking(), (signal.SIGINT,)):
        yield


class Request:
    """Whether a run was asked to end.

    Attributes:
        number: of the signal that asked.
        due: whether it is time to.
    """

    number: int = signal.SIGTERM
    due: bool = False

    def is_due(self) -> bool:
        """``due``, after every step; on several hosts every process has to ask as often.

        Returns:
            True from the step on after which the run is to stop.
        """
        # Steps of trainings that follow one another would not rise from call to call.
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_calls)):
            self.due = True
        return self.due


@contextmanager
def deferred() -> Iterator[Request]:
    """Puts off SIGTERM and the first SIGINT until a step is done; a second signal ends at once.

    On several hosts the signal may reach one of them only, or each at another step, or outside of
    this. JAX's coordination service then names a step that none has passed, and all stop there.

    Yields:
        The request.

    Raises:
        Interrupted: on the way out, if the run was asked to end.

    Example:
        >>> try:
        ...     with deferred() as request:
        ...         signal.raise_signal(signal.SIGTERM)
        ...         print(request.is_due())
        ... except Interrupted as stop:
        ...     print(stop.code)
        True
        143
    """
    request = Request()

    def note(number: int, frame: FrameType | None) -> None:
        if request.due:
            _raise(number, frame)
        request.number, request.due = number, True

    numbers = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
    with _handlers(note, numbers):
        yield request
    if request.due:
        raise Interrupted(request.number)


def _asking() -> Handler:
    """Asks all processes to end; the second time, ends this one."""
    came = []

    def ask(number: int, frame: FrameType | None) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)
        os.kill(os.getpid(), signal.SIGTERM)  # what JAX waits for

    return ask


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def _handlers(handler: Handler, numbers: tuple[int, ...]) -> Iterator[None]:
    """Handles the signals so, and as before afterwards; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
