"""What every device of speed is worth: a network fused with it and without it.

On the first call, the one that counts, and on later calls, in fresh processes in turn; numbers are
medians over processes. "times" is the time without the device over the time with it: what is worth
less than 1.2 everywhere has to go. Plain pruning solves nothing, so that there only threads count.

* threads: groups, leaves and norms side by side, instead of one after another.
* products of one thread: BLAS on one core while groups go side by side, instead of on all for each.
* levels: groups that do not wait on each other together, instead of group after group.
* tiles: costs by one program of fixed size, instead of SciPy's cdist for all.
* lanes: eight small tiles a call, of whatever blocks there are, instead of one large one.
* whole vectors: XLA is asked for the 512 bits of a wide CPU in tiles, of which it uses 256.
* SciPy for small ones: instead of tiles for all.
* lists of sources: merging by gathers where a target has few sources, instead of products.
* mass stays: targets that stay in their places are left out of the problem, instead of the whole.
* shared sizes: Sinkhorn compiled for a few padded sizes, instead of for every group's own.
* kept program: what a spec does is asked for once (counts on later calls alone).
* kernels stay kernels: of `compress` and of `reset_statistics`, 128 random images; XLA is kept from
  making the maps of the last layers the kernels, see `ifjax.jaxprs.compiling`.

Inside of `jax.jit` the first call is mostly XLA's; there threads, tiles and sizes are not used.

    python benchmarks/ablation.py                   # 45 minutes on 2 quiet cores
    python benchmarks/ablation.py --networks vgg11 --processes 1
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import record

# Network, and how it is made and fused.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18 exact": ("resnet18", {"solver": "exact", "order": "simultaneous"}),
    "resnet18 exact, sequential": ("resnet18", {"solver": "exact"}),
    "vgg11 exact": ("vgg11", {"solver": "exact", "order": "simultaneous"}),
    "vgg11 sinkhorn": ("vgg11", {}),
    "narrow vgg11 exact": ("vgg11", {"solver": "exact", "width": 1 / 16}),
    "densenet pruned": ("densenet", {"method": "prune"}),
    "resnet50 sinkhorn": ("resnet50", {}),
    "resnet50 exact": ("resnet50", {"solver": "exact", "order": "simultaneous"}),
    "transformer exact, jitted": ("transformer", {"solver": "exact"}),
    "transformer sinkhorn, jitted": ("transformer", {"solver": "sinkhorn_kernel"}),
    "vgg11 compressed": ("vgg11", {}),
    "vgg11 norms reset": ("vgg11", {}),
    "resnet18 exact, jitted": ("resnet18", {"solver": "exact", "order": "simultaneous"}),
}
LATER = 5


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--devices", nargs="+", default=list(WITHOUT), choices=list(WITHOUT))
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*args.child)))
        return
    rows = []
    for case in args.cases:
        for device in (d for d in args.devices if _concerns(d, case)):
            sides: dict[str, list[dict[str, float]]] = {"": [], device: []}
            for _ in range(args.processes):
                for side, found in sides.items():
                    found.append(run(case, side))
            row: dict[str, Any] = {"case": case, "device": device}
            for part in ("first call", "later calls", "later calls, CPU"):
                with_it, without = (
                    statistics.median(x[part] for x in found) for found in sides.values()
                )
                row |= {f"{part}, s": with_it, f"{part}: times": without / with_it}
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(record.markdown(rows))
    rows = record.with_earlier("ablation", rows, ("case", "device"))
    print("written:", record.write("ablation", rows, processes=args.processes).name)


def run(case: str, without: str) -> dict[str, float]:
    """Seconds of the first and of later calls in a process of its own, and of its threads."""
    command = [sys.executable, __file__, "--child", case, without]
    environment = {**os.environ, "POT_BACKEND_DISABLE_PYTORCH": "1"}
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def child(case: str, without: str) -> dict[str, float]:
    """One side."""
    import jax

    import ifjax

    times, fuse = [], ifjax.fuse_params
    if _reads_images(case):
        params, spec, fuse = on_images(case)
    else:
        params, spec = job(*CASES[case])
    if without:
        WITHOUT[without]()
    if _is_jitted(case):
        params, fuse = jax.device_put(params), jax.jit(fuse, static_argnums=1)
    for _ in range(2 if _reads_images(case) else 1 + LATER):
        if without == "kept program":
            WITHOUT[without]()
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(fuse(params, spec))
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    later, of_threads = (statistics.median(x) for x in zip(*times[1:], strict=True))
    return {"first call": times[0][0], "later calls": later, "later calls, CPU": of_threads}


def job(name: str, method: dict[str, Any]) -> tuple[Any, Any]:
    """Random weights, and the spec that halves every group."""
    import first_call
    import speed

    import ifjax

    if name == "transformer":
        apply_fn, shapes, inputs = first_call.transformer()
        spec = ifjax.trace(apply_fn, shapes, *inputs).spec(0.5, **method)
        return first_call.drawn(spec, shapes, 0), spec
    if name != "densenet":
        options = {"solver": "sinkhorn", "order": "sequential"} | method
        leaves, spec = speed.network(name, **options)
        return speed.tree(leaves), spec
    return densenet(method)


def on_images(case: str) -> tuple[Any, Any, Callable[..., Any]]:
    """A VGG11 and half of its widths, and `compress` or `reset_statistics` on 128 random images."""
    import jax

    import ifjax
    from ifjax import models

    module = models.create("vgg11")
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 32, 3), np.float32)
    params = module.init(jax.random.key(0), images[0])
    spec = ifjax.trace(module.apply, params, images[0]).spec(0.5)
    if "reset" in case:
        return params, spec, lambda p, s: ifjax.reset_statistics(module.apply, p, list(images))
    return params, spec, lambda p, s: ifjax.compress(module.apply, p, s, list(images))[0]


def densenet(method: dict[str, Any], layers: int = 30) -> tuple[Any, Any]:
    """Dense connections: every layer reads what all before it have made."""
    import jax
    import jax.numpy as jnp

    import ifjax

    rng = np.random.default_rng(0)
    sizes = [(16 + 12 * i, 12) for i in range(layers)]
    params = {
        "i": rng.standard_normal((32, 16), np.float32),
        "a": [rng.standard_normal(size, np.float32) for size in sizes],
        "o": rng.standard_normal((16 + 12 * layers, 8), np.float32),
    }

    def apply(p: Any, x: Any) -> Any:
        h = x @ p["i"]
        for kernel in p["a"]:
            h = jnp.concatenate([h, jax.nn.relu(h @ kernel)], -1)
        return h @ p["o"]

    return params, ifjax.trace(apply, params, jnp.ones((4, 32))).spec(0.5, **method)


def _set(module: str, name: str, value: Any) -> Callable[[], None]:
    """Puts another value in the place of a module's."""

    def put() -> None:
        found = importlib.import_module(module)
        if not hasattr(found, name):
            raise AttributeError(f"{module} has no {name}")
        setattr(found, name, value)

    return put


