"""Pretrained CIFAR-10 networks, cut and reconstructed on unlabelled images, without fine-tuning.

ResNet-20 and ResNet-56: the groups inside the blocks, as in checkpoints.py. VGG11-BN, ResNet-18:
every group, residual streams too; and ResNet-18's groups inside the blocks at 65 % with 128
images, the case that GRAIL reports (84.8 % on a network of its own). Uniform ratio, the full test
set; plain pruning and Intra-Fusion (exact transport) beside it, both also with batch-norm
statistics reset on the same images; and per-channel least squares, see `least_squares.py`. What the
choice is worth: consumers solved for producers that were selected by l1, merged by Intra-Fusion, or
selected by reconstruction, backwards (`compress`) or forwards; and what it is worth to choose the
shrinkage by inputs that are held out, instead of 0.01 for all. Rows that were measured before are
kept, so that an interrupted run goes on; "of processor" are CPU seconds of all threads.

    python benchmarks/reconstruction.py                          # hours on 2 cores
    python benchmarks/reconstruction.py --networks resnet20 --sparsities 0.5
    python benchmarks/reconstruction.py --networks vgg11 --sparsities 0.5 --account
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import dataclasses
import math
import pstats
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from flax.traverse_util import unflatten_dict
from least_squares import channel_grams, compensated

import ifjax
from ifjax import data, interop, models
from ifjax.importance import Reconstruction
from ifjax.reconstruction import ridge

BATCH = 128
INNER = {
    "resnet20": "params/layer*/conv1/kernel",
    "resnet56": "params/layer*/conv1/kernel",
    "resnet18": "params/layer*/conv1/kernel",
}
WHOLE = ("vgg11", "resnet18")
METHODS = (
    *("plain", "plain, reset", "Intra-Fusion", "Intra-Fusion, reset", "per-channel least squares"),
    *("l1, solved", "Intra-Fusion, solved", "compress, forward", "compress, shrinkage 0.01"),
    "compress",
)

# What the time of compress goes into: by function of ifjax and, inside of these, of jax.
STAGES = {
    "all": ("reconstruction/compress.py:compress",),
    "tracing": ("reconstruction/unroll.py:unrolled", "graph/resized.py:resized"),
    "evaluation": ("reconstruction/walk.py:run", "reconstruction/walk.py:settle"),
    "Gram matrices of groups": ("reconstruction/select.py:evidence",),
    "choice": ("reconstruction/select.py:choose",),
    "moments of units": ("reconstruction/solve.py:_gather",),
    "solves": ("reconstruction/solve.py:_finished",),
    "statistics": ("reconstruction/statistics.py:refit_statistics",),
    "compilation, part of these": ("_src/compiler.py:backend_compile_and_load",),
}


def images_of(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images of a split, and their labels."""
    folder = record.shared_folder() / "tensorflow_datasets"
    raw, labels = data.cifar10_split(split, data_dir=folder)
    return np.asarray(data.normalize(raw, data.CIFAR10_MEAN, data.CIFAR10_STD)), labels


def network_of(name: str) -> tuple[Any, Any]:
    """A pretrained network: its function and parameters."""
    folder = record.shared_folder() / "checkpoints"
    if name in WHOLE:
        flat = interop.load_safetensors(folder / f"{name}_cifar10_flax.safetensors")
        leaves = {tuple(k.split("/")): np.asarray(x, np.float32) for k, x in flat.items()}
        return models.create(name).apply, unflatten_dict(leaves)
    path = folder / f"{name}_cifar10.safetensors"
    module, params = interop.cifar_resnet_from_torch(interop.load_safetensors(path))
    return module.apply, params


