"""Split data on one accelerator: k folds as lanes of one device, fused and cut, cut and fused.

1. Training images per second: our step with 1, 2 and 4 folds on one device, images lying on it,
   and a plain flax loop over batches from the host; noise of CIFAR-10's shape.
2. CIFAR-10: a network on all images, two on halves, four on quarters, side by side; each pruned by
   Intra-Fusion and fine-tuned on all images. FaP fuses the folds' networks first, PaF last.

Rows are printed as they come; what the time does not suffice for is left out.

    python benchmarks/split_data.py                    # at most 9 minutes on one H100
    python benchmarks/split_data.py --small            # that it runs, on any machine: the digits
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import record
import throughput

import ifjax
from ifjax import data, models, training
from ifjax.training.feeding import fold_steps, make_feed
from ifjax.training.layout import Layout, collect, make_layout
from ifjax.training.split import (
    create_split_state,
    evaluate_folds,
    make_split_eval_step,
    make_split_step,
)

KEYS = ("network", "folds", "way", "sparsity")


class Setting(NamedTuple):
    """Of one network."""

    dataset: data.Dataset
    apply_eval: Any
    apply_train: Any
    starts: list[Any]
    batch_size: int
    epochs: int
    fine_tune: int

    @property
    def images(self) -> Any:
        """Of the training set, as stored."""
        return self.dataset.train_images


class Trainer(NamedTuple):
    """`start` makes a state of the folds' variables, `run` trains it, `test` gives percents."""

    layout: Layout
    start: Any
    run: Any
    test: Any


