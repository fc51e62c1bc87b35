"""The pictures of docs/results/pictures.md, of a pretrained CIFAR-10 ResNet, each by one command.

    python benchmarks/pictures.py sensitivity    # accuracy over sparsity, one group at a time
    python benchmarks/pictures.py divergence     # how far each layer's output moves
    python benchmarks/pictures.py map            # where a transport map sends each neuron
    python benchmarks/pictures.py graph          # what hangs together, also as a Mermaid flowchart

What is measured is also written as JSON; ``--redraw`` draws from that.
"""

from __future__ import annotations

import argparse
import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
import record
from tqdm import tqdm

import ifjax
from ifjax import data, interop, report
from ifjax.activations.divergence import output_divergence

METHODS = {"prune": "plain pruning", "fuse": "Intra-Fusion"}
SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
INNER = "params/layer*/conv1/kernel"


def load(network: str):
    """The network's function, variables and graph."""
    path = record.shared_folder() / f"checkpoints/{network}_cifar10.safetensors"
    module, variables = interop.cifar_resnet_from_torch(interop.load_safetensors(path))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    return module.apply, variables, ifjax.trace(module.apply, variables, image)


def test_images(count: int):
    """The first test images, normalised, and their labels."""
    folder = record.shared_folder() / "tensorflow_datasets"
    raw, labels = data.cifar10_split(f"test[:{count}]", data_dir=folder)
    return np.asarray(data.normalize(raw, data.CIFAR10_MEAN, data.CIFAR10_STD)), labels


def measure_sensitivity(args) -> list[dict]:
    """Accuracy with one inner group cut, and of the dense network."""
    apply_fn, variables, graph = load(args.network)
    images, labels = test_images(args.images)
    right = jax.jit(lambda p, x, y: jnp.sum(jnp.argmax(apply_fn(p, x), -1) == y))

    def accuracy(params) -> float:
        parts = range(0, len(images), 500)
        hits = sum(int(right(params, images[i : i + 500], labels[i : i + 500])) for i in parts)
        return hits / len(images)

    groups = [g.name for g in graph.groups if fnmatch.fnmatchcase(g.name, INNER)]
    rows = [{"group": "", "sparsity": 0.0, "method": "dense", "accuracy": accuracy(variables)}]
    for group in tqdm(groups):
        for method, label in METHODS.items():
            for sparsity in SPARSITIES:
                spec = graph.spec(sparsity, include=group, method=method, solver=args.solver)
                # Zeros in place of what is cut: the same function, compiled once.
                fused = ifjax.fuse_params(variables, spec, keep_shape=True)
                row = {"group": group, "sparsity": sparsity, "method": label}
                rows.append(row | {"accuracy": accuracy(fused)})
    return rows


def measure_divergence(args) -> list[dict]:
    """Relative distance of every uncut layer's output, all inner groups cut."""
    apply_fn, variables, graph = load(args.network)
    images, _ = test_images(args.images)
    batches = [(images[i : i + 500],) for i in range(0, len(images), 500)]
    rows = []
    for method, label in METHODS.items():
        spec = graph.spec(args.sparsity, include=INNER, method=method, solver=args.solver)
        small, apply_small = ifjax.fuse_params(variables, spec), ifjax.shrink(apply_fn, spec)
        found = output_divergence(apply_fn, variables, apply_small, small, batches)
        rows += [{"layer": k, "method": label, **v._asdict()} for k, v in found.items()]
    return rows


def draw_map(args) -> None:
    """Heat map of one group's transport map."""
    _, variables, graph = load(args.network)
    spec = graph.spec(args.sparsity, include=args.group, solver=args.solver)
    found = ifjax.transport_maps(variables, spec)[args.group]
    path = record.RESULTS / f"pictures-{args.picture}.png"
    title = f"{args.group} of {args.network}, {args.solver}"
    report.plot_map(found.map, found.targets, path, title)
    print("written:", path.name)


def draw_graph(args) -> None:
    """A row per group; and the flowchart, to be put into a ``mermaid`` code block."""
    graph = load(args.network)[2]
    report.plot_graph(graph, record.RESULTS / "pictures-graph.png", f"groups of {args.network}")
    print("written: pictures-graph.png")
    text = graph.to_mermaid()
    path = record.RESULTS / "pictures-graph.mmd"
    report.write_atomically(path, lambda file: file.write_text(text + "\n"))
    print("written:", path.name)


def draw_measured(args) -> None:
    """Measure (or read what was measured) and draw."""
    name = f"pictures-{args.picture}"
    if args.redraw:
        rows = record.read(name)["rows"]
    else:
        measure = measure_sensitivity if args.picture == "sensitivity" else measure_divergence
        rows = measure(args)
        record.write(name, rows, network=args.network, images=args.images, solver=args.solver)
    path = record.RESULTS / f"{name}.png"
    if args.picture == "sensitivity":
        title = f"{args.network} on CIFAR-10, one group cut at a time"
        report.plot_sensitivity(rows, path, title)
    else:
        title = f"{args.network} on CIFAR-10, {args.sparsity:.0%} of all inner groups cut"
        report.plot_divergence(rows, path, title)
    print("written:", path.name)


def main() -> None:
    """Makes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ["sensitivity", "divergence", "map", "graph"]
    parser.add_argument("pictures", nargs="+", choices=every)
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet56"])
    parser.add_argument("--images", type=int, default=2000, help="of the CIFAR-10 test set")
    parser.add_argument("--sparsity", type=float, default=0.3, help="of divergence and map")
    parser.add_argument("--group", default="params/layer3_2/conv1/kernel", help="of map")
    parser.add_argument("--solver", default="exact", choices=["exact", "sinkhorn", "nearest"])
    parser.add_argument("--redraw", action="store_true", help="from the JSON file")
    args = parser.parse_args()
    for picture in args.pictures:
        args.picture = picture
        {"map": draw_map, "graph": draw_graph}.get(picture, draw_measured)(args)


if __name__ == "__main__":
    main()