def _whole_problems() -> None:
    """No mass is known to stay."""
    program = importlib.import_module("ifjax.fusion.program")
    program._keeps_mass = lambda method: False


def _ask_again() -> None:
    """Forgets what specs do."""
    importlib.import_module("ifjax.fusion.program")._compiled.cache_clear()


def _swapped() -> None:
    """XLA does as it likes."""
    for module in ("reconstruction.segments", "jaxprs.compiling"):
        _set(f"ifjax.{module}", "compiler_options", lambda equations: None)()


def _one_by_one() -> None:
    """Every group is a level of its own."""
    program = importlib.import_module("ifjax.fusion.program")
    program.levels_of = lambda structure, order: [[group] for group in structure.in_order()]


def _large_tiles() -> None:
    """One of 256 neurons and features each a call, instead of eight of half the neurons."""
    module = importlib.import_module("ifjax.fusion.execution.distances")
    form = module._form(0)._replace(lanes=1, side=256)
    module._form = lambda differences: form


def _narrow_vectors() -> None:
    """As XLA has them."""
    module = importlib.import_module("ifjax.fusion.execution.distances")
    module._wide_tiles = module._tiles


WITHOUT: dict[str, Callable[[], None]] = {
    "threads": _set("ifjax.parallel.threads", "_THREADS", 1),
    "products of one thread": _set("ifjax.parallel.threads", "_PRODUCT", None),
    "levels": _one_by_one,
    "tiles": _set("ifjax.fusion.execution.distances", "_SMALL", 2**62),
    "lanes": _large_tiles,
    "whole vectors": _narrow_vectors,
    "SciPy for small ones": _set("ifjax.fusion.execution.distances", "_SMALL", 0),
    "lists of sources": _set("ifjax.fusion.merge", "_NEURONS", 2**62),
    "mass stays": _whole_problems,
    "shared sizes": _set("ifjax.fusion.execution.padding", "_COMPILED", 0),
    "kept program": _ask_again,
    "kernels stay kernels": _swapped,
}


def _concerns(device: str, case: str) -> bool:
    """Whether a case uses it at all."""
    if device == "kernels stay kernels" or _reads_images(case):
        return device == "kernels stay kernels" and _reads_images(case)
    exact, pruned, jitted = "exact" in case, "pruned" in case, _is_jitted(case)
    return {
        **dict.fromkeys(("threads", "products of one thread", "kept program"), not jitted),
        "levels": CASES[case][1].get("order") != "simultaneous",
        **dict.fromkeys(("tiles", "lanes", "whole vectors"), not pruned and not jitted),
        "SciPy for small ones": not pruned and not jitted,
        "lists of sources": exact,
        "mass stays": exact,
        "shared sizes": "sinkhorn" in case and not jitted,
    }[device]


def _reads_images(case: str) -> bool:
    return "compressed" in case or "reset" in case


def _is_jitted(case: str) -> bool:
    return "jitted" in case


if __name__ == "__main__":
    main()
