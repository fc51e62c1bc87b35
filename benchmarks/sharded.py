"""Fusing parameters that lie spread over a mesh: memory per device, traffic, and the same result.

A decoder of 6 blocks (width 128, gated feed-forward of 512 neurons) on 8 devices, which one CPU
plays: `fuse_params` under jit with the output shardings of `small_shardings`, half of the neurons,
Sinkhorn, in three layouts: *fsdp*, every kernel split on its first axis; *tensor*, every kernel on
its neurons; *mixed*, both, on a mesh of 2 x 4. "XLA alone" is the same program where the package
does not know of the mesh (the shardings are given by ``in_shardings``).

Per device, of the compiled program, in MiB: arguments and outputs; temporary memory; what
all-gathers hold, and the largest of them; what every collective receives, loops of known length
unrolled (Sinkhorn's reductions of one number per target count once). Buffers are scheduled one
after another, as on accelerators. So compiled, a CPU that plays eight devices may wait for itself:
nothing is run, and `tests/spec/test_sharded_fusion.py` compares the results with those of one
device.

With ``--compress``, `compress` is run on a decoder of 4 blocks (width 256, 1,024 neurons) and 512
tokens, half of the feed-forward neurons: the most bytes of arrays that live on a device when a
stretch of the function is done, on one device and in each layout, windows spread over the mesh's
first axis where parameters are too.

    python benchmarks/sharded.py        # about 2 minutes on 2 cores
    python benchmarks/sharded.py --compress
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import unittest.mock
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import ifjax
from ifjax.reconstruction.walk import Walk
from ifjax.spec.spec import small_shardings

# Read when the devices are first asked for. What is run needs the scheduler that waits for no one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
if "--compress" not in sys.argv:
    os.environ["XLA_FLAGS"] += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.spec import sharded_transformer as network

FFN = {"include": "*gate*", "order": "simultaneous"}
CASES = [
    *(
        (layout, "feed-forward, simultaneous", FFN, known)
        for layout in network.LAYOUTS
        for known in (0, 1)
    ),
    *(
        (layout, "feed-forward and stream, sequential", {"include": ("embed", "*gate*")}, 1)
        for layout in network.LAYOUTS
    ),
]


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    layouts = list(network.LAYOUTS)
    parser.add_argument("--layouts", nargs="+", default=layouts, choices=layouts)
    parser.add_argument("--compress", action="store_true", help="run `compress` instead")
    args = parser.parse_args()
    if args.compress:
        return compressed(args.layouts)
    params, apply = network.transformer(6, 128, 512)
    graph = ifjax.trace(apply, params, jnp.zeros((1, 3), jnp.int32))
    table = []
    for layout, groups, options, known in tqdm([case for case in CASES if case[0] in args.layouts]):
        spec = graph.spec(0.5, **options)
        row = measure(params, spec, network.shardings(params, layout), bool(known))
        who = "ifjax" if known else "XLA alone"
        table.append({"groups": groups, "layout": layout, "by": who, **row})
    print(record.markdown(table))
    table = record.with_earlier("sharded", table, ["groups", "layout", "by"])
    tree = sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20
    print("written:", record.write("sharded", table, devices=8, seed=network.SEED, tree=tree).name)


def measure(params: Any, spec: Any, places: Any, known: bool) -> dict[str, float]:
    """One row."""
    outputs = small_shardings(spec, places)
    if known:
        full = jax.device_put(params, places)
        run = jax.jit(lambda p: ifjax.fuse_params(p, spec), out_shardings=outputs).lower(full)
    else:
        run = jax.jit(
            lambda p: ifjax.fuse_params(p, spec), in_shardings=(places,), out_shardings=outputs
        ).lower(params)
    program = run.compile()
    memory = program.memory_analysis()
    moved = network.collectives(program.as_text())
    gathered = [size for kind, size in moved if kind == "all-gather"]
    ends = memory.argument_size_in_bytes + memory.output_size_in_bytes
    sizes = {
        "arguments and outputs": ends,
        "temporary": memory.temp_size_in_bytes,
        "peak": ends + memory.temp_size_in_bytes,
        "gathered": sum(gathered),
        "largest gather": max(gathered, default=0),
        "received": sum(size for _, size in moved),
    }
    return {name: size / 2**20 for name, size in sizes.items()}


def compressed(layouts: list[str]) -> None:
    """Rows of `compress`, beside the earlier ones."""
    params, apply = network.transformer(4, 256, 1024)
    params = jax.tree.map(np.asarray, params)
    batches = [*np.random.default_rng(network.SEED).integers(0, 32, (2, 16, 16))]
    spec = ifjax.trace(apply, params, batches[0]).spec(0.5, include="*gate*")
    places: dict[str, Any] = {"one device": jax.devices()[0]}
    places |= {layout: network.shardings(params, layout) for layout in layouts}
    table, kept = [], []
    for layout, place in tqdm(places.items()):
        inputs = batches
        if layout in ("fsdp", "mixed"):
            rows = NamedSharding(jax.tree.leaves(place)[0].mesh, P("x"))
            inputs = [jax.device_put(x, rows) for x in batches]
        most = [0]
        with unittest.mock.patch.object(Walk, "forget", noting(most)):
            full = jax.device_put(params, place)
            small, report = ifjax.compress(apply, full, spec, inputs)
        kept.append(report.kept)
        sizes = {"full": held(jax.tree.leaves(full)), "small": held(jax.tree.leaves(small))}
        sizes["peak"] = most[0]
        mib = {name: size / 2**20 for name, size in sizes.items()}
        same = all(np.array_equal(kept[0][name], kept[-1][name]) for name in kept[0])
        table.append(
            {"groups": "feed-forward, compress", "layout": layout, "by": "ifjax"}
            | mib
            | {"as on one device": same}
        )
        del full, small, inputs
    print(record.markdown(table))
    extra = {key: record.read("sharded")[key] for key in ("devices", "seed", "tree")}
    table = record.with_earlier("sharded", table, ["groups", "layout", "by"])
    print("written:", record.write("sharded", table, **extra).name)


def held(arrays: list[Any]) -> int:
    """Bytes on a device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


def noting(most: list[int]) -> Any:
    """`Walk.forget`, which notes what lives on a device before."""
    forget = Walk.forget

    def noted(walk: Walk, *args: Any) -> None:
        most[0] = max(most[0], held(jax.live_arrays()))
        forget(walk, *args)

    return noted


if __name__ == "__main__":
    main()
