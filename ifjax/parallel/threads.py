"""Work in numpy side by side on the threads of the host.

numpy, SciPy and compiled programs release Python's lock, so that work that does not wait on each
other is done at once. BLAS gives every product all cores, and the threads of one wait spinning for
those of another: while all threads have a call, a product has one.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import PyTree
from threadpoolctl import ThreadpoolController

T = TypeVar("T")

_THREADS = min(os.cpu_count() or 1, 8)
# Entries that are read sooner than another thread has begun.
_SMALL = 2**18
# Threads of a product while all threads have a call; BLAS has one setting for the whole process.
_PRODUCT: int | None = 1
_setting = threading.Lock()


def each(
    calls: Iterable[Callable[[], T]], sizes: Iterable[float | int] = (), *operands: PyTree
) -> list[T]:
    """The results of some calls, made side by side, the largest first.

    One after another where there is little to do, where an operand is an array of jax, and inside
    context managers that change jax's configuration, of which other threads would know nothing.
    numpy's warnings of numbers are silent, as jax's are.

    Args:
      calls: without arguments; they wait on each other nowhere.
      sizes: how many entries they read or make; their order where it is not known.
      *operands: trees of the arrays that they read.

    Returns:
      The results, in the order of the calls.

    Example:
      >>> each([lambda: np.ones(()), lambda: np.zeros(()) / 0], sizes=[10**6, 10**7])
      [array(1.), np.float64(nan)]
    """
    calls, largest = list(calls), dict(enumerate(sizes))
    small = bool(largest) and sum(largest.values()) < _SMALL
    if len(calls) < 2 or small or not threadable(*operands):
        return [_quiet(call) for call in calls]
    order = sorted(range(len(calls)), key=lambda i: -largest.get(i, 0))
    with one_thread(len(calls) >= _THREADS):
        found = {i: _pool().submit(_quiet, calls[i]) for i in order}
        return [found[i].result() for i in range(len(calls))]


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Products and factorisations of one thread, where nobody has seen to it already.

    Those of a thousand columns gain little from more, and on a host that does something else too
    threads that wait for each other take several times as long.

    Args:
      wanted: else nothing changes.

    Example:
      >>> with one_thread():
      ...     np.linalg.eigvalsh(np.eye(2)).tolist()
      [1.0, 1.0]
    """
    if not wanted or not _setting.acquire(blocking=False):
        yield
        return
    try:
        with _blas().limit(limits=_PRODUCT, user_api="blas"):
            yield
    finally:
        _setting.release()


def threadable(*operands: PyTree) -> bool:
    """Whether calls in other threads do the same as in this one, and there are other threads."""
    return (
        _THREADS > 1
        and not any(isinstance(x, jax.Array) for x in jax.tree.leaves(operands))
        and jax.sharding.get_abstract_mesh().empty
        and _configuration() == _pool().submit(_configuration).result()
    )


def _quiet(call: Callable[[], T]) -> T:
    with np.errstate(all="ignore"):
        return call()


def _configuration() -> dict[str, object]:
    """As this thread sees it: context managers change it for their own thread alone."""
    return {name: getattr(jax.config, name, None) for name in jax.config.values}


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # numpy's is loaded; looking for it takes milliseconds


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="ifjax")