def main() -> None:
    """Measures until the time is over, and writes what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a CNN of the digits")
    parser.add_argument("--networks", nargs="+", default=["vgg11", "resnet18"])
    parser.add_argument("--folds", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--fine-tune-epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--data-dir", help="folder that holds cifar10/")
    parser.add_argument("--speed", action="store_true", help="only the images per second")
    parser.add_argument("--seconds", type=float, default=520, help="for all of it")
    args = parser.parse_args()
    if args.small:
        args.networks, args.epochs, args.fine_tune_epochs, args.batch_size = ["cnn"], 2, 1, 64
    end = time.monotonic() + args.seconds
    name = "split_data-small" if args.small else "split_data"
    rows: list[Any] = []
    for network in args.networks:
        found = speeds(args, network) if args.speed else accuracies(args, network, end)
        for row in found:
            device = jax.devices()[0].device_kind
            rows.append({"network": network, "device": device, **row})
            print(json.dumps(rows[-1]), flush=True)
            record.write(name, record.with_earlier(name, rows, KEYS))
            if time.monotonic() > end:
                sys.exit("no time left; what was measured is written")


def speeds(args: argparse.Namespace, network: str) -> Iterator[dict[str, Any]]:
    """Images per second, the median of three rounds in turns."""
    options = {} if network == "cnn" else {"dtype": jnp.bfloat16}
    steps = 5 if args.small else 40
    throughput.NETWORKS[network] = (options, args.batch_size, steps)
    # Every fold has twenty batches: at the end of a pass the host waits for its losses.
    noise = throughput.dataset_for(network, 20 * max(args.folds) * args.batch_size)
    runs = {"plain flax loop": (throughput.plain(network, noise), 1)}
    for count in args.folds:
        run = throughput.ours(network, noise, devices=1, folds=count)
        runs[f"{count} folds, one device"] = run, count
    with concurrent.futures.ThreadPoolExecutor() as pool:  # compiled side by side
        list(pool.map(lambda one: one[0](1), runs.values()))
    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(3):
        for way, (run, _) in runs.items():
            times[way].append(throughput.seconds(run, steps)[0])
    for way, (_, count) in runs.items():
        images = steps * args.batch_size * count / float(np.median(times[way]))
        yield {"folds": count, "way": way, "sparsity": 0.0, "images/s": round(images)}


def accuracies(args: argparse.Namespace, network: str, end: float) -> Iterator[dict[str, Any]]:
    """All folds, then the small networks of every width."""
    job = setting(args, network)
    graph = ifjax.trace(job.apply_eval, job.starts[0], job.dataset.normalize(job.images[:1]))
    specs = {sparsity: graph.spec(sparsity) for sparsity in (0.0, *args.sparsities)}
    splits = {count: data.make_folds(job.dataset, count) for count in args.folds}
    dense = {
        count: trainer(job, None, folds, job.epochs, 0.1, job.starts[:count])
        for count, folds in splits.items()
    }
    every = data.make_folds(job.dataset, 1)
    tuning = {
        sparsity: trainer(
            job, spec, every, job.fine_tune, 0.02, [ifjax.fuse_params(job.starts[0], spec)]
        )
        for sparsity, spec in specs.items()
    }
    # What a GPU compiles for minutes, one program after the other, its host compiles side by side.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(lambda one: one.run(one.start(), 1), (*dense.values(), *tuning.values())))
    trained = {}
    for count, train in dense.items():
        began = time.monotonic()
        state = train.run(train.start())
        trained[count] = [
            jax.tree.map(lambda x, i=i: x[i], collect(state.variables, train.layout))
            for i in range(count)
        ]
        found = {"accuracy": train.test(state.variables), "seconds": time.monotonic() - began}
        yield {"folds": count, "way": "dense", "sparsity": 0.0, **found}
    seen = {
        "apply_fn": job.apply_eval,
        "batches": [job.dataset.normalize(job.images[:512])],
        "on": "activations",
        "solver": "exact",
    }
    fused = {k: v[0] if k == 1 else ifjax.fuse_models(v, graph, **seen) for k, v in trained.items()}
    for sparsity, spec in specs.items():
        for count, parts in trained.items():
            ways = {"FaP" if count > 1 else "whole": ifjax.fuse_params(fused[count], spec)}
            if sparsity and count > 1:
                small = [ifjax.fuse_params(model, spec) for model in parts]
                ways["PaF"] = ifjax.fuse_models(small, graph, specs=[spec] * count, **seen)
            for way, variables in ways.items():
                if time.monotonic() < end:
                    row = {"folds": count, "way": way, "sparsity": sparsity}
                    yield row | tuned(tuning[sparsity], variables)


def tuned(train: Trainer, variables: Any) -> dict[str, Any]:
    """Accuracy before and after fine-tuning."""
    began = time.monotonic()
    state = train.start([variables])
    before = train.test(state.variables)
    after = train.test(train.run(state).variables)
    return {"accuracy": before, "fine-tuned": after, "seconds": time.monotonic() - began}


def setting(args: argparse.Namespace, network: str) -> Setting:
    """The network, as many beginnings of it as there are folds at most, and its images."""
    dataset = data.load("digits" if args.small else "cifar10", args.data_dir)
    assert isinstance(dataset, data.Dataset)
    options = {} if args.small else {"dtype": jnp.bfloat16}
    model = models.create(network, dataset.num_classes, **options)
    image = jnp.zeros((1, *dataset.image_shape))
    init = jax.jit(model.init)
    starts = [init(jax.random.key(seed), image) for seed in range(max(args.folds))]

    def apply_train(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    return Setting(
        dataset,
        model.apply,
        apply_train,
        starts,
        args.batch_size,
        args.epochs,
        args.fine_tune_epochs,
    )


def trainer(
    job: Setting,
    spec: ifjax.FusionSpec | None,
    folds: Sequence[Any],
    epochs: int,
    rate: float,
    starts: list[Any],
) -> Trainer:
    """Trains a network per fold, dense or at the widths of a spec, side by side on one device."""
    functions = job.apply_eval, job.apply_train
    if spec is not None:
        functions = ifjax.shrink(job.apply_eval, spec), ifjax.shrink(job.apply_train, spec)
    layout = make_layout(len(folds), job.batch_size, jax.devices()[:1])
    per_epoch = fold_steps(folds, job.batch_size)
    config = training.OptimizerConfig(learning_rate=rate)
    schedule = training.make_schedule(config, epochs * per_epoch)
    optimizer = training.make_optimizer(config, schedule)
    feed = make_feed(job.dataset, folds, layout, job.batch_size)

    def prepare(key: jax.Array, images: jax.Array) -> jax.Array:
        return job.dataset.normalize(job.dataset.augment(key, images))

    step = make_split_step(functions[1], optimizer, layout, prepare=prepare)
    evaluation = make_split_eval_step(functions[0], layout, job.dataset.normalize)

    def run(state: Any, steps: int = epochs * per_epoch) -> Any:
        counts = {"steps": steps, "steps_per_epoch": per_epoch, "schedule": schedule}
        return training.fit(state, step, feed, **counts, progress=False, layout=layout)[0]

    def test(variables: Any) -> Any:
        batches = job.dataset.eval_batches(min(1000, job.dataset.num_test))
        found = evaluate_folds(evaluation, variables, batches, layout)
        percent = [round(100 * one.accuracy, 2) for one in found]
        return percent if len(percent) > 1 else percent[0]

    def start(models: list[Any] = starts) -> Any:
        return create_split_state(models, optimizer, layout)

    return Trainer(layout, start, run, test)


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    main()
