"""Compiled programs side by side on the threads of the host.

XLA runs the programs of a CPU one after another, and spreads over its threads only single
operations, which costs more than it gains where they take less than a millisecond. Programs that do
not wait on each other are therefore called from several threads, which compile them side by side
too. An accelerator has a queue of its own.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax

from ifjax.tree import is_concrete

T = TypeVar("T")


def each(calls: Iterable[Callable[[], T]], *operands: Any) -> list[T]:
    """The results of some calls, made side by side where the backend is a CPU.

    One after another under jit and other transformations, on a mesh, and inside context managers
    that change jax's configuration, of which other threads would know nothing.

    Args:
      calls: without arguments; they wait on each other nowhere.
      *operands: trees of the arrays that they read.

    Returns:
      The results, in the order of the calls.

    Example:
      >>> [float(x) for x in each([lambda: jax.numpy.ones(()), lambda: jax.numpy.zeros(())])]
      [1.0, 0.0]
    """
    calls = list(calls)
    if len(calls) < 2 or not alike(*operands):
        return [call() for call in calls]
    return list(_pool().map(lambda call: call(), calls))


_THREADS = min(os.cpu_count() or 1, 8)


def alike(*operands: Any) -> bool:
    """Whether calls in other threads do the same as in this one, and there are other threads.

    >>> jax.jit(lambda x: x + alike(x))(jax.numpy.zeros((), int)).item()
    0
    """
    arrays = jax.tree.leaves(operands)
    return (
        _THREADS > 1
        and jax.default_backend() == "cpu"
        and is_concrete(*arrays)
        and not any(len(x.sharding.device_set) > 1 for x in arrays if isinstance(x, jax.Array))
        and jax.sharding.get_abstract_mesh().empty
        and _configuration() == _pool().submit(_configuration).result()
    )


def _configuration() -> dict[str, Any]:
    """As this thread sees it: context managers change it for their own thread alone."""
    return {name: getattr(jax.config, name, None) for name in jax.config.values}


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="ifjax")
