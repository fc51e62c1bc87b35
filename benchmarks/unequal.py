"""Networks trained on unequal or wrong labels: what compression does to rare classes and to errors.

A ResNet-8 on scikit-learn's digits, trained here, over several seeds, on

* all: the training images,
* long-tailed: of class k a share of 20^(-k/9), from all images of 0 to a twentieth of those of 9,
* mislabelled: 40 % of the labels drawn at random.

Half of the neurons of every group go, by plain pruning, Intra-Fusion (exact transport), both also
with the norms' statistics reset, and by `ifjax.compress`; calibration inputs are 256 of the same
training images, without labels, some of those that are labelled wrongly among them. Accuracy on the
test images, of all, of the three most frequent and the three rarest classes; and of the training
images that are labelled wrongly, how many are said to be what the label says (learnt by heart) and
how many what they are.

    python benchmarks/unequal.py               # 4 minutes on 2 cores
    python benchmarks/unequal.py --seeds 1 --epochs 5
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np
import record
from model_fusion import trained
from tqdm import tqdm

import ifjax
from ifjax import data, models

SETS = ("all", "long-tailed", "mislabelled")
FACTOR, WRONG, SPARSITY, SEEN = 20, 0.4, 0.5, 256


def training_set(name: str, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images, and the labels that they have there."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    if name == "long-tailed":
        kept = []
        for k in range(10):
            own = order[labels[order] == k]
            kept.append(own[: max(round(len(own) * FACTOR ** (-k / 9)), 2)])
        order = rng.permutation(np.concatenate(kept))
    given = labels[order].copy()
    if name == "mislabelled":
        wrong = rng.uniform(size=len(given)) < WRONG
        given[wrong] = rng.integers(0, 10, int(wrong.sum()))
    return order, given


def networks(apply_fn: Any, params: Any, images: np.ndarray) -> dict[str, tuple[Any, Any]]:
    """Function and parameters of every method."""
    seen = images[:SEEN]
    spec = ifjax.trace(apply_fn, params, seen[:1]).spec(SPARSITY, method="prune", solver="exact")
    fusing = dataclasses.replace(spec, method=dataclasses.replace(spec.method, method="fuse"))
    small = jax.jit(ifjax.shrink(apply_fn, spec))
    found = {"dense": (jax.jit(apply_fn), params)}
    for method, how in (("plain pruning", spec), ("Intra-Fusion", fusing)):
        cut = ifjax.fuse_params(params, how)
        found[method] = small, cut
        found[f"{method}, reset"] = small, ifjax.reset_statistics(small, cut, [seen])
    batches = [seen[i : i + 32] for i in range(0, len(seen), 32)]
    found["compress"] = small, ifjax.compress(apply_fn, params, spec, batches)[0]
    return found


def measure(name: str, seed: int, epochs: int) -> list[dict[str, Any]]:
    """A row per method."""
    digits = data.load_digits()
    truth, test = np.asarray(digits.train_labels), np.asarray(digits.test_labels)
    order, given = training_set(name, truth, seed)
    images, truth = np.asarray(digits.train_images)[order], truth[order]
    apply_fn, params = trained(models.create("resnet8"), seed, images, given, epochs)
    rows = []
    for method, (run, small) in networks(apply_fn, params, images).items():
        said = np.asarray(run(small, np.asarray(digits.test_images))).argmax(-1)
        right = said == test
        row = {"set": name, "seed": seed, "method": method, "accuracy": right.mean()}
        row |= {
            "classes 0 to 2": right[test <= 2].mean(),
            "classes 7 to 9": right[test >= 7].mean(),
        }
        wrong = given != truth
        if wrong.any():
            said = np.asarray(run(small, images[wrong])).argmax(-1)
            row |= {
                "by heart": (said == given[wrong]).mean(),
                "in truth": (said == truth[wrong]).mean(),
            }
        rows.append(
            {k: round(100 * float(v), 2) if isinstance(v, float) else v for k, v in row.items()}
        )
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, with the lowest and highest."""
    table = []
    for name, method in dict.fromkeys((row["set"], row["method"]) for row in rows):
        same = [row for row in rows if (row["set"], row["method"]) == (name, method)]
        line: dict[str, Any] = {"trained on": name, "method": method}
        for key in ("accuracy", "classes 0 to 2", "classes 7 to 9", "by heart", "in truth"):
            values = [row[key] for row in same if key in row]
            spread = f" ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else ""
            line[key] = f"{np.mean(values):.1f}{spread}" if values else ""
        table.append(line)
    return table


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.sets:
        for seed in tqdm(range(args.seeds), desc=name):
            rows += measure(name, seed, args.epochs)
            print(record.markdown(summary(rows)), flush=True)
            record.write("unequal", rows, epochs=args.epochs)


if __name__ == "__main__":
    main()
