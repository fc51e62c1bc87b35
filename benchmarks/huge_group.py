"""One huge group: the feed-forward block of a Llama-3-8B, fused at once.

``down(silu(gate(x)) * up(x))`` with 14,336 neurons of 3 x 4,096 weights, a half of them kept
(--full); or 7,168 neurons of 3 x 2,048 weights (--half). The graph is traced from the function, the
weights are random. Per part: seconds (the best of the calls after the one that compiles), seconds
of all processors, the operations that it needs at least, and their rate beside the machine's,
measured in the same process: of a matrix product in float32, and of sums of |x - y| that wait for
no memory.

* features: of the neurons, and the rows of the targets.
* cost: of every neuron to every target, n x m x d sums of |x - y|.
* solve: from costs to maps, with every solver named; operations are not counted.
* merge: `ifjax.apply_maps`, three kernels times the map, 2 n m d.
* whole: `ifjax.fuse_params`, from parameters to fused parameters, twice: the first call compiles.
  With the exact solver it computes the cost of the n - m neurons that move only.

The peak of the process' resident memory is read after each part, and never falls. On a GPU the
same command holds; what the device holds at most stands beside it.

    python benchmarks/huge_group.py --half          # about 3 minutes and 4 GiB on 2 cores
    python benchmarks/huge_group.py --full          # for a GPU
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import record

import ifjax
from ifjax.transport import costs, transport

SIZES = {"full": (14336, 4096), "half": (7168, 2048), "small": (768, 256)}


def main() -> None:
    """Makes the table."""
    args = arguments()
    n, model = SIZES[args.size]
    m, d = n // 2, 3 * model
    products, sums = ceilings()
    rows: list[dict[str, Any]] = []

    def part(name: str, f: Callable[..., Any], *inputs: Any, work: float = 0, at: float = 0) -> Any:
        times, result = [], None
        for _ in range(1 + args.repeats):
            del result
            start, used = time.perf_counter(), time.process_time()
            result = jax.block_until_ready(f(*inputs))
            times.append((time.perf_counter() - start, time.process_time() - used))
        seconds, used = min(times[1:] or times)
        rate = work / seconds / 1e9
        row = {"part": name, "first s": times[0][0], "s": seconds, "cpu s": used}
        row |= {
            "G operations": work / 1e9,
            "G/s": rate,
            "of the ceiling": rate / at if at else 0.0,
            **peaks(),
        }
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
        return result

    params = parameters(n, model, args.seed)
    spec = ifjax.trace(ffn, params, jnp.zeros((1, model))).spec(0.5, solver=args.solvers[0])
    (group,) = spec.structure.groups

    x = part("features", jax.jit(described), params)
    targets = jnp.sort(jax.lax.top_k(jnp.abs(x).sum(1), m)[1])
    y = jnp.take(x, targets, axis=0)
    cost = part("cost", costs.cost_matrix, x, y, work=n * m * d, at=sums)
    del x, y
    a, b = jnp.full(n, 1 / n), jnp.full(m, 1 / m)
    found: Any = None
    for solver in args.solvers:
        solve = jax.jit(functools.partial(transport.solve, solver=solver))
        found = None
        found = part(f"solve, {solver}", solve, cost, a, b, targets)
        print(f"{solver}: converged {bool(found.converged)}, cost {float(found.cost):.6f}, "
              f"iterations {int(found.iterations)}", file=sys.stderr)  # fmt: skip
    del cost
    merge = functools.partial(ifjax.apply_maps, spec=spec, maps={group.name: found})
    part("merge", merge, params, work=2 * n * m * d, at=products)
    del found, merge
    for solver in args.solvers:
        one = ifjax.trace(ffn, params, jnp.zeros((1, model))).spec(0.5, solver=solver)
        part(f"whole, {solver}", functools.partial(ifjax.fuse_params, spec=one), params)
    print(record.markdown(rows))
    ceiling = {"product GF/s": products, "|x - y| G/s": sums}
    path = record.write(
        f"huge-group-{args.size}", rows, sizes=(n, m, d), seed=args.seed, ceilings=ceiling,
        device=jax.devices()[0].device_kind, load_average=os.getloadavg()[0],
    )  # fmt: skip
    print(ceiling, path)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group(required=True)
    for name in SIZES:
        size.add_argument(f"--{name}", dest="size", action="store_const", const=name)
    parser.add_argument("--solvers", nargs="+", default=["exact", "sinkhorn_kernel"])
    parser.add_argument("--repeats", type=int, default=1, help="calls after the first one")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def ffn(params: dict[str, Any], x: Any) -> Any:
    """A SwiGLU feed-forward block."""
    return (jax.nn.silu(x @ params["gate"]) * (x @ params["up"])) @ params["down"]


def parameters(n: int, model: int, seed: int) -> dict[str, Any]:
    """Random kernels."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"gate": (model, n), "up": (model, n), "down": (n, model)}
    return {
        name: jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def described(params: dict[str, Any]) -> Any:
    """The features of the neurons."""
    rows = [params["gate"].T, params["up"].T, params["down"]]
    return costs.features(jnp.concatenate(rows, axis=1))


def ceilings() -> tuple[float, float]:
    """Billions per second: of operations of a matrix product, and of sums of |x - y|.

    The latter of many to an element that is read and written once: what the arithmetic allows.
    """
    big = 1 if jax.default_backend() == "cpu" else 8
    x = jnp.ones((2048 * big, 2048 * big))
    product = jax.jit(functools.partial(jnp.matmul, precision="highest"))
    seconds = fastest(product, x, x)
    u, several = jnp.ones(2**19 * big * big), jnp.arange(64.0)
    sums = jax.jit(lambda u, v: functools.reduce(lambda t, c: t + jnp.abs(u - c), v, u))
    per_second = u.size * len(several) / fastest(sums, u, several)
    return 2 * x.size * len(x) / seconds / 1e9, per_second / 1e9


def fastest(f: Callable[..., Any], *inputs: Any) -> float:
    """The least time of thirty calls after the first."""
    times = []
    for _ in range(31):
        start = time.perf_counter()
        jax.block_until_ready(f(*inputs))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def peaks() -> dict[str, float]:
    """The most GiB that the process, and the device where it tells, have held."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30
    return {"peak GiB": resident, "device GiB": device}


if __name__ == "__main__":
    main()
