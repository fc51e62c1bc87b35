"""How far the outputs of a small network lie from the dense one's, layer by layer, over sparsity.

ResNet-20 and ResNet-18, the groups inside their blocks, and VGG11-BN, all groups; 10 to 90 % of the
neurons gone: plain pruning, Intra-Fusion (exact transport) and reconstruction (`ifjax.compress`,
512 training images). For every layer that keeps its width, and for the logits: the relative
distance of its output from the dense network's and the cosine with it
(`ifjax.activations.divergence`), each network on its own activations. Of the logits also how often
both name the same class, and the accuracy.

    python benchmarks/divergence.py                       # about half an hour on 2 cores
    python benchmarks/divergence.py --images 250 --networks resnet20 --sparsities 0.5
    python benchmarks/divergence.py --redraw              # from results/divergence.json
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import record
from cut_network import CutNetwork, dense_logits

import ifjax
from ifjax.activations.divergence import output_divergence
from ifjax.report import canvas

METHODS = ("plain pruning", "Intra-Fusion", "reconstruction")
SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
LOGITS = "logits"
NETWORKS = ("resnet20", "vgg11", "resnet18")
KEYS = ("network", "layer", "sparsity", "method")


def small_of(network: CutNetwork, method: str) -> Any:
    """The parameters that a method leaves."""
    if method == "reconstruction":
        return network.compressed(network.changed(importance="reconstruction"))
    way = "fuse" if method == "Intra-Fusion" else "prune"
    return ifjax.fuse_params(network.params, network.changed(method=way))


def measure(name: str, network: CutNetwork, sparsity: float, method: str) -> list[dict[str, Any]]:
    """A row for every layer that is as wide in both, and one for the logits."""
    small = small_of(network, method)
    images, labels = network.test
    batches = [(images[i : i + 250],) for i in range(0, len(images), 250)]
    given = network.apply_fn, network.params, network.apply_small, small
    found = output_divergence(*given, batches)
    common = {"network": name, "sparsity": sparsity, "method": method}
    rows: list[dict[str, Any]] = [
        {"layer": layer, **common, **value._asdict()} for layer, value in found.items()
    ]
    dense, other = dense_logits(network, images), network.logits(small, images)
    rows.append(
        {
            "layer": LOGITS,
            **common,
            "distance": float(np.linalg.norm(other - dense) / np.linalg.norm(dense)),
            "cosine": float((other * dense).sum() / np.linalg.norm(dense) / np.linalg.norm(other)),
            "same class, %": 100 * float((other.argmax(-1) == dense.argmax(-1)).mean()),
            "accuracy, %": 100 * float((other.argmax(-1) == labels).mean()),
        }
    )
    return rows


def draw(rows: list[dict[str, Any]], path: Any) -> None:
    """The logits over sparsity, and all layers at one sparsity."""
    figure = canvas.new_figure(11, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    styles = canvas.method_styles(list(METHODS))
    sparsities = sorted({row["sparsity"] for row in rows})
    middle = min(sparsities, key=lambda s: abs(s - 0.5))
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        last = [row for row in own if row["layer"] == LOGITS]
        x, y = [r["sparsity"] for r in last], [r["distance"] for r in last]
        left.plot(x, y, label=method, **styles[method])
        layers = [row for row in own if row["sparsity"] == middle]
        right.plot(range(len(layers)), [r["distance"] for r in layers], **styles[method])
    names = [r["layer"] for r in rows if (r["method"], r["sparsity"]) == (METHODS[0], middle)]
    short = [name.removeprefix("params/").removesuffix("/kernel") for name in names]
    right.set_xticks(range(len(short)), short, rotation=90, fontsize="small")
    left.set(xlabel="neurons gone", ylabel="relative distance", title="logits")
    right.set(ylabel="relative distance", title=f"layers, {middle:.0%} gone")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        canvas.plain(axes)
    canvas.set_legend(figure)
    canvas.save(figure, path)


def main() -> None:
    """Measures, prints, writes and draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="of the test set")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    args = parser.parse_args()
    rows: list[Any] = list(record.read("divergence")["rows"]) if args.redraw else []
    cases = [] if args.redraw else [(n, s) for n in args.networks for s in args.sparsities]
    for name, sparsity in cases:
        network = CutNetwork(name, sparsity, args.images)
        for method in METHODS:
            rows += measure(name, network, sparsity, method)
            print(rows[-1], flush=True)
        kept = record.with_earlier("divergence", rows, KEYS)
        record.write("divergence", kept, images=args.images)
    print(record.markdown([row for row in rows if row["layer"] == LOGITS]))
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        draw(own, record.RESULTS / f"divergence-{name}.png")


if __name__ == "__main__":
    main()
