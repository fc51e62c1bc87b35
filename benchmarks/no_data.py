"""Compression where there are no data: with inputs made from a network's running statistics.

512 images are synthesised from each network and kept in a folder, batch by batch, so that a run
that was interrupted goes on. No image of CIFAR-10 is used but for the test.

    python benchmarks/no_data.py --cache ~/.cache/ifjax-no-data      # hours on 2 cores
    python benchmarks/no_data.py --cache FOLDER --networks resnet20 --synthesise-only
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import record

import ifjax
from ifjax import interop, models

BATCH, BATCHES = 128, 4
IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


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


def synthesised(network: str, cache: Path) -> list[tuple[np.ndarray]]:
    """Batches of images, made or read from the folder."""
    apply_fn, variables = load(network)
    batches = []
    cache.mkdir(parents=True, exist_ok=True)
    for i in range(BATCHES):
        path = cache / f"{network}-{i}.npz"
        if not path.exists():
            begin = time.perf_counter()
            key = jax.random.fold_in(jax.random.key(0), i)
            [(x,)] = ifjax.synthesize(apply_fn, variables, IMAGE, BATCH, key)
            seconds = time.perf_counter() - begin
            np.savez(path, images=np.asarray(x), seconds=seconds)
            print(f"{path.name}: {seconds:.0f} s", flush=True)
        batches.append((np.load(path)["images"],))
    return batches


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56", "vgg11"])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--synthesise-only", action="store_true")
    args = parser.parse_args()
    for network in args.networks:
        synthesised(network, args.cache)


if __name__ == "__main__":
    main()
