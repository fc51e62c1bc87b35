"""One run on several hosts, a process on each: how they join, and how they end together."""

import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

AUTO = "auto"
_GRACE = 2.0
_CHUNK = 1 << 26
_AGREED = (0, 130, 143)
"""Exit codes with which all processes end, or none: finished, or interrupted."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of one run.

    Attributes:
        coordinator: ``HOST:PORT`` at which process 0 can be reached; ``"auto"`` to learn everything
            from the environment (Slurm, Open MPI, Kubernetes, Cloud TPU); None for one process.
        processes: how many there are; None to learn it from the environment.
        process: which of them this one is, from 0; None to learn it from the environment.
        local_devices: the accelerators that this process takes; None for all of its host.
        timeout: seconds without a sign of life after which a process counts as lost.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    local_devices: tuple[int, ...] | None = None
    timeout: int = 15

    def __post_init__(self) -> None:
        """Refuses what cannot be."""
        given = (self.processes, self.process, self.local_devices)
        if self.coordinator is None and given != (None, None, None):
            raise ValueError(
                "expected a coordinator, HOST:PORT of process 0 or 'auto', where processes, "
                "process or local_devices are given; got none"
            )
        if self.coordinator not in (None, AUTO) and not _is_address(self.coordinator):
            raise ValueError(f"expected HOST:PORT or 'auto' as coordinator, got {self.coordinator}")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"expected at least 1 process, got {self.processes}")
        if self.process is not None and not 0 <= self.process < (self.processes or np.inf):
            raise ValueError(
                f"expected process in 0..{(self.processes or 1) - 1}, with processes given, got "
                f"process={self.process}, processes={self.processes}"
            )
        if self.timeout < 2:
            raise ValueError(f"expected a timeout of at least 2 seconds, got {self.timeout}")


def run(job: Callable[[], int], cluster: Cluster) -> int:
    """Joins the other processes, does a job with them, and leaves when all are done.

    Has to come before JAX has looked for devices. Only process 0 prints to stdout. If a process is
    killed, or its host or the network fails, all others end within ``cluster.timeout`` and a few
    seconds, with a message and an exit code that is not 0, whatever they were waiting for; at once,
    if it was process 0. If the job fails in one process, the others end in the same way.

    Args:
        job: what every process is to do; gives its exit code.
        cluster: the processes.

    Returns:
        The job's exit code; where it is not 0 and there are several processes, this function does
        not return, and the process ends with it.

    Raises:
        ValueError: if the environment does not say what ``cluster`` leaves open.

    Example:
        >>> run(lambda: jax.process_count() - 1, Cluster())
        0
    """
    if cluster.coordinator is None:
        return job()
    auto = cluster.coordinator == AUTO
    jax.distributed.initialize(
        None if auto else cluster.coordinator,
        cluster.processes,
        cluster.process,
        cluster.local_devices,
        cluster_detection_method=None if _is_open(cluster) else "deactivate",
        heartbeat_timeout_seconds=cluster.timeout,
        # Leaving is a barrier: nobody is late, however long the first one's last checkpoint takes.
        shutdown_timeout_seconds=7 * 24 * 3600,
    )
    with _epitaph(), _quiet():
        code = _attempt(job, cluster.timeout)
        if code in _AGREED:
            jax.distributed.shutdown()
    if code not in _AGREED:
        # The service of process 0 ends with it, and takes along those who fail a moment later.
        time.sleep(_GRACE)
        sys.stderr.flush()
        os._exit(code)  # without the barrier of leaving
    return code


def is_first() -> bool:
    """Whether this is process 0, which alone writes files.

    Returns:
        True where there is one process only.

    Example:
        >>> is_first()
        True
    """
    return jax.process_index() == 0


def on_first(function: Callable[[], T]) -> T:
    """Calls a function in process 0, and gives its result to all; every process has to call this.

    Args:
        function: such as one that reads a file that only the host of process 0 has; its result must
            pickle.

    Returns:
        What it returned.

    Raises:
        Exception: what it raised, in all processes.

    Example:
        >>> on_first(lambda: 7)
        7
    """
    if jax.process_count() == 1:
        return function()
    outcome: tuple[Any, Exception | None] = None, None
    if is_first():
        try:
            outcome = function(), None
        except Exception as error:
            outcome = None, error
    value, error = pickle.loads(_broadcast(pickle.dumps(outcome)))
    if error is not None:
        raise error
    return value


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """Tells a broken connection, for which JAX may raise ValueError, from a wrong value.

    Yields:
        Nothing.

    Raises:
        JaxRuntimeError: in place of ValueError.

    Example:
        >>> with contextlib.suppress(RuntimeError), talking():
        ...     raise ValueError("UNKNOWN: Connection reset by peer")
    """
    try:
        yield
    except ValueError as error:
        raise jax.errors.JaxRuntimeError(str(error)) from error


@talking()
def _broadcast(content: bytes) -> bytes:
    """The content that process 0 has."""
    length = np.frombuffer(np.uint64(len(content)).tobytes(), np.uint8)
    length = np.asarray(multihost_utils.broadcast_one_to_all(length)).astype(np.uint8)
    count = int(length.view(np.uint64)[0])
    mine = np.frombuffer(content, np.uint8) if is_first() else np.zeros(count, np.uint8)
    pieces = [
        np.asarray(multihost_utils.broadcast_one_to_all(mine[at : at + _CHUNK])).astype(np.uint8)
        for at in range(0, count, _CHUNK)
    ]
    return b"".join(piece.tobytes() for piece in pieces)


def _attempt(job: Callable[[], int], timeout: int) -> int:
    """The job's exit code; 1 if it raises."""
    try:
        return job()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except jax.errors.JaxRuntimeError as error:
        # Where connections tell of a lost process at once, this comes before JAX's verdict.
        print(
            f"process {jax.process_index()}: a computation failed: {str(error).splitlines()[0]}; "
            f"if another process was lost, this one ends within {timeout} seconds",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(timeout + _GRACE)
        traceback.print_exception(error)
    except BaseException as error:
        traceback.print_exception(error)
    return 1


@contextlib.contextmanager
def _epitaph() -> Iterator[None]:
    """Has it said why this process is gone, should it not come to its end.

    When a process is lost, JAX's coordination service aborts the others from a thread of its own,
    in which no Python runs. So a shell waits for the end of a pipe, and says it.
    """
    message = (
        f"process {jax.process_index()} of {jax.process_count()} has ended before its time: "
        "another process or its host was lost (JAX's messages above say which), or this one was "
        "killed; the same command on all hosts continues the run"
    )
    script = 'read -r _ || printf "%s\\n" "$0" >&2'
    with subprocess.Popen(
        ["sh", "-c", script, message], stdin=subprocess.PIPE, start_new_session=True
    ) as shell:
        yield
        assert shell.stdin is not None
        shell.stdin.write(b"\n")


def _quiet() -> contextlib.AbstractContextManager[Any]:
    if is_first():
        return contextlib.nullcontext()
    return contextlib.redirect_stdout(open(os.devnull, "w"))


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal()


def _is_open(cluster: Cluster) -> bool:
    """Whether the environment has to say something."""
    return cluster.coordinator == AUTO or None in (cluster.processes, cluster.process)
