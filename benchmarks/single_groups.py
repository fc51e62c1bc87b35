"""The paper's curves: one group of a pretrained network cut at a time, 10 to 90 % of its neurons.

The full-width VGG11-BN and ResNet-18, every group alone (the residual streams of the ResNet, too),
by every importance metric

* plain: cut, nothing else,
* fused: the others merged into the chosen ones by Intra-Fusion (exact transport),
* compressed: what reads the chosen ones is reconstructed on 512 training images
  (`ifjax.compress`); "reconstruction" is its own choice.

Scores are those of the dense network; Taylor and Fisher read the same 512 images and their labels,
CHIP, which decomposes a matrix for every image and neuron, the first 32 of them. No fine-tuning.
Rows that were measured before on as many test images are kept, so that an interrupted run goes on.

    python benchmarks/single_groups.py                        # a day on 2 cores
    python benchmarks/single_groups.py --networks vgg11 --metrics l1 reconstruction --images 1000
    python benchmarks/single_groups.py --redraw --images 1000 # from results/single_groups.json
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import record
from reconstruction import WHOLE, images_of, network_of
from tqdm import tqdm

import ifjax
from ifjax.importance import IMPORTANCES
from ifjax.report import canvas

SPARSITIES = tuple(i / 10 for i in range(1, 10))
METHODS = ("plain", "fused", "compressed")
OWN = "reconstruction"
CALIBRATION, BATCH, CHIP = 512, 32, 32
KEYS = ("network", "group", "sparsity", "metric", "method", "images")


class Network:
    """A pretrained network with its images, and the scores of all its neurons."""

    def __init__(self, name: str, test_images: int) -> None:
        self.name = name
        self.apply_fn, self.params = network_of(name)
        self.images, self.labels = images_of(f"train[:{CALIBRATION}]")
        self.test = images_of(f"test[:{test_images}]")
        self.graph = ifjax.trace(self.apply_fn, self.params, self.images[:1])
        self._scores: dict[str, dict[str, Any]] = {}

    def scores(self, metric: str) -> dict[str, Any]:
        """By group, of the dense network."""
        if metric not in self._scores:
            spec, stats = self.graph.spec(0.5, method="prune", importance=metric), None
            if metric in ("taylor", "fisher", "chip"):
                count = CHIP if metric == "chip" else CALIBRATION
                parts = [slice(i, i + BATCH) for i in range(0, count, BATCH)]
                batches = [((self.images[part],), self.labels[part]) for part in parts]
                stats = ifjax.collect_stats(
                    self.apply_fn, self.params, spec, batches, loss_fn=_loss, chunk=8
                )
            self._scores[metric] = ifjax.neuron_scores(self.params, spec, stats)
        return self._scores[metric]

    def accuracy(self, apply_fn: Any, params: Any) -> float:
        """In %."""
        images, labels = self.test
        parts = range(0, len(images), 500)
        found = [np.asarray(apply_fn(params, images[i : i + 500])) for i in parts]
        return round(100 * float((np.concatenate(found).argmax(-1) == labels).mean()), 2)


def _loss(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def small_of(network: Network, spec: ifjax.FusionSpec, metric: str, method: str) -> Any:
    """The parameters that a method leaves of one group."""
    how = "fuse" if method == "fused" else "prune"
    spec = dataclasses.replace(spec, method=dataclasses.replace(spec.method, method=how))
    if metric == OWN:
        spec = dataclasses.replace(spec, method=dataclasses.replace(spec.method, importance=OWN))
        scores = None
    else:
        group = spec.groups[0].name
        scores = {group: jnp.asarray(network.scores(metric)[group], jnp.float32)}
    if method != "compressed":
        return ifjax.fuse_params(network.params, spec, scores=scores)
    batches = [network.images[i : i + BATCH] for i in range(0, CALIBRATION, BATCH)]
    return ifjax.compress(network.apply_fn, network.params, spec, batches, scores=scores)[0]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = list(IMPORTANCES)
    parser.add_argument("--networks", nargs="+", default=list(WHOLE), choices=WHOLE)
    parser.add_argument("--groups", nargs="+", default=[""], help="parts of their names")
    parser.add_argument("--metrics", nargs="+", default=known, choices=known)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--images", type=int, default=10_000, help="of the test set")
    parser.add_argument("--redraw", action="store_true", help="the plot alone")
    args = parser.parse_args()
    if not args.redraw:
        for name in args.networks:
            measure(name, args)
    rows = [r for r in record.read("single_groups")["rows"] if r["images"] == args.images]
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        print(record.markdown(table(own)))
        draw(own, record.RESULTS / f"single_groups-{network}.png")


def measure(name: str, args: argparse.Namespace) -> None:
    """All rows of one network, written after every group and ratio."""
    network = Network(name, args.images)
    dense = {"network": name, "group": "", "sparsity": 0.0, "metric": "", "method": "dense"}
    rows = record.read("single_groups")["rows"]
    done = {tuple(row[key] for key in KEYS): row for row in rows}

    def add(row: dict[str, Any], accuracy: float) -> None:
        row = {**row, "images": args.images, "accuracy": accuracy}
        done[tuple(row[key] for key in KEYS)] = row

    if (*dense.values(), args.images) not in done:
        add(dense, network.accuracy(jax.jit(network.apply_fn), network.params))
    groups = [g.name for g in network.graph.groups if any(part in g.name for part in args.groups)]
    ways = list(itertools.product(args.metrics, args.methods))
    ways = [w for w in ways if w[0] != OWN or w[1] == "compressed"]
    for group, sparsity in tqdm(list(itertools.product(groups, args.sparsities)), desc=name):
        head = {"network": name, "group": group, "sparsity": sparsity}
        left = [w for w in ways if (*head.values(), *w, args.images) not in done]
        if not left:
            continue
        spec = network.graph.spec(sparsity, include=[group], solver="exact", importance="l1")
        run = jax.jit(ifjax.shrink(network.apply_fn, spec))  # the same widths for all ways
        for metric, method in left:
            small = small_of(network, spec, metric, method)
            add({**head, "metric": metric, "method": method}, network.accuracy(run, small))
        record.write("single_groups", list(done.values()))  # with those that were read


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over all groups: a row per metric and method, a column per ratio."""
    groups = {row["group"] for row in rows} - {""}
    shown: list[dict[str, Any]] = []
    for metric, method in dict.fromkeys((r["metric"], r["method"]) for r in rows if r["group"]):
        line: dict[str, Any] = {"network": rows[0]["network"], "metric": metric, "method": method}
        for sparsity in sorted({row["sparsity"] for row in rows} - {0.0}):
            same = (metric, method, sparsity)
            found = [
                r["accuracy"] for r in rows if (r["metric"], r["method"], r["sparsity"]) == same
            ]
            whole = len(found) == len(groups)
            line[f"{sparsity:.0%}"] = f"{np.mean(found):.1f}" if whole else ""
        shown.append(line)
    return shown


