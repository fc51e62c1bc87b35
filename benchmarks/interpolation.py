"""Two networks made one by reconstruction, beside alignment: on skewed halves of the data.

Two networks of one kind are trained on the digits from different seeds, each on a half of the
training images: at random, or skewed (of the classes 0 to 4 nine tenths are in the first half, of
5 to 9 one tenth), or by class (0 to 4 alone, 5 to 9 alone). Nothing is trained afterwards. 256
training images without labels are seen by all but the averages.

* first, second: the parents. ensemble: their logits' mean, twice as wide.
* average, aligned: `ifjax.fuse_models`, without alignment; aligned by weights; by activations,
  norms' statistics reset on the images (where there are norms).
* side by side, fused / reconstructed: both parents are written as one network of twice the width,
  whose kernels are block-diagonal and whose output is the ensemble's; half of its neurons go, by
  Intra-Fusion (exact transport), or by `ifjax.compress`. Both have the parents' shapes. What is
  reconstructed are the activations of both parents at once, which is the idea of Model Fusion via
  Neuron Interpolation (arXiv 2507.00037).

    python benchmarks/interpolation.py                    # about 8 minutes on 2 cores
    python benchmarks/interpolation.py --networks mlp     # rows of the others stay
    python benchmarks/interpolation.py --networks mlp --seeds 1 --epochs 5
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from flax.traverse_util import flatten_dict, unflatten_dict
from model_fusion import accuracy, average, trained
from tqdm import tqdm

import ifjax
from ifjax import data, models

SPLITS = ("random", "skewed", "by class")
SEEN = 256


def network(name: str, width: int) -> Any:
    """A module at the width of one parent, or of both."""
    if name == "mlp":
        return models.create(name, hidden=(64 * width, 64 * width))
    return models.create(name, width=float(width), shortcut="B")


def halves(labels: np.ndarray, split: str, seed: int) -> list[np.ndarray]:
    """Indices of the two halves."""
    rng = np.random.default_rng(seed)
    share = {"random": 0.5, "skewed": 0.9, "by class": 1.0}[split]
    first = rng.uniform(size=len(labels)) < np.where(labels < 5, share, 1 - share)
    return [np.flatnonzero(first), np.flatnonzero(~first)]


def side_by_side(wide: Any, first: Any, second: Any) -> Any:
    """Both parents as one network of twice the width, whose output is their mean."""
    parents = [flatten_dict(jax.tree.map(np.asarray, p)) for p in (first, second)]
    found = {}
    for path, struct in flatten_dict(wide).items():
        a, b = (parent[path] for parent in parents)
        doubled = [i for i, (n, m) in enumerate(zip(a.shape, struct.shape, strict=True)) if n != m]
        if not doubled:
            found[path] = (a + b) / 2  # the bias of the output
        elif len(doubled) == 2:
            zero = np.zeros_like(a)
            found[path] = np.block([[a, zero], [zero, b]])
        else:
            (axis,) = doubled
            joined = np.concatenate([a, b], axis)
            # What is read by the output, which is not doubled, is halved.
            found[path] = joined / 2 if a.ndim > 1 and axis == a.ndim - 2 else joined
    return unflatten_dict({k: jnp.asarray(x) for k, x in found.items()})


def measure(name: str, split: str, seed: int, epochs: int) -> dict[str, float]:
    """Accuracy of every way."""
    digits = data.load_digits()
    images, labels = np.asarray(digits.train_images), np.asarray(digits.train_labels)
    test = np.asarray(digits.test_images), np.asarray(digits.test_labels)
    module, wide = network(name, 1), network(name, 2)
    first, second = (
        trained(module, 10 * seed + k, images[half], labels[half], epochs)[1]
        for k, half in enumerate(halves(labels, split, seed))
    )
    seen = [images[i : i + 32] for i in range(0, SEEN, 32)]
    apply_fn, normed = module.apply, "batch_stats" in first
    graph = ifjax.trace(apply_fn, first, images[:1])

    def reached(params: Any) -> float:
        return accuracy(apply_fn, params, *test)

    def reset(params: Any) -> Any:
        return ifjax.reset_statistics(apply_fn, params, [images[:SEEN]]) if normed else params

    found = {"first": reached(first), "second": reached(second)}
    struct = jax.eval_shape(wide.init, jax.random.key(0), images[:1])
    both = side_by_side(struct, first, second)
    found["ensemble"] = accuracy(wide.apply, both, *test)
    found["average"] = reached(reset(average(graph, [first, second])))
    for on in ("weights", "activations"):
        given = {"apply_fn": apply_fn, "batches": seen} if on == "activations" else {}
        maps = ifjax.align_models([first, second], graph, solver="exact", on=on, **given)
        found[f"aligned by {on}"] = reached(
            reset(ifjax.fuse_models([first, second], graph, maps=maps))
        )
    spec = ifjax.trace(wide.apply, both, images[:1]).spec(0.5, solver="exact")
    found["side by side, fused"] = reached(reset(ifjax.fuse_params(both, spec)))
    small, _ = ifjax.compress(wide.apply, both, spec, seen)
    found["side by side, reconstructed"] = reached(small)
    return found


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["mlp", "resnet8"])
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.networks:
        for split in args.splits:
            runs = [measure(name, split, s, args.epochs) for s in tqdm(range(args.seeds))]
            for way in runs[0]:
                each = [round(run[way], 2) for run in runs]
                mean = round(float(np.mean(each)), 2)
                row = {"network": name, "split": split, "way": way, "accuracy": mean}
                rows.append(row | {"each": each})
                print(rows[-1], flush=True)
            kept = record.with_earlier("interpolation", rows, ("network", "split", "way"))
            record.write("interpolation", kept, epochs=args.epochs)
    print(record.markdown(summary(rows)))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per way, a column per network and split."""
    return record.pivoted(
        rows, "way", lambda row: f"{row['network']}, {row['split']}", lambda row: row["accuracy"]
    )


if __name__ == "__main__":
    main()
