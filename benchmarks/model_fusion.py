"""Networks trained apart, as one: plain average against alignment by weights and by activations.

Two copies of a network are trained on the digits, from different seeds, on disjoint halves of the
training images; then they are fused, without any training afterwards. Last, a pretrained ResNet-20
and a copy of it with all neurons permuted: the fused network is the pretrained one.

    python benchmarks/model_fusion.py     # about 6 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import record
from tqdm import tqdm

import ifjax
from ifjax import data, interop, models, training

WAYS = {
    "average": None,
    "weights, exact": {"solver": "exact"},
    "weights, exact, no sweep": {"solver": "exact", "sweeps": 0},
    "weights, exact, p = 1": {"solver": "exact", "cost_p": 1},
    "weights, Sinkhorn": {"solver": "sinkhorn"},
    "activations, exact": {"solver": "exact", "on": "activations"},
    "activations, Sinkhorn": {"solver": "sinkhorn", "on": "activations"},
}


def trained(module, seed: int, images, labels, epochs: int, batch: int = 64):
    """A network of its own seed, trained with Adam and a cosine schedule."""
    variables = jax.jit(module.init)(jax.random.key(seed), images[:1])
    steps = epochs * (len(images) // batch)
    config = training.OptimizerConfig(name="adamw", learning_rate=3e-3)
    optimizer = training.make_optimizer(config, training.make_schedule(config, steps))

    def apply_train(v, x):
        return module.apply(v, x, train=True, mutable=["batch_stats"])

    step = training.make_train_step(apply_train, optimizer)
    state = training.create_state(variables, optimizer, seed)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for at in range(0, len(images) - batch + 1, batch):
            take = order[at : at + batch]
            state, _ = step(state, images[take], labels[take])
    return module.apply, state.variables


def accuracy(apply_fn, params, images, labels) -> float:
    """In %, at most 500 images at a time."""
    step = jax.jit(lambda p, x: jnp.argmax(apply_fn(p, x), -1))
    parts = range(0, len(images), 500)
    found = np.concatenate([np.asarray(step(params, images[i : i + 500])) for i in parts])
    return round(100 * float((found == labels).mean()), 2)


def average(graph: ifjax.DependencyGraph, networks):
    """Without alignment: identity maps."""
    maps = {}
    for group in graph.groups:
        eye = jnp.broadcast_to(jnp.eye(group.size), (*group.batch, group.size, group.size))
        maps[group.name] = ifjax.Transport(eye, *[jnp.zeros(())] * 6)
    return ifjax.fuse_models(networks, graph, maps=[maps] * (len(networks) - 1))


def measure(name: str, seeds, count: int, epochs: int) -> list[dict]:
    """All ways to fuse networks that were trained on folds of the digits; the mean over seeds."""
    digits = data.load_digits()
    images, labels = np.asarray(digits.train_images), np.asarray(digits.train_labels)
    test = np.asarray(digits.test_images), np.asarray(digits.test_labels)
    found: dict[str, list[float]] = {}
    for seed in tqdm(seeds, desc=name):
        folds = np.array_split(np.random.default_rng(seed).permutation(len(images)), count)
        each = [
            trained(models.create(name), 10 * seed + k, images[fold], labels[fold], epochs)
            for k, fold in enumerate(folds)
        ]
        apply_fn, networks = each[0][0], [v for _, v in each]
        graph = ifjax.trace(apply_fn, networks[0], images[:1])
        batches = [(images[:512],)]
        singles = [accuracy(apply_fn, v, *test) for v in networks]
        found.setdefault("one network", []).append(float(np.mean(singles)))
        normed = "batch_stats" in networks[0]
        for way, options in WAYS.items():
            if options is None:
                fused = average(graph, networks)
            else:
                seen = {"apply_fn": apply_fn, "batches": batches} if "on" in options else {}
                maps = ifjax.align_models(networks, graph, **options, **seen)
                fused = ifjax.fuse_models(networks, graph, maps=maps)
            found.setdefault(way, []).append(accuracy(apply_fn, fused, *test))
            if normed:
                fused = ifjax.reset_statistics(apply_fn, fused, batches)
                again = accuracy(apply_fn, fused, *test)
                found.setdefault(f"{way}, statistics reset", []).append(again)
    return [
        {"network": name, "networks": count, "way": way, "accuracy": round(float(np.mean(x)), 2)}
        for way, x in found.items()
    ]


def permuted(images: int) -> list[dict]:
    """A pretrained ResNet-20 fused with a permuted copy of itself."""
    shared = record.shared_folder()
    path = shared / "checkpoints/resnet20_cifar10.safetensors"
    module, variables = interop.cifar_resnet_from_torch(interop.load_safetensors(path))
    raw, labels = data.cifar10_split(f"test[:{images}]", data_dir=shared / "tensorflow_datasets")
    inputs = np.asarray(data.normalize(raw, data.CIFAR10_MEAN, data.CIFAR10_STD))
    graph = ifjax.trace(module.apply, variables, inputs[:1])
    rng = np.random.default_rng(0)
    copy = ifjax.take(variables, graph, {g.name: rng.permutation(g.size) for g in graph.groups})
    rows = {"one network": variables, "average": average(graph, [variables, copy])}
    rows["weights, exact"] = ifjax.fuse_models([variables, copy], graph)
    return [
        {
            "network": "resnet20, permuted",
            "networks": 2,
            "way": way,
            "accuracy": accuracy(module.apply, params, inputs, labels),
        }
        for way, params in rows.items()
    ]


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=["mlp", "cnn", "resnet8"])
    parser.add_argument("--counts", nargs="*", type=int, default=[2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=2000, help="of CIFAR-10, for ResNet-20")
    args = parser.parse_args()
    rows = []
    for name, count in itertools.product(args.networks, args.counts):
        rows += measure(name, range(args.seeds), count, args.epochs)
    if args.images:
        rows += permuted(args.images)
    print(record.markdown(rows))
    record.write("model_fusion", rows, seeds=args.seeds, epochs=args.epochs, images=args.images)


if __name__ == "__main__":
    main()
