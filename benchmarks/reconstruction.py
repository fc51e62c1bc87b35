"""Pretrained CIFAR-10 networks, cut and reconstructed on unlabelled images, without fine-tuning.

ResNet-20 and ResNet-56: the groups inside the blocks, as in checkpoints.py. VGG11-BN, ResNet-18:
every group, residual streams too; and ResNet-18's groups inside the blocks at 65 % with 128
images, the case that GRAIL reports (84.8 % on a network of its own). Uniform ratio, the full test
set; plain pruning and Intra-Fusion (exact transport) beside it, both also with batch-norm
statistics reset on the same images. What the choice is worth: consumers solved for producers that
were selected by l1, merged by Intra-Fusion, or selected by reconstruction, backwards (`compress`)
or forwards. Rows that were measured before are kept, so that an interrupted run goes on.

    python benchmarks/reconstruction.py                          # about 40 minutes on 2 cores
    python benchmarks/reconstruction.py --networks resnet20 --sparsities 0.5
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from flax.traverse_util import unflatten_dict

import ifjax
from ifjax import data, interop, models
from ifjax.importance import Reconstruction

BATCH = 128
INNER = {
    "resnet20": "params/layer*/conv1/kernel",
    "resnet56": "params/layer*/conv1/kernel",
    "resnet18": "params/layer*/conv1/kernel",
}
WHOLE = ("vgg11", "resnet18")
METHODS = (
    *("plain", "plain, reset", "Intra-Fusion", "Intra-Fusion, reset"),
    *("l1, solved", "Intra-Fusion, solved", "compress, forward", "compress"),
)


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
    began = time.perf_counter()
    if method.startswith("compress"):
        importance = Reconstruction("forward" if "forward" in method else "backward")
        chosen = dataclasses.replace(spec.method, importance=importance)
        spec = dataclasses.replace(spec, method=chosen)
    elif "solved" in method:  # l1 that is given counts, the default would not
        chosen = dataclasses.replace(spec.method, importance="l1")
        spec = dataclasses.replace(spec, method=chosen)
    if "compress" in method or "solved" in method:
        small, _ = ifjax.compress(apply_fn, params, spec, batches)
    else:
        small = ifjax.fuse_params(params, spec)
    apply_small = ifjax.shrink(apply_fn, spec)
    if "reset" in method:
        small = ifjax.reset_statistics(apply_small, small, [images])
    seconds = time.perf_counter() - began
    before, after = spec.weights()
    return {
        "network": name,
        "groups": groups,
        "sparsity": sparsity,
        "images": count,
        "weights": f"{after / before:.0%}",
        "method": method,
        "accuracy": accuracy(apply_small, small, *test),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measures what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    every = list(dict.fromkeys(name for name, *_ in cases()))
    parser.add_argument("--networks", nargs="+", default=every, choices=every)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    sparsities = sorted({s for _, _, s, _ in cases()})
    parser.add_argument("--sparsities", nargs="+", type=float, default=sparsities)
    parser.add_argument("--again", action="store_true", help="measure what was measured before too")
    args = parser.parse_args()
    rows = record.read("reconstruction")["rows"]
    known = ("network", "groups", "sparsity", "images", "method")
    test = images_of("test")
    for case in cases():
        for method in METHODS:
            if case[0] not in args.networks or case[2] not in args.sparsities:
                continue
            if method not in args.methods:
                continue
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