def draw(rows: list[dict[str, Any]], path: Any) -> None:
    """A panel per group: accuracy over sparsity by l1, and by the choice of reconstruction."""
    groups = list(dict.fromkeys(row["group"] for row in rows if row["group"]))
    lines = {"plain, l1": ("l1", "plain"), "Intra-Fusion, l1": ("l1", "fused")}
    lines |= {"compress, l1": ("l1", "compressed"), "compress": (OWN, "compressed")}
    columns = min(4, len(groups))
    rows_of_panels = -(-len(groups) // columns)
    figure = canvas.new_figure(11, 3.2 * rows_of_panels)
    panels = np.atleast_1d(figure.subplots(rows_of_panels, columns)).ravel()
    styles = canvas.method_styles(list(lines))
    for axes, group in itertools.zip_longest(panels, groups):
        if group is None:
            axes.set_axis_off()
            continue
        found = {
            label: sorted(
                (row["sparsity"], row["accuracy"])
                for row in rows
                if (row["group"], row["metric"], row["method"]) == (group, *way)
            )
            for label, way in lines.items()
        }
        most = max(map(len, found.values()))
        for label, points in found.items():
            if points and 3 * len(points) >= most:  # else hardly measured so far
                axes.plot(*zip(*points, strict=True), label=label, **styles[label])
        title = group.removeprefix("params/").removesuffix("/kernel")
        axes.set_title(title, fontsize="medium")
        axes.set(ylim=(0, 100), xlim=(0, 1))
        canvas.plain(axes)
    panels[len(groups) - columns].set(xlabel="neurons gone", ylabel="accuracy, %")
    canvas.set_legend(figure)
    canvas.save(figure, path)


if __name__ == "__main__":
    main()
