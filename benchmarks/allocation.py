"""How much where: ResNet-20 cut by each group's effect on the output, beside one ratio for all.

The groups inside the blocks of the pretrained CIFAR-10 network, at the FLOPs of the uniform ratios
30, 50 and 70 %; 512 training images without labels both to allocate and to reconstruct, no
fine-tuning; the full test set. Rows that were measured before are kept, so that an interrupted run
goes on.

    python benchmarks/allocation.py                     # about 15 minutes on 2 cores
    python benchmarks/allocation.py --sparsities 0.5
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record

import ifjax
from ifjax import data, interop

IMAGES = 512
BATCH = 32
INNER = "params/layer*/conv1/kernel"
METHODS = ("uniform", "allocate")


def images_of(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images of a split, and their labels."""
    folder = record.shared_folder() / "tensorflow_datasets"
    raw, labels = data.cifar10_split(split, data_dir=folder)
    return np.asarray(data.normalize(raw, data.CIFAR10_MEAN, data.CIFAR10_STD)), labels


def network() -> tuple[Any, Any]:
    """The pretrained network: its function and parameters."""
    path = record.shared_folder() / "checkpoints" / "resnet20_cifar10.safetensors"
    module, params = interop.cifar_resnet_from_torch(interop.load_safetensors(path))
    return module.apply, params


def accuracy(apply_fn: Any, params: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """In percent."""
    right = jax.jit(lambda p, x, y: jnp.sum(jnp.argmax(apply_fn(p, x), -1) == y))
    parts = range(0, len(images), 500)
    hits = sum(int(right(params, images[i : i + 500], labels[i : i + 500])) for i in parts)
    return round(100 * hits / len(images), 2)


def measure(sparsity: float, method: str, levels: int, test: Any) -> dict[str, Any]:
    """One row of the table."""
    apply_fn, params = network()
    images, _ = images_of(f"train[:{IMAGES}]")
    batches = [images[i : i + BATCH] for i in range(0, IMAGES, BATCH)]
    graph = ifjax.trace(apply_fn, params, images[:1])
    options: dict[str, Any] = {"method": "prune", "importance": "reconstruction"}
    spec = graph.spec(sparsity, include=INNER, **options)
    before, after = spec.flops()
    began = time.perf_counter(), time.process_time()
    if method == "allocate":
        given = apply_fn, params, graph, batches, 1 - after / before
        spec = ifjax.allocate(*given, include=INNER, levels=levels, **options)
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    small, _ = ifjax.compress(apply_fn, params, spec, batches)
    return {
        "sparsity": sparsity,
        "method": method,
        "flops": f"{spec.flops()[1] / before:.1%}",
        "weights": f"{spec.weights()[1] / spec.weights()[0]:.1%}",
        "accuracy": accuracy(ifjax.shrink(apply_fn, spec), small, *test),
        "seconds": round(seconds[0], 1),
        "of processor": round(seconds[1], 1),
        "kept": " ".join(f"{g.kept}/{g.size}" for g in spec.groups if g.kept != g.size),
    }


def main() -> None:
    """Measures what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--again", action="store_true", help="measure what was measured before too")
    args = parser.parse_args()
    path = record.RESULTS / "allocation.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    test = images_of("test")
    for sparsity in args.sparsities:
        for method in METHODS:
            same = [r for r in rows if (r["sparsity"], r["method"]) == (sparsity, method)]
            if same and not args.again:
                continue
            rows = [row for row in rows if row not in same]
            rows.append(measure(sparsity, method, args.levels, test))
            print(rows[-1], flush=True)
            record.write("allocation", rows)
    print(record.markdown(rows))


if __name__ == "__main__":
    main()
