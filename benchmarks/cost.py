"""How fast `ifjax.transport.costs.cost_matrix` is, and what it takes, beside other ways.

Billions of features of pairs per second of a processor (n x m x d over processor time, which other
work on the machine disturbs least) and of wall time, and temporaries relative to features and cost.
All candidates in turn in one process, medians; one problem, and a bucket of sixteen.

* ifjax: |x - y| of 16 features at a time added to the [n, m] array, the features read in place.
* transposed: the same, from a transposed copy of the features (`lax.scan` over it).
* strided: the same, read in place, where XLA may choose how the 16 features lie.
* reduction: the sum over the last axis of the cube, which XLA does not hold, nor vectorise.

    python benchmarks/cost.py                       # about 2 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import record

from ifjax.transport import costs

SIZES = {"one": (1, 512, 256, 2304), "bucket": (16, 128, 64, 1152)}
CHUNK = 16


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [
        {"sizes": name, **row}
        for name, (batch, n, m, d) in SIZES.items()
        for row in compared(jax.random.key(args.seed), (batch, n, d), m, args.repeats)
    ]
    print(record.markdown(rows))
    print(record.write("cost", rows, sizes=SIZES, seed=args.seed, repeats=args.repeats))


def candidates() -> dict[str, Callable[..., Any]]:
    """By name; a derivative is that of the sum, of both arguments."""
    found: dict[str, Callable[..., Any]] = {
        "p = 1, ifjax": costs.cost_matrix,
        "p = 1, transposed": transposed,
        "p = 1, strided": strided,
        "p = 1, reduction": lambda x, y: jnp.sum(jnp.abs(x[:, None] - y), axis=2),
    }
    for p in (2, 3, math.inf, "cosine"):
        found[f"p = {p}, ifjax"] = functools.partial(costs.cost_matrix, p=p)
    for p in (1, 2, math.inf, "cosine"):
        function = functools.partial(costs.cost_matrix, p=p)
        found[f"p = {p}, derivative, ifjax"] = jax.grad(
            lambda x, y, f=function: jnp.sum(f(x, y)), (0, 1)
        )
    return found


def transposed(x: Any, y: Any) -> Any:
    """The cost for p = 1 from transposed copies."""
    rows = [z.T.reshape(-1, CHUNK, len(z)) for z in (x, y)]

    def step(total: Any, rows: Any) -> tuple[Any, None]:
        for u, v in zip(*rows, strict=True):
            total = total + jnp.abs(u[:, None] - v)
        return total, None

    return jax.lax.scan(step, jnp.zeros((len(x), len(y))), rows)[0]


def strided(x: Any, y: Any) -> Any:
    """The cost for p = 1, read in place, without a word on the layout."""

    def step(i: Any, total: Any) -> Any:
        rows = [jax.lax.dynamic_slice_in_dim(z, i * CHUNK, CHUNK, 1).T for z in (x, y)]
        for u, v in zip(*rows, strict=True):
            total = total + jnp.abs(u[:, None] - v)
        return total

    return jax.lax.fori_loop(0, x.shape[1] // CHUNK, step, jnp.zeros((len(x), len(y))))


def compared(key: Any, shape: tuple[int, ...], m: int, repeats: int) -> list[dict[str, Any]]:
    """A row per candidate."""
    x = jax.vmap(costs.features)(jax.random.normal(key, shape))
    y = x[:, :m]
    programs = {}
    for name, f in candidates().items():
        programs[name] = jax.jit(jax.vmap(f)).lower(x, y).compile()
        jax.block_until_ready(programs[name](x, y))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start, used = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(x, y))
            times[name].append((time.perf_counter() - start, time.process_time() - used))
        print(".", end="", file=sys.stderr, flush=True)
    least = 4 * (x.size + y.size + shape[0] * shape[1] * m)
    rows = []
    for name, program in programs.items():
        wall, used = (statistics.median(t) for t in zip(*times[name], strict=True))
        work = x.size * m / 1e9
        space = program.memory_analysis().temp_size_in_bytes / least
        row = {"candidate": name, "G/s of a processor": work / used, "G/s": work / wall}
        rows.append(row | {"temporaries": space})
    return rows


if __name__ == "__main__":
    main()
