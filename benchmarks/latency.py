"""What a small network costs beside the dense one: latency, memory, size and FLOPs.

Forward passes under `jax.jit`, dense and small in turn in one process, so that both see the same
machine; medians. Memory is what XLA plans for the call (arguments, results and temporaries), size
is that of the parameters. Widths are what counts, so the weights are random and plainly pruned.

    python benchmarks/latency.py                       # about 5 minutes on 2 cores
    python benchmarks/latency.py --networks vit_small --sparsities 0.5
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
import record

import ifjax
from ifjax import models

# Name: side of the images, images per batch.
NETWORKS = {
    "resnet18": (32, 64),
    "vgg11": (32, 64),
    "resnet56": (32, 64),
    "resnet50": (224, 8),
    "vit_small": (32, 64),
}


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


def measure(name: str, sparsities: list[float], rounds: int) -> list[dict[str, Any]]:
    """A row for the dense network and one for every sparsity."""
    side, batch = NETWORKS[name]
    large = {"num_classes": 1000, "stem": "imagenet"} if side == 224 else {}
    module = models.create(name, **large)
    images = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    params = module.init(jax.random.key(1), images[:1])
    graph = ifjax.trace(module.apply, params, images[:1])
    cases = {0.0: (module.apply, params)}
    weights, flops = graph.structure.weights({}), graph.structure.flops({})
    left = {0.0: (weights, flops)}
    for sparsity in sparsities:
        spec = graph.spec(sparsity, method="prune")
        cases[sparsity] = ifjax.shrink(module.apply, spec), ifjax.fuse_params(params, spec)
        left[sparsity] = spec.weights()[1], spec.flops()[1]
    programs = {s: compiled(apply_fn, p, images) for s, (apply_fn, p) in cases.items()}
    times: dict[float, list[float]] = {s: [] for s in cases}
    for turn in range(rounds + 1):
        for s, (_, p) in cases.items():
            found = seconds(programs[s], p, images)
            if turn:  # the first one warms up
                times[s].append(found)
    dense = statistics.median(times[0.0])
    return [
        {
            "network": name,
            "batch": batch,
            "sparsity": s,
            "ms": 1e3 * statistics.median(times[s]),
            "fastest ms": 1e3 * min(times[s]),
            "times faster": dense / statistics.median(times[s]),
            "memory, MiB": planned(programs[s]) / 2**20,
            "size, MiB": sum(x.nbytes for x in jax.tree.leaves(cases[s][1])) / 2**20,
            "weights": left[s][0] / weights,
            "FLOPs": left[s][1] / flops,
        }
        for s in cases
    ]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    rows = [row for name in args.networks for row in measure(name, args.sparsities, args.rounds)]
    print(record.markdown(rows))
    print("written:", record.write("latency", rows, rounds=args.rounds).name)


if __name__ == "__main__":
    main()
