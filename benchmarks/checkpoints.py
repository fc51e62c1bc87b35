"""Intra-Fusion and plain pruning of pretrained CIFAR-10 ResNets, beside the reference's numbers.

All block-inner groups at once at 30, 50 and 70 %, and one at a time at 50 % (ResNet-20), l1
importance, p = 1, uniform marginals, exact transport, no fine-tuning; all 10,000 test images. Then
what the reference cannot do: the residual stream cut as well.

    python benchmarks/checkpoints.py             # about 20 minutes on 2 cores
    python benchmarks/checkpoints.py --images 2000 --networks resnet20
    python benchmarks/checkpoints.py --solver sinkhorn --networks resnet20
    python benchmarks/checkpoints.py --redraw    # the plots from results/checkpoints.json
"""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import record
from tqdm import tqdm

import ifjax
from ifjax import data, interop, report

# Accuracy in % of the reference implementation on the same checkpoints and images.
REFERENCE = {
    ("resnet20", "prune"): {0.3: 47.59, 0.5: 21.05, 0.7: 9.99},
    ("resnet20", "fuse"): {0.3: 72.74, 0.5: 26.13, 0.7: 10.26},
    ("resnet56", "prune"): {0.3: 81.82, 0.5: 32.40, 0.7: 10.00},
    ("resnet56", "fuse"): {0.3: 86.41, 0.5: 59.06, 0.7: 21.38},
}
DENSE = {"resnet20": 91.73, "resnet56": 93.39}
# One group at a time at 50 %, from the output towards the input.
BLOCKS = ["3_2", "3_1", "3_0", "2_2", "2_1", "2_0", "1_2", "1_1", "1_0"]
SINGLE = {
    "prune": [71.02, 85.81, 78.16, 89.45, 89.32, 74.20, 87.58, 88.81, 91.33],
    "fuse": [85.03, 85.03, 83.87, 89.52, 89.82, 81.80, 86.35, 85.80, 90.06],
}
INNER = "params/layer*/conv1/kernel"


def accuracy(apply_fn, params, images, labels, batch=500) -> float:
    """Accuracy in % on normalised images."""
    step = jax.jit(lambda p, x: jnp.argmax(apply_fn(p, x), -1))
    parts = range(0, len(images), batch)
    found = np.concatenate([np.asarray(step(params, images[i : i + batch])) for i in parts])
    return 100 * float((found == labels).mean())


def jobs(network: str, graph: ifjax.DependencyGraph):
    """What is cut: (groups, method, sparsity, pattern or names, the reference's accuracy)."""
    for method in ("prune", "fuse"):
        for sparsity in (0.3, 0.5, 0.7):
            yield "all inner", method, sparsity, INNER, REFERENCE[network, method][sparsity]
    if network == "resnet20":
        for method in ("prune", "fuse"):
            for block, value in zip(BLOCKS, SINGLE[method], strict=True):
                yield f"layer{block}", method, 0.5, f"params/layer{block}/conv1/kernel", value
    inner = {g.name for g in graph.groups if fnmatch.fnmatchcase(g.name, INNER)}
    stream = [g.name for g in graph.groups if g.name not in inner]
    for method in ("prune", "fuse"):
        for sparsity in (0.125, 0.25):
            yield "residual stream", method, sparsity, stream, None


def measure(network: str, path: Path, images, labels, solver: str) -> list[dict]:
    """All rows of one network."""
    module, variables = interop.cifar_resnet_from_torch(interop.load_safetensors(path))
    graph = ifjax.trace(module.apply, variables, images[:1])
    dense = accuracy(module.apply, variables, images, labels)
    rows = [_row(network, "-", 0.0, "dense", 1.0, dense, DENSE[network])]
    for what, method, sparsity, include, reference in tqdm(
        list(jobs(network, graph)), desc=network
    ):
        spec = graph.spec(sparsity, include=include, method=method, solver=solver)
        small = ifjax.fuse_params(variables, spec)
        ours = accuracy(ifjax.shrink(module.apply, spec), small, images, labels)
        before, after = spec.weights()
        rows.append(_row(network, what, sparsity, method, after / before, ours, reference))
    return rows


def _row(network, what, sparsity, method, weights, ours, reference) -> dict:
    difference = None if reference is None else round(ours - reference, 2)
    return {
        "network": network,
        "groups": what,
        "sparsity": sparsity,
        "method": method,
        "weights": f"{weights:.0%}",
        "ours": round(ours, 2),
        "reference": reference,
        "difference": difference,
    }


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--solver", default="exact")
    parser.add_argument("--redraw", action="store_true")
    args = parser.parse_args()
    if args.redraw:
        draw(record.read("checkpoints")["rows"])
        return
    shared = record.shared_folder()
    folder = shared / "tensorflow_datasets"
    raw, labels = data.cifar10_split(f"test[:{args.images}]", data_dir=folder)
    images = np.asarray(data.normalize(raw, data.CIFAR10_MEAN, data.CIFAR10_STD))
    rows = []
    for network in args.networks:
        path = shared / f"checkpoints/{network}_cifar10.safetensors"
        rows += measure(network, path, images, labels, args.solver)
    print(record.markdown(rows))
    name = "checkpoints"
    if args.solver == "exact":
        draw(rows)
    else:
        name += f"-{args.solver}"
    path = record.write(name, rows, images=args.images, solver=args.solver)
    print("written:", path.name)


def draw(rows) -> None:
    """Accuracy over sparsity, all inner groups at once, one plot per network."""
    labels = {"dense": "dense", "prune": "plain pruning (l1)", "fuse": "Intra-Fusion"}
    for network in dict.fromkeys(row["network"] for row in rows):
        shown = [
            report.Row(row["sparsity"], labels[row["method"]], 0, 0, row["ours"] / 100)
            for row in rows
            if row["network"] == network and row["groups"] in ("-", "all inner")
        ]
        title = f"pretrained {network} on CIFAR-10, inner groups cut, no fine-tuning"
        report.plot_accuracy(shown, record.RESULTS / f"checkpoints-{network}.png", title)


if __name__ == "__main__":
    main()
