"""Where the time of a fusion goes, and what the machine could do: for `benchmarks/speed.py`."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import ifjax
from ifjax.fusion import fuse, transport_maps
from ifjax.fusion.execution import solve
from ifjax.fusion.execution.distances import distances
from ifjax.fusion.program import compiled

# Where the parts are called: the module, the function, and what it does.
PARTS = (
    (transport_maps, "checked_leaves", "checks"),
    (solve, "sources_of", "fold"),
    (solve, "_on_host", "scores, cost, solve"),
    (solve, "changed", "merge"),
    (fuse, "merged", "merge"),
)


def parts(params: Any, spec: Any, repeats: int = 5) -> dict[str, float]:
    """Median milliseconds of every part, run to its end before the next one; and of all.

    "cost alone" is contained in "scores, cost, solve"; "rest" is dispatch and what Python does.
    """
    jax.block_until_ready(ifjax.fuse_params(params, spec))
    found: list[dict[str, float]] = []
    for _ in range(repeats):
        times: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            for module, name, part in PARTS:
                function = getattr(module, name)
                timed = _timed(function, times, part)
                stack.enter_context(mock.patch.object(module, name, timed))
            with _clock(times, "all"):
                jax.block_until_ready(ifjax.fuse_params(params, spec))
        times["rest"] = 2 * times["all"] - sum(times.values())
        found.append(times)
    result = {part: 1e3 * statistics.median(x[part] for x in found) for part in found[0]}
    return {**result, "cost alone": cost_alone(spec, repeats)}


def differences(spec: Any) -> float:
    """The number of |x - y| that the costs of a network take, in 10^9."""
    return sum(b * k * m * d for b, k, m, d in _shapes(spec)) / 1e9


def cost_alone(spec: Any, repeats: int) -> float:
    """Milliseconds of the costs of all groups one after another, on features of the same shapes."""
    rng, total = np.random.default_rng(0), 0.0
    for b, k, m, d in _shapes(spec):
        x, y = (rng.standard_normal((d, n), np.float32) for n in (k, m))
        total += b * fastest(distances, x, y, 1, repeats=repeats)
    return 1e3 * total


def at_ceilings(
    params: Any, spec: Any, count: float, ceilings: Mapping[str, float]
) -> dict[str, float]:
    """An estimate, in milliseconds, of what the same parts would take at the machine's ceilings.

    The differences (10^9), SciPy's assignments one after another, as if they were spread over both
    threads without loss, and every weight once through memory, in and out. Scores, norms, features,
    and what waits on what, are not in it.
    """
    problems: list[np.ndarray] = []
    solve = scipy.optimize.linear_sum_assignment

    def recorded(cost: np.ndarray) -> Any:
        problems.append(cost)
        return solve(cost)

    with mock.patch.object(scipy.optimize, "linear_sum_assignment", recorded):
        small = ifjax.fuse_params(params, spec)
    assigning = 1e3 * sum(fastest(solve, cost, repeats=3) for cost in problems)
    size = sum(x.nbytes for x in jax.tree.leaves((params, small)))
    differing = 1e3 * count / ceilings["differences G/s, at most"]
    passing = 1e3 * size / 1e9 / ceilings["memory GB/s"]
    least = differing + assigning / min(2, os.cpu_count() or 1) + passing
    return {"assignments alone": assigning, "at ceilings": least}


def _shapes(spec: Any) -> Iterator[tuple[int, int, int, int]]:
    """Problems, sources, targets and features of every group."""
    for level in compiled(spec).levels:
        for p in level.problems:
            yield p.count, *p.extent, p.described.features


def ceilings() -> dict[str, float]:
    """What the machine does at best, in this process: products, differences, memory.

    A fused multiply-add is one instruction and two operations of a product; |x - y| + total takes
    two instructions at least, as max(x, y) + total with what does not depend on the pair taken out.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2048, 2048), np.float32))
    product = jax.jit(lambda x: jnp.dot(x, x, precision="highest"))
    block = jnp.zeros((2**26,), jnp.float32)
    gemm = 2 * 2048**3 / fastest(product, x) / 1e9
    return {
        "product GF/s": gemm,
        "differences G/s, at most": gemm / 4,
        "memory GB/s": 2 * block.nbytes / fastest(jax.jit(lambda x: x + 1), block) / 1e9,
    }


def fastest(call: Callable[..., Any], *args: Any, repeats: int = 9) -> float:
    """Seconds of the fastest of some calls after the first."""
    jax.block_until_ready(call(*args))
    times: dict[str, float] = {}
    best = float("inf")
    for _ in range(repeats):
        times.clear()
        with _clock(times, "call"):
            jax.block_until_ready(call(*args))
        best = min(best, times["call"])
    return best


def _timed(function: Callable[..., Any], times: dict[str, float], part: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with _clock(times, part):
            return jax.block_until_ready(function(*args, **kwargs))

    return call


@contextlib.contextmanager
def _clock(times: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[part] = times.get(part, 0.0) + time.perf_counter() - start
