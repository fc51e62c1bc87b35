"""Fine-tuning from three starting points: how many epochs fusion and reconstruction save.

Networks with every group cut, so that a share of the *weights* is gone, by

* plain: pruning by l1,
* fused: Intra-Fusion (exact transport),
* compressed: `ifjax.compress` on 512 training images without labels,

are trained on, with SGD (Nesterov momentum, a cosine schedule to zero from `--rate`), each on the
same images in the same order, whole batches of them; accuracy on all test images before it and
after every epoch. `digits` is a ResNet-8 on scikit-learn's digits, trained here, over several
seeds; the others are the pretrained networks on CIFAR-10, with crops and flips.

    python benchmarks/fine_tuning.py                          # a day on 2 cores
    python benchmarks/fine_tuning.py --networks digits        # 15 minutes
    python benchmarks/fine_tuning.py --networks vgg11 --epochs 3 --epoch-images 10000
    python benchmarks/fine_tuning.py --redraw                 # from results/fine_tuning.json
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import record
from model_fusion import trained
from reconstruction import network_of
from tqdm import tqdm

import ifjax
from ifjax import data, models, training
from ifjax.report import canvas

NETWORKS = ("digits", "vgg11", "resnet18", "resnet20")
SHARES = (0.4, 0.6, 0.8, 0.9)
METHODS = ("plain", "fused", "compressed")
CALIBRATION, PARTS = 512, 32
KEYS = ("network", "share", "method", "seed", "epochs", "epoch images", "rate", "epoch")


class Job(NamedTuple):
    """A trained network and its images, as they are stored."""

    apply_fn: Any
    params: Any
    dataset: Any
    batch: int


def job_of(name: str, seed: int) -> Job:
    """The pretrained network, or one that is trained here."""
    if name != "digits":
        folder = record.shared_folder() / "tensorflow_datasets"
        return Job(*network_of(name), data.load("cifar10", folder), 128)
    digits = data.load("digits")
    images = np.asarray(digits.normalize(digits.train_images))
    return Job(
        *trained(models.create("resnet8"), seed, images, digits.train_labels, 20), digits, 64
    )


def starts(job: Job, share: float) -> Iterator[tuple[str, Any, Any]]:
    """Method, spec and parameters."""
    images = np.asarray(job.dataset.normalize(job.dataset.train_images[:CALIBRATION]))
    graph = ifjax.trace(job.apply_fn, job.params, images[:1])
    spec = graph.spec(share, of="weights", method="prune", solver="exact")
    batches = [images[i : i + PARTS] for i in range(0, len(images), PARTS)]
    for method in METHODS:
        how = "fuse" if method == "fused" else "prune"
        own = dataclasses.replace(spec, method=dataclasses.replace(spec.method, method=how))
        if method == "compressed":
            yield method, spec, ifjax.compress(job.apply_fn, job.params, spec, batches)[0]
        else:
            yield method, spec, ifjax.fuse_params(job.params, own)


class Tuning:
    """The programs of one width: a step of training, and the test."""

    def __init__(self, job: Job, spec: ifjax.FusionSpec, steps: int, rate: float) -> None:
        def apply_train(variables: Any, images: Any) -> Any:
            return job.apply_fn(variables, images, train=True, mutable=["batch_stats"])

        def prepare(key: Any, images: Any) -> Any:
            if job.dataset.name != "digits":
                images = data.augment(key, images, padding=job.dataset.crop_padding)
            return job.dataset.normalize(images)

        config = training.OptimizerConfig(learning_rate=rate, warmup=0.0)
        schedule = training.make_schedule(config, steps)
        self.optimizer = training.make_optimizer(config, schedule)
        small = ifjax.shrink(apply_train, spec)
        self.step = training.make_train_step(small, self.optimizer, prepare=prepare)
        self.logits = jax.jit(ifjax.shrink(job.apply_fn, spec))
        self.job = job

    def accuracy(self, params: Any) -> float:
        """On the test images, in %."""
        dataset, found = self.job.dataset, []
        for i in range(0, len(dataset.test_images), 500):
            images = np.asarray(dataset.normalize(dataset.test_images[i : i + 500]))
            found.append(np.asarray(self.logits(params, images)).argmax(-1))
        return round(100 * float((np.concatenate(found) == dataset.test_labels).mean()), 2)

    def run(self, params: Any, orders: np.ndarray) -> Iterator[float]:
        """Accuracies before, and after each epoch; orders are ``[epochs, steps, batch]``."""
        yield self.accuracy(params)
        images, labels = self.job.dataset.train_images, self.job.dataset.train_labels
        state = training.create_state(params, self.optimizer)
        for order in orders:
            for take in order:
                state, _ = self.step(state, images[take], labels[take])
            yield self.accuracy(state.variables)


def orders_of(count: int, batch: int, seen: int, epochs: int, seed: int) -> np.ndarray:
    """Which images every step takes: of one order after the other, ``seen`` an epoch."""
    rng = np.random.default_rng(seed)
    steps = seen // batch
    whole = [rng.permutation(count) for _ in range(-(-epochs * seen // count) + 1)]
    return np.concatenate(whole)[: epochs * steps * batch].reshape(epochs, steps, batch)


def measure(args: argparse.Namespace, name: str, seed: int) -> None:
    """All starting points of one network, written as they come."""
    job = job_of(name, seed)
    count = len(job.dataset.train_images)
    seen = min(args.epoch_images or count, count)
    orders = orders_of(count, job.batch, seen, args.epochs, seed)
    for share in args.shares:
        tuning, rows = None, []
        for method, spec, params in tqdm(starts(job, share), desc=f"{name} {share:.0%}", total=3):
            tuning = tuning or Tuning(job, spec, orders.shape[0] * orders.shape[1], args.rate)
            head = {"network": name, "share": share, "method": method, "seed": seed}
            head |= {"epochs": args.epochs, "epoch images": orders[0].size, "rate": args.rate}
            for epoch, accuracy in enumerate(tuning.run(params, orders)):
                rows.append({**head, "epoch": epoch, "accuracy": accuracy})
                print(rows[-1], flush=True)
            record.write("fine_tuning", record.with_earlier("fine_tuning", rows, KEYS))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds: accuracy by epoch, and when it is within a point of the best in the end."""
    table = []
    for case in dict.fromkeys(map(_case, rows)):
        network, share, rate, seen, epochs = case
        curves: dict[str, list[float]] = {}
        for method, epoch in itertools.product(METHODS, range(epochs + 1)):
            same = [
                r["accuracy"]
                for r in rows
                if _case(r) == case and (r["method"], r["epoch"]) == (method, epoch)
            ]
            curves.setdefault(method, []).append(float(np.mean(same)) if same else float("nan"))
        best = np.nanmax([curve[-1] for curve in curves.values()])
        for method, curve in curves.items():
            there = [i for i, x in enumerate(curve) if x >= best - 1]
            line = {
                "network": network,
                "weights gone": f"{share:.0%}",
                "rate": rate,
                "epoch of": seen,
            }
            line |= {"method": method, "as cut": f"{curve[0]:.1f}"}
            line["after each epoch"] = " ".join(f"{x:.1f}" for x in curve[1:])
            table.append(line | {"within a point": there[0] if there else "never"})
    return table


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    """What is one table of curves."""
    return tuple(row[key] for key in ("network", "share", "rate", "epoch images", "epochs"))


