"""Compression where there are no data: what a network's own batch-norm statistics are good for.

* synthesised: 512 images from `ifjax.synthesize`, given to `ifjax.compress` as if they were data.
  They are kept in a folder, batch by batch, so that a run that was interrupted goes on.
* analytic: `ifjax.compress` on what `ifjax.analytic_moments` gives.
* training: `ifjax.compress` on 512 training images, for comparison.

All block-inner groups of the ResNets at 30, 50 and 70 %, and every group of the VGG; no labels, no
gradients on weights, no fine-tuning. No image of CIFAR-10 is seen by the first two, but for the
test.

    python benchmarks/no_data.py --cache ~/.cache/ifjax-no-data      # hours on 2 cores
    python benchmarks/no_data.py --cache FOLDER --networks resnet20 --methods analytic
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import record
from checkpoints import INNER, accuracy

import ifjax
from ifjax import data, interop, models

BATCH, BATCHES = 128, 4
IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
RATIOS = (0.3, 0.5, 0.7)
# Accuracy in % that is to be reached, by a rough prototype.
AIMS = {
    ("resnet20", "synthesised"): (86.0, 75.0, 50.0),
    ("resnet20", "analytic"): (74.5, 48.5, 16.5),
    ("resnet56", "synthesised"): (91.8, 87.5, 72.5),
    ("resnet56", "analytic"): (87.5, 67.0, 23.0),
}


def load(network: str):
    """A pretrained network: function and variables."""
    folder = record.shared_folder() / "checkpoints"
    path = folder / f"{network}_cifar10.safetensors"
    if path.exists():
        module, variables = interop.cifar_resnet_from_torch(interop.load_safetensors(path))
        return module.apply, variables
    module = models.create(network)
    leaves = interop.load_safetensors(folder / f"{network}_cifar10_flax.safetensors")
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGE)
    read = lambda path, x: jnp.asarray(  # noqa: E731
        leaves[jax.tree_util.keystr(path, simple=True, separator="/")], x.dtype
    )
    return module.apply, jax.tree_util.tree_map_with_path(read, shapes)


def cifar(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images and labels."""
    folder = record.shared_folder() / "tensorflow_datasets"
    raw, labels = data.cifar10_split(split, data_dir=folder)
    return np.asarray(data.normalize(raw, data.CIFAR10_MEAN, data.CIFAR10_STD)), labels


def synthesised(network: str, cache: Path, batches: int) -> tuple[np.ndarray, float]:
    """Images, made or read from the folder, and the seconds that they took."""
    apply_fn, variables = load(network)
    images, total = [], 0.0
    cache.mkdir(parents=True, exist_ok=True)
    for i in range(batches):
        path = cache / f"{network}-{i}.npz"
        if not path.exists():
            begin = time.perf_counter()
            key = jax.random.fold_in(jax.random.key(0), i)
            [(x,)] = ifjax.synthesize(apply_fn, variables, IMAGE, BATCH, key)
            seconds = time.perf_counter() - begin
            np.savez(path, images=np.asarray(x), seconds=seconds)
            print(f"{path.name}: {seconds:.0f} s", flush=True)
        found = np.load(path)
        images.append(found["images"])
        total += float(found["seconds"])
    return np.concatenate(images), total


def chosen_groups(network: str, graph: ifjax.DependencyGraph) -> list[str]:
    """Names of the groups that are cut."""
    if network.startswith("resnet"):
        return [g.name for g in graph.groups if fnmatch.fnmatchcase(g.name, INNER)]
    return [g.name for g in graph.groups]


def with_images(network: str, ratio: float, images: np.ndarray):
    """Function and parameters, compressed on images."""
    apply_fn, variables = load(network)
    graph = ifjax.trace(apply_fn, variables, IMAGE)
    include = chosen_groups(network, graph)
    spec = graph.spec(ratio, include=include, importance="reconstruction")
    parts = [(images[i : i + 64],) for i in range(0, len(images), 64)]
    small, _ = ifjax.compress(apply_fn, variables, spec, parts)
    return ifjax.shrink(apply_fn, spec), small


def with_moments(network: str, ratio: float):
    """Function and parameters, compressed on analytic moments."""
    apply_fn, variables = load(network)
    graph = ifjax.trace(apply_fn, variables, IMAGE)
    spec = graph.spec(ratio, include=chosen_groups(network, graph))
    moments = ifjax.analytic_moments(apply_fn, variables, IMAGE)
    small, _ = ifjax.compress(apply_fn, variables, spec, moments)
    return ifjax.shrink(apply_fn, spec), small


def rows_of(network: str, method: str, args, test) -> Iterator[dict]:
    """Accuracy at every ratio."""
    seconds = 0.0
    if method == "synthesised":
        images, seconds = synthesised(network, args.cache, args.batches)
    elif method == "training":
        images, _ = cifar("train[:512]")
    for ratio in args.ratios:
        begin = time.perf_counter()
        if method == "analytic":
            apply_small, small = with_moments(network, ratio)
        else:
            apply_small, small = with_images(network, ratio, images)
        took = time.perf_counter() - begin
        aim = AIMS.get((network, method), (None,) * len(RATIOS))
        row = {
            "network": network,
            "method": method,
            "sparsity": ratio,
            "images": 0 if method == "analytic" else len(images),
            "accuracy": round(accuracy(apply_small, small, *test), 2),
            "aim": aim[RATIOS.index(ratio)] if ratio in RATIOS else None,
            "seconds to synthesise": round(seconds),
            "seconds to compress": round(took),
        }
        print(json.dumps(row), flush=True)
        yield row


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56", "vgg11"])
    parser.add_argument("--methods", nargs="+", default=["analytic", "synthesised", "training"])
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--batches", type=int, default=BATCHES, help="of 128 synthesised images")
    parser.add_argument("--images", type=int, default=10_000, help="of the test set")
    parser.add_argument("--cache", type=Path, required=True, help="folder of synthesised images")
    args = parser.parse_args()
    test = cifar(f"test[:{args.images}]")
    rows = earlier(args.images)
    for network in args.networks:
        for method in args.methods:
            for row in rows_of(network, method, args, test):
                rows[row["network"], row["method"], row["sparsity"]] = row
                ordered = [rows[key] for key in sorted(rows)]
                record.write("no_data", ordered, images=args.images)
    print(record.markdown([rows[key] for key in sorted(rows)]))


def earlier(images: int) -> dict[tuple[str, str, float], dict]:
    """Rows of earlier runs on as many test images, which stay where they are not measured again."""
    found = record.read("no_data")
    if found.get("images") != images:
        return {}
    return {(row["network"], row["method"], row["sparsity"]): row for row in found["rows"]}


if __name__ == "__main__":
    main()
