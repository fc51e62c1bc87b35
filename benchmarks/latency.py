"""What a small network costs beside the dense one: latency, memory, size and FLOPs.

Forward passes under `jax.jit`, dense and small in turn in one process, so that both see the same
machine; medians. Memory is what XLA plans for the call (arguments, results and temporaries), size
is that of the parameters. Widths are what counts, so the weights are random and plainly pruned.
The smallest cut is measured with its widths rounded up to multiples of 8, 16 and 32 too
(`round_to`). Rows of other networks, batches and widths stay.

    python benchmarks/latency.py                       # about 8 minutes on 2 cores
    python benchmarks/latency.py --networks resnet50 --batches 128 --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import record

import ifjax
from ifjax import models

# Name: side of the images, images per batch.
NETWORKS = {
    "resnet18": (32, (1, 64, 128)),
    "vgg11": (32, (1, 64, 128)),
    "resnet56": (32, (1, 64, 128)),
    "resnet50": (224, (1, 8)),
    "vit_small": (32, (1, 64, 128)),
}
ROUNDED = (8, 16, 32)
KEYS = ("network", "batch", "sparsity", "round to")


def compiled(apply_fn: Any, params: Any, images: Any) -> Any:
    """The function as a program."""
    return jax.jit(apply_fn).lower(params, images).compile()


def planned(program: Any) -> int:
    """Bytes of arguments, results and temporaries."""
    found = program.memory_analysis()
    sizes = found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes
    return sum(sizes)


def seconds(program: Any, params: Any, images: Any) -> float:
    """One call."""
    start = time.perf_counter()
    jax.block_until_ready(program(params, images))
    return time.perf_counter() - start


class Case(NamedTuple):
    """A network of some widths: what runs, and what is left of weights and FLOPs."""

    sparsity: float
    round_to: int
    apply_fn: Any
    params: Any
    weights: float
    flops: float


def networks(name: str, sparsities: list[float]) -> list[Case]:
    """The dense network and one for every sparsity."""
    side, _ = NETWORKS[name]
    large = {"num_classes": 1000, "stem": "imagenet"} if side == 224 else {}
    module = models.create(name, **large)
    image = jnp.ones((1, side, side, 3))
    params = module.init(jax.random.key(1), image)
    graph = ifjax.trace(module.apply, params, image)
    found = [Case(0.0, 1, module.apply, params, 1.0, 1.0)]
    rounded = [(min(sparsities), n) for n in ROUNDED]
    for sparsity, round_to in [*((s, 1) for s in sparsities), *rounded]:
        spec = graph.spec(sparsity, method="prune", round_to=round_to)
        small = ifjax.shrink(module.apply, spec), ifjax.fuse_params(params, spec)
        left = [after / before for before, after in (spec.weights(), spec.flops())]
        found.append(Case(sparsity, round_to, *small, *left))
    return found


def measure(name: str, batch: int, cases: list[Case], rounds: int) -> list[dict[str, Any]]:
    """A row for every case, which run in turn."""
    side, _ = NETWORKS[name]
    images = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    programs = [compiled(case.apply_fn, case.params, images) for case in cases]
    times: list[list[float]] = [[] for _ in cases]
    for turn in range(rounds + 1):
        for case, program, measured in zip(cases, programs, times, strict=True):
            found = seconds(program, case.params, images)
            if turn:  # the first one warms up
                measured.append(found)
    dense = statistics.median(times[0])
    return [
        {
            "network": name,
            "batch": batch,
            "sparsity": case.sparsity,
            "round to": case.round_to,
            "ms": 1e3 * statistics.median(measured),
            "fastest ms": 1e3 * min(measured),
            "times faster": dense / statistics.median(measured),
            "memory, MiB": planned(program) / 2**20,
            "size, MiB": sum(x.nbytes for x in jax.tree.leaves(case.params)) / 2**20,
            "weights": case.weights,
            "FLOPs": case.flops,
        }
        for case, program, measured in zip(cases, programs, times, strict=True)
    ]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, help="images per batch")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.networks:
        cases = networks(name, args.sparsities)
        for batch in args.batches or NETWORKS[name][1]:
            rows += measure(name, batch, cases, args.rounds)
        kept = record.with_earlier("latency", rows, KEYS)
        written = record.write("latency", kept, rounds=args.rounds)
    print(record.markdown(rows))
    print("written:", written.name)


if __name__ == "__main__":
    main()