def draw(rows: list[dict[str, Any]], path: Any) -> None:
    """Accuracy over epochs, a panel per network and share."""
    cases = list(dict.fromkeys(map(_case, rows)))
    figure = canvas.new_figure(11, 2.8 * -(-len(cases) // 4))
    panels = np.atleast_1d(figure.subplots(-(-len(cases) // 4), min(4, len(cases)))).ravel()
    styles = canvas.method_styles(list(METHODS))
    for axes, case in itertools.zip_longest(panels, cases):
        if case is None:
            axes.set_axis_off()
            continue
        for method in METHODS:
            own = [r for r in rows if _case(r) == case and r["method"] == method]
            x = sorted({r["epoch"] for r in own})
            y = [np.mean([r["accuracy"] for r in own if r["epoch"] == epoch]) for epoch in x]
            axes.plot(x, y, label=method, **styles[method])
        axes.set_title(f"{case[0]}, {case[1]:.0%} gone, rate {case[2]:g}", fontsize="medium")
        canvas.plain(axes)
    panels[0].set(xlabel="epochs", ylabel="accuracy, %")
    canvas.set_legend(figure)
    canvas.save(figure, path)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="of weights gone")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--epoch-images", type=int, default=0, help="of one epoch; 0 for all")
    parser.add_argument("--rate", type=float, default=0.02, help="of learning, at the beginning")
    parser.add_argument("--seeds", type=int, default=5, help="of the digits")
    parser.add_argument("--redraw", action="store_true", help="the plot alone")
    args = parser.parse_args()
    if not args.redraw:
        for name in args.networks:
            for seed in range(args.seeds if name == "digits" else 1):
                measure(args, name, seed)
    rows = record.read("fine_tuning")["rows"]
    print(record.markdown(summary(rows)))
    draw(rows, record.RESULTS / "fine_tuning.png")


if __name__ == "__main__":
    main()
