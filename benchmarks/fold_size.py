"""How small a fold may be: networks trained on 1/2 to 1/16 of the data each, fused, fine-tuned.

Fold size 1/k: the training images of the digits go to k disjoint folds, a network of its own
initialisation is trained on each, and all k are fused (FaP). Beside it:

* one: no fusion; the mean over the folds' networks, and the first of them fine-tuned.
* two fused: the first two only, which tells the size of the folds from their number. With k = 2
  the same network; the order of the images in the fine-tuning is another one.
* average: of all k without alignment.
* pruned, tuned: half of the neurons of what was fused are removed by Intra-Fusion, then fine-tuned.
* fold size 1: the network trained on all the data. Fold size none: no training before the
  fine-tuning, so that what it has is owed to the fine-tuning alone.

Folds are random; or skewed by label, every class shared out by Dirichlet(alpha); or random with
wrong labels in a part of the training images, in the folds as in the fine-tuning.

Schedule: SGD with Nesterov momentum, cosine to zero after 5 % of warm-up, batches of 16 shifted by
a pixel at most. 15 epochs for every fold size, so that 1/k of the data does 1/k of the steps, at a
learning rate of 0.05; then 1 epoch on all the data for all, at 0.01. Fusion is that of `train.py`:
aligned by activations, Sinkhorn, weighed by the folds' images; batch norm's statistics are reset,
for the plain average as well.

A run that was interrupted goes on with the same command.

Test accuracy in %, mean and standard deviation over the seeds; an image is 0.28.

    python benchmarks/fold_size.py               # about 12 minutes on 2 cores
    python benchmarks/fold_size.py --redraw      # table and plot from the JSON
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from tqdm import tqdm

import ifjax
from ifjax import data, models, training
from ifjax.experiment.network import Network
from ifjax.report import canvas

BATCH = 16
RATE, TUNING_RATE = 0.05, 0.01
NOISES = (0.0, 0.2, 0.4)
ALPHAS = (1.0, 0.1)
# Images that networks are aligned by.
SEEN = 512
BEFORE = ("one", "average", "two fused", "fused")
AFTER = ("one, tuned", "two fused, tuned", "fused, tuned", "pruned, tuned")


def main() -> None:
    """Measures, then prints the table and draws the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet8", choices=models.NAMES)
    parser.add_argument("--counts", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--tuning-epochs", type=int, default=1)
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    args = parser.parse_args()
    options = {name: x for name, x in vars(args).items() if name != "redraw"}
    rows = known({} if args.redraw else options)
    if args.redraw and not rows:
        parser.error("nothing was measured yet; leave out --redraw")
    if not args.redraw:
        # A fold is trained on a core of its own.
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
        lab = Lab(args.network, data.load_digits(), args.epochs, args.tuning_epochs)
        todo = jobs(args.counts)
        rows = rows if len(rows) < len(todo) else []
        for job in tqdm(todo[len(rows) :]):
            rows.append(job | measure(lab, args.seeds, **job))
            record.write("fold_size", rows, **options)
    print(record.markdown([shown(row) for row in rows]))
    draw(rows, record.RESULTS / "fold_size.png")


def known(options: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured with these options."""
    found = record.read("fold_size")
    return found["rows"] if options.items() <= found.items() else []


def jobs(counts: Sequence[int]) -> list[dict[str, Any]]:
    """What there is a row for; 1 fold is all the data, 0 folds are none of it."""
    random = [
        {"folds": "random", "noise": noise, "count": count}
        for noise in NOISES
        for count in (1, *counts, 0)
    ]
    skewed = [
        {"folds": f"alpha = {alpha:g}", "noise": 0.0, "count": count}
        for alpha in ALPHAS
        for count in counts
    ]
    return random + skewed


def measure(
    lab: Lab, seeds: int, folds: str, noise: float, count: int
) -> dict[str, list[float] | None]:
    """The accuracies of one row by seed; None where there is nothing to fuse."""
    found = [measure_seed(lab, seed, folds, noise, count) for seed in range(seeds)]
    return {
        name: [round(one[name], 2) for one in found] if name in found[0] else None
        for name in BEFORE + AFTER
    }


def measure_seed(lab: Lab, seed: int, folds: str, noise: float, count: int) -> dict[str, float]:
    """The accuracies of one row and seed."""
    dataset = data.mislabel(lab.dataset, noise, seed=seed)
    how: dict[str, Any] = {"seed": seed, "min_size": BATCH}
    if folds != "random":
        how |= {"kind": "dirichlet", "alpha": float(folds.removeprefix("alpha = "))}
    parts = data.make_folds(dataset, max(1, count), **how)
    steps = lab.epochs * training.fold_steps(parts, BATCH) if count else 0
    networks = [lab.start(100 * seed + fold) for fold in range(len(parts))]
    networks = lab.train(networks, dataset, parts, steps, RATE, 100 * seed)
    found = {"one": float(np.mean([lab.accuracy(network) for network in networks]))}
    fused = {"one": networks[0]}
    if count > 1:
        weights = np.array([len(fold) for fold in parts], np.float32)
        images = dataset.normalize(dataset.train_images[:SEEN])
        found["average"] = lab.accuracy(lab.average(networks, weights, images))
        for name, k in (("two fused", 2), ("fused", count)):
            fused[name] = lab.fuse(networks[:k], weights[:k], images)
            found[name] = lab.accuracy(fused[name])
    pruned = {"pruned": lab.prune(fused.get("fused", networks[0]))}
    tuning = lab.tuning_epochs * (dataset.num_train // BATCH)
    for group in (fused, pruned):
        whole = [np.arange(dataset.num_train)] * len(group)
        tuned = lab.train([*group.values()], dataset, whole, tuning, TUNING_RATE, 100 * seed)
        found |= {f"{name}, tuned": lab.accuracy(x) for name, x in zip(group, tuned, strict=True)}
    return found


class Lab:
    """A network's programs, each compiled once for all that have the same shapes."""

    def __init__(self, name: str, dataset: data.Dataset, epochs: int, tuning_epochs: int) -> None:
        self.dataset, self.epochs, self.tuning_epochs = dataset, epochs, tuning_epochs
        module = models.create(name, dataset.num_classes)
        image = jnp.zeros((1, *dataset.image_shape))
        self._init = jax.jit(lambda seed: module.init(jax.random.key(seed), image))
        apply_fn = module.apply

        def apply_train(variables: Any, images: Any) -> Any:
            return apply_fn(variables, images, train=True, mutable=["batch_stats"])

        self.dense = Network(self._init(0), apply_fn, apply_train)
        graph = ifjax.trace(apply_fn, self.dense.variables, image)
        spec = graph.spec(0.5, solver="sinkhorn_kernel")
        self.cut = self.dense.shrink(None, spec)

        @jax.jit
        def align(first: Any, other: Any, images: Any) -> Any:
            how = {"on": "activations", "solver": "sinkhorn_kernel", "apply_fn": apply_fn}
            return ifjax.align_models([first, other], graph, batches=[(images,)], **how)[0]

        @jax.jit
        def merge(trees: Any, maps: Any, weights: Any, images: Any) -> Any:
            seen = {"apply_fn": apply_fn, "batches": [(images,)]}
            return ifjax.fuse_models(trees, graph, weights=weights, maps=maps, **seen)

        @jax.jit
        def prune(variables: Any) -> Any:
            maps = ifjax.transport_maps(variables, spec)
            return ifjax.apply_maps(variables, spec, maps), maps

        self._align, self._merge, self._prune = align, merge, prune
        self._step = functools.cache(self._make_step)
        self._test = functools.cache(
            lambda apply_eval: training.make_eval_step(apply_eval, dataset.normalize)
        )
        self.identity = {}
        for group in graph.groups:
            eye = jnp.broadcast_to(jnp.eye(group.size), (*group.batch, group.size, group.size))
            self.identity[group.name] = ifjax.Transport(eye, *[jnp.zeros(())] * 6)

    def start(self, seed: int) -> Network:
        """Without training."""
        return self.dense._replace(variables=self._init(seed))

    def train(
        self,
        networks: Sequence[Network],
        dataset: data.Dataset,
        parts: Sequence[np.ndarray],
        steps: int,
        rate: float,
        seed: int,
    ) -> list[Network]:
        """After so many steps, each on its part of the images; as many at once as devices."""
        at_once = jax.device_count()
        if len(networks) > at_once:
            rest = networks[at_once:], dataset, parts[at_once:], steps, rate, seed + at_once
            first = self.train(networks[:at_once], dataset, parts[:at_once], steps, rate, seed)
            return first + self.train(*rest)
        layout = training.make_layout(len(networks), BATCH, jax.devices()[: len(networks)])
        schedule, optimizer, step = self._step(networks[0].apply_train, layout, steps, rate)
        trees = [network.variables for network in networks]
        state, _ = training.fit(
            training.create_split_state(trees, optimizer, layout, seed),
            step,
            training.make_feed(dataset, parts, layout, BATCH, seed=seed),
            steps=steps,
            steps_per_epoch=training.fold_steps(parts, BATCH),
            schedule=schedule,
            progress=False,
            layout=layout,
        )
        found = training.collect(state.variables, layout)
        return [
            network._replace(variables=jax.tree.map(lambda x, i=i: x[i], found))
            for i, network in enumerate(networks)
        ]

    def accuracy(self, network: Network) -> float:
        """In %, on the test images."""
        batches = self.dataset.eval_batches(self.dataset.num_test)
        step = self._test(network.apply_eval)
        return 100 * training.evaluate(step, network.variables, batches).accuracy

    def average(self, networks: Sequence[Network], weights: Any, images: Any) -> Network:
        """Neuron by neuron as they are numbered."""
        maps = [self.identity] * (len(networks) - 1)
        return self._merged(networks, maps, weights, images)

    def fuse(self, networks: Sequence[Network], weights: Any, images: Any) -> Network:
        """Aligned to the first one, then averaged."""
        first, *others = [network.variables for network in networks]
        maps = [converged(self._align(first, other, images)) for other in others]
        return self._merged(networks, maps, weights, images)

    def prune(self, network: Network) -> Network:
        """Without half of the neurons of every group, by Intra-Fusion."""
        small, maps = self._prune(network.variables)
        converged(maps)
        return self.cut._replace(variables=small)

    def _merged(self, networks: Sequence[Network], *how: Any) -> Network:
        return self.dense._replace(variables=self._merge([x.variables for x in networks], *how))

    def _make_step(
        self, apply_train: Any, layout: training.Layout, steps: int, rate: float
    ) -> tuple[Any, Any, Any]:
        config = training.OptimizerConfig(learning_rate=rate)
        schedule = training.make_schedule(config, max(1, steps))
        optimizer = training.make_optimizer(config, schedule)

        def prepare(key: Any, images: Any) -> Any:
            return self.dataset.normalize(self.dataset.augment(key, images))

        step = training.make_split_step(apply_train, optimizer, layout, 0.0, prepare)
        return schedule, optimizer, step


def converged(maps: Any) -> Any:
    """The maps; raises where the solver stopped before, which jit cannot."""
    failed = [name for name, found in maps.items() if not np.all(found.converged)]
    if failed:
        raise RuntimeError(f"the solver did not converge on {', '.join(failed)}")
    return maps


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row as the table has it."""
    size = {0: "none", 1: "1"}.get(row["count"], f"1/{row['count']}")
    head = {"folds": row["folds"], "wrong labels": f"{row['noise']:.0%}", "fold size": size}
    return head | {name: cell(row[name]) for name in BEFORE + AFTER}


def cell(values: list[float] | None) -> str:
    """Mean and standard deviation."""
    if values is None:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


SKEWS = ("black", canvas.GREEN, canvas.SKY)
LEVELS = ("black", "#994F00", "#E1BE6A")
"""What is random and not wrong is the same in both panels; no other colour means two things."""


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over the fold size: before and after fine-tuning, by skew, by wrong labels."""
    figure = canvas.new_figure(11.0, 8.0)
    before, after, skew, noise = panels = [*figure.subplots(2, 2).flat]
    before.set_title("random folds, before fine-tuning")
    after.set_title("random folds, after fine-tuning on all the data")
    skew.set_title("folds skewed by label, fine-tuned; dotted: one, not fused")
    noise.set_title("wrong labels, fine-tuned; dotted: one, not fused")
    styles = canvas.method_styles([name.removesuffix(", tuned") for name in BEFORE + AFTER])
    for axes, names in ((before, BEFORE), (after, AFTER)):
        for name in names:
            curve(axes, rows, name, styles[name.removesuffix(", tuned")] | {"label": name})
    ends(after, rows, 0.0, "grey")
    for k, folds in enumerate(dict.fromkeys(row["folds"] for row in rows)):
        pair(skew, rows, canvas.line_style(k) | {"color": SKEWS[k]}, folds, folds=folds)
    ends(skew, rows, 0.0, "grey")
    for k, level in enumerate(dict.fromkeys(row["noise"] for row in rows)):
        style = canvas.line_style(k) | {"color": LEVELS[k]}
        pair(noise, rows, style, f"{level:.0%}", noise=level)
        ends(noise, rows, level, LEVELS[k])
    counts = sorted({row["count"] for row in rows} - {0, 1})
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks([1 / k for k in counts], [f"1/{k}" for k in counts])
        axes.set(xlabel="fold size", ylabel="test accuracy, %")
        canvas.plain(axes)
        axes.legend(fontsize=8)
    canvas.save(figure, path)


def curve(
    axes: Any,
    rows: list[dict[str, Any]],
    name: str,
    style: dict[str, Any],
    folds: str = "random",
    noise: float = 0.0,
) -> None:
    """Mean over the fold size, with a bar from the worst seed to the best."""
    chosen = [row for row in rows if (row["folds"], row["noise"]) == (folds, noise)]
    chosen = [row for row in chosen if row["count"] > 1]
    values = np.array([row[name] for row in chosen])
    mean = values.mean(1)
    bars = [mean - values.min(1), values.max(1) - mean]
    axes.errorbar([1 / row["count"] for row in chosen], mean, bars, elinewidth=1, **style)


def pair(
    axes: Any, rows: list[dict[str, Any]], style: dict[str, Any], label: str, **which: Any
) -> None:
    """With fusion and without."""
    curve(axes, rows, "fused, tuned", style | {"label": label}, **which)
    curve(axes, rows, "one, tuned", style | {"linestyle": ":", "markerfacecolor": "none"}, **which)


def ends(axes: Any, rows: list[dict[str, Any]], noise: float, colour: str) -> None:
    """Trained on all the data, and not trained at all, as lines."""
    for count, name, dash, label in (
        (1, "one", "--", "all data"),
        (0, "one, tuned", "-.", "not trained, tuned"),
    ):
        (row,) = (row for row in rows if (row["count"], row["noise"]) == (count, noise))
        named = {"label": label} if colour == "grey" else {}
        axes.axhline(np.mean(row[name]), color=colour, linestyle=dash, zorder=1, **named)


if __name__ == "__main__":
    main()
