"""How much the metric matters: neurons chosen by a metric, by noise on it, upside down, by chance.

ResNet-20's groups inside the blocks, a half of the neurons gone. Scores are those of the dense
network, for all groups at once. Noise multiplies every score by exp(s z), z standard normal, s
stated; upside down takes the reciprocal. Each choice

* plain: cut, nothing else,
* fused: the others merged into the chosen ones by Intra-Fusion (exact transport),
* solved, and fused and solved: the consumers of either reconstructed on 512 training images by
  `ifjax.compress`; this takes longest, so that only some choices are, and with one seed: merged
  ones for l1 and by chance.

"alike" is the share of the kept neurons that the metric itself keeps. Taylor, fisher and chip
read the same 512 images, the first two their labels. Means over seeds where there is chance in it.
No fine-tuning.

    python benchmarks/metric.py                          # about 15 minutes on 2 cores
    python benchmarks/metric.py --metrics l1 --ways plain fused     # other rows stay
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import record
from cut_network import BATCH, CutNetwork
from tqdm import tqdm

import ifjax

SPARSITY = 0.5
METRICS = ("l1", "l2", "linf", "lamp", "bn_scale", "taylor", "fisher", "chip")
NOISES = (0.25, 1.0)
WAYS = ("plain", "fused", "solved", "fused and solved")
SOLVED = ("as it is", "noise 1", "upside down", "random")
Scores = dict[str, np.ndarray]


def scores_of(network: CutNetwork, metric: str) -> Scores:
    """Of the dense network."""
    spec, stats = network.changed(importance=metric), None
    if metric in ("taylor", "fisher", "chip"):
        images, labels = network.images, network.labels
        parts = [slice(i, i + BATCH) for i in range(0, len(images), BATCH)]
        batches = [((images[part],), labels[part]) for part in parts]

        def loss(logits: Any, labels: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        stats = ifjax.collect_stats(network.apply_fn, network.params, spec, batches, loss_fn=loss)
    found = ifjax.neuron_scores(network.params, spec, stats)
    return {name: np.asarray(x, np.float64) for name, x in found.items()}


def accuracy(network: CutNetwork, scores: Scores, way: str) -> float:
    """What a choice leaves."""
    given = {name: jnp.asarray(x, jnp.float32) for name, x in scores.items()}
    spec = network.changed(method="fuse" if "fused" in way else "prune")
    if "solved" in way:
        return network.accuracy(network.compressed(spec, scores=given))
    return network.accuracy(ifjax.fuse_params(network.params, spec, scores=given))


def choices(metrics: dict[str, Scores], seeds: int) -> Iterator[tuple[str, str, int, Scores]]:
    """Metric, what is done to it, seed, scores."""
    for name, scores in metrics.items():
        yield name, "as it is", 0, scores
        for noise in NOISES:
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                noisy = {
                    k: x * np.exp(noise * rng.standard_normal(x.shape)) for k, x in scores.items()
                }
                yield name, f"noise {noise:g}", seed, noisy
        yield name, "upside down", 0, {k: 1 / np.maximum(x, 1e-12) for k, x in scores.items()}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        yield "none", "random", seed, {k: rng.uniform(0.5, 1.5, x.shape) for k, x in scores.items()}


def alike(scores: Scores, metric: Scores) -> float:
    """The share of the kept neurons that the metric keeps, in %."""

    def kept(x: np.ndarray) -> set[int]:
        return set(np.argsort(-x, kind="stable")[: int(len(x) * (1 - SPARSITY))].tolist())

    same = [len(kept(scores[k]) & kept(metric[k])) / len(kept(metric[k])) for k in metric]
    return 100 * float(np.mean(same))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, a row per choice and a column per way."""
    table = []
    for metric, change in dict.fromkeys((row["metric"], row["change"]) for row in rows):
        same = [row for row in rows if (row["metric"], row["change"]) == (metric, change)]
        alike = {row["seed"]: row["alike"] for row in same}  # the same whatever the way
        shown = {"metric": metric, "change": change, "alike": np.mean([*alike.values()])}
        for way in WAYS:
            found = [row["accuracy"] for row in same if row["way"] == way]
            spread = f" ({min(found):.1f} to {max(found):.1f})" if len(found) > 1 else ""
            shown[way] = f"{np.mean(found):.1f}{spread}" if found else ""
        table.append(shown)
    return table


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="of the test set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--metrics", nargs="+", default=list(METRICS), choices=METRICS)
    parser.add_argument("--changes", nargs="+", default=[""], help="parts of what is done to them")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    args = parser.parse_args()
    network = CutNetwork("resnet20", SPARSITY, args.images)
    metrics = {name: scores_of(network, name) for name in args.metrics}
    rows: list[dict[str, Any]] = []
    for way in args.ways:
        for metric, change, seed, scores in tqdm(list(choices(metrics, args.seeds)), desc=way):
            solved = change in SOLVED and not seed
            solved = solved and (metric in ("l1", "none") or "fused" not in way)
            if ("solved" in way and not solved) or not any(c in change for c in args.changes):
                continue
            row = {"metric": metric, "change": change, "seed": seed, "way": way}
            row["alike"] = alike(scores, metrics.get(metric, metrics[args.metrics[0]]))
            row |= {"accuracy": round(accuracy(network, scores, way), 2), "images": args.images}
            rows.append(row)
            print(row, flush=True)
            kept = record.with_earlier("metric", rows, ("metric", "change", "seed", "way"))
            record.write("metric", kept, sparsity=SPARSITY)
    print(record.markdown(summary(rows)))


if __name__ == "__main__":
    main()