def accuracy(apply_fn: Any, params: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """In percent."""
    right = jax.jit(lambda p, x, y: jnp.sum(jnp.argmax(apply_fn(p, x), -1) == y))
    parts = range(0, len(images), 500)
    hits = sum(int(right(params, images[i : i + 500], labels[i : i + 500])) for i in parts)
    return round(100 * hits / len(images), 2)


@contextlib.contextmanager
def fixed_shrinkage(value: float) -> Iterator[None]:
    """No shrinkage is chosen meanwhile."""
    chosen = ridge._best
    ridge._best = lambda errors, whole: (value, (math.nan, math.nan))
    try:
        yield
    finally:
        ridge._best = chosen


def cases() -> list[tuple[str, str, float, int]]:
    """Network, groups, sparsity, calibration images."""
    found = [(n, "inner", s, 512) for n in ("resnet20", "resnet56") for s in (0.3, 0.5, 0.7)]
    found += [(n, "every", s, 512) for n in WHOLE for s in (0.3, 0.5, 0.7)]
    return [*found, ("resnet18", "inner", 0.65, 128)]


def measure(case: tuple[str, str, float, int], method: str, test: Any) -> dict[str, Any]:
    """One cell of the table."""
    name, groups, sparsity, count = case
    apply_fn, params = network_of(name)
    images, _ = images_of(f"train[:{count}]")
    batches = [images[i : i + BATCH // 4] for i in range(0, count, BATCH // 4)]
    graph = ifjax.trace(apply_fn, params, images[:1])
    include = INNER[name] if groups == "inner" else None
    spec = graph.spec(sparsity, include=include, method="prune", solver="exact")
    if method.startswith("Intra"):
        spec = dataclasses.replace(spec, method=dataclasses.replace(spec.method, method="fuse"))
    began = time.perf_counter(), time.process_time()
    if method.startswith("compress"):
        importance = Reconstruction("forward" if "forward" in method else "backward")
        chosen = dataclasses.replace(spec.method, importance=importance)
        spec = dataclasses.replace(spec, method=chosen)
    elif "solved" in method:  # l1 that is given counts, the default would not
        chosen = dataclasses.replace(spec.method, importance="l1")
        spec = dataclasses.replace(spec, method=chosen)
    if "compress" in method or "solved" in method:
        with fixed_shrinkage(0.01) if "shrinkage" in method else contextlib.nullcontext():
            small, _ = ifjax.compress(apply_fn, params, spec, batches)
    elif method.startswith("per-channel"):
        small = compensated(params, spec, channel_grams(apply_fn, params, batches))
    else:
        small = ifjax.fuse_params(params, spec)
    apply_small = ifjax.shrink(apply_fn, spec)
    if "reset" in method:
        small = ifjax.reset_statistics(apply_small, small, [images])
    small = jax.block_until_ready(small)
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    before, after = spec.weights()
    return {
        "network": name,
        "groups": groups,
        "sparsity": sparsity,
        "images": count,
        "weights": f"{after / before:.0%}",
        "method": method,
        "accuracy": accuracy(apply_small, small, *test),
        "seconds": round(seconds[0], 1),
        "of processor": round(seconds[1], 1),
    }


def account(case: tuple[str, str, float, int]) -> None:
    """Prints where the CPU seconds of `compress` go."""
    name, groups, sparsity, count = case
    apply_fn, params = network_of(name)
    images, _ = images_of(f"train[:{count}]")
    batches = np.split(images, count // (BATCH // 4))
    include = INNER[name] if groups == "inner" else None
    graph = ifjax.trace(apply_fn, params, images[:1])
    spec = graph.spec(sparsity, include=include, importance="reconstruction", method="prune")
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # else the next one pays for it
    profile, began = cProfile.Profile(time.process_time), time.perf_counter()
    profile.runcall(ifjax.compress, apply_fn, params, spec, batches)
    print(f"{case}: {time.perf_counter() - began:.1f} s on the clock")
    stats: Any = pstats.Stats(profile)
    seconds = {f"{file}:{name}": row[3] for (file, _, name), row in stats.stats.items()}
    for stage, functions in STAGES.items():
        found = sum(x for name, x in seconds.items() if name.endswith(functions))
        print(f"{stage}: {found:.1f} CPU s", flush=True)


def main() -> None:
    """Measures what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    every = list(dict.fromkeys(name for name, *_ in cases()))
    parser.add_argument("--networks", nargs="+", default=every, choices=every)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    sparsities = sorted({s for _, _, s, _ in cases()})
    parser.add_argument("--sparsities", nargs="+", type=float, default=sparsities)
    parser.add_argument("--test-images", type=int, default=10_000, help="fewer for a trial")
    parser.add_argument("--again", action="store_true", help="measure what was measured before too")
    parser.add_argument("--account", action="store_true", help="of the time, measure nothing else")
    args = parser.parse_args()
    rows = record.read("reconstruction")["rows"]
    known = ("network", "groups", "sparsity", "images", "method")
    chosen = [c for c in cases() if c[0] in args.networks and c[2] in args.sparsities]
    if args.account:
        for case in chosen:
            account(case)
        return
    test = images_of(f"test[:{args.test_images}]")
    for case in chosen:
        for method in (m for m in METHODS if m in args.methods):
            same = [r for r in rows if tuple(r[k] for k in known) == (*case, method)]
            if same and not args.again:
                continue
            rows = [row for row in rows if row not in same]
            rows.append(measure(case, method, test))
            print(rows[-1], flush=True)
            record.write("reconstruction", rows)
    print(record.markdown(rows))


if __name__ == "__main__":
    main()
