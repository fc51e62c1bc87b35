"""What a small network loses beside its accuracy: calibration, robustness, single classes.

ResNet-20 (groups inside the blocks), and VGG11-BN (all groups): dense, plain pruning, Intra-Fusion
(exact transport), and reconstruction (`ifjax.compress`, 512 training images). No fine-tuning.

* network: accuracy; expected calibration error (15 bins of equal width) and mean confidence; the
  accuracy of the best and the worst class, and the class that lost most.
* corruption: accuracy under noise, blur, contrast and JPEG at five strengths, see corruptions.py.
* calibration inputs: reconstruction on 512 inputs of another kind: one class alone, corrupted
  images, handwritten digits in gray, noise; the accuracy on clean test images.

    python benchmarks/robustness.py                     # about 20 minutes on 2 cores
    python benchmarks/robustness.py --images 250 --networks resnet20 --parts network inputs
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import record
from corruptions import STRENGTHS, corrupt
from cut_network import CutNetwork, dense_logits
from divergence import small_of

from ifjax import data

NETWORKS = ("resnet20", "vgg11")
PARTS = ("network", "corruption", "inputs")
CASES = {
    "dense": (0.3, None),
    "plain pruning, 30%": (0.3, "plain pruning"),
    "Intra-Fusion, 30%": (0.3, "Intra-Fusion"),
    "reconstruction, 30%": (0.3, "reconstruction"),
    "reconstruction, 50%": (0.5, "reconstruction"),
    "reconstruction, 70%": (0.7, "reconstruction"),
}
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
BINS, INPUTS, SPARSITY = 15, 512, 0.5


def normalised(images: np.ndarray) -> np.ndarray:
    """As the networks take them."""
    return np.asarray(data.normalize(images, data.CIFAR10_MEAN, data.CIFAR10_STD))


def raw(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images in bytes, and labels."""
    images, labels = data.cifar10_split(
        split, data_dir=record.shared_folder() / "tensorflow_datasets"
    )
    return np.asarray(images), np.asarray(labels)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence|, weighted by the images of a bin."""
    confidence = probabilities.max(-1)
    right = probabilities.argmax(-1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(BINS)]
    return float(sum(gaps) / len(labels))


def by_class(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy of each class in %."""
    return np.array([100 * (predicted[labels == c] == c).mean() for c in range(len(CLASSES))])


def networks(
    name: str, cases: list[str], images: int
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Logits of normalised images, by case."""
    cut = {s: CutNetwork(name, s, images) for s in dict.fromkeys(CASES[c][0] for c in cases)}
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for case in cases:
        sparsity, method = CASES[case]
        network = cut[sparsity]
        if method is None:
            found[case] = functools.partial(dense_logits, network)
        else:
            found[case] = functools.partial(network.logits, small_of(network, method))
    return found


def measure_network(case: str, logits: np.ndarray, dense: np.ndarray, labels: np.ndarray) -> dict:
    """One row of the first table."""
    x = logits - logits.max(-1, keepdims=True)
    probabilities = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    own, full = by_class(logits.argmax(-1), labels), by_class(dense.argmax(-1), labels)
    most = int((full - own).argmax())
    return {
        "part": "network",
        "case": case,
        "accuracy": 100 * float((logits.argmax(-1) == labels).mean()),
        "calibration error, %": 100 * calibration_error(probabilities, labels),
        "confidence, %": 100 * float(probabilities.max(-1).mean()),
        "best class": float(own.max()),
        "worst class": f"{own.min():.1f} ({CLASSES[int(own.argmin())]})",
        "lost most": f"{(full - own)[most]:.1f} ({CLASSES[most]})",
        "classes": own.round(1).tolist(),
    }


def other_inputs() -> dict[str, np.ndarray]:
    """512 calibration inputs each, in bytes."""
    images, labels = raw("train[:6000]")
    own = images[:INPUTS]
    rng = np.random.default_rng(0)
    digits = np.repeat(np.asarray(data.load_digits().train_images)[:INPUTS, ..., :1], 3, -1)
    digits = np.kron(digits * 255 / digits.max(), np.ones((1, 4, 4, 1)))
    return {
        "training images": own,
        "cats alone": images[labels == 3][:INPUTS],
        "training images, noise 5": corrupt(own, "noise", 5),
        "training images, blur 5": corrupt(own, "blur", 5),
        "training images, contrast 5": corrupt(own, "contrast", 5),
        "handwritten digits": digits.astype(np.uint8),
        "uniform noise": rng.integers(0, 256, own.shape, np.uint8),
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="of the test set")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.networks:
        for found in measure(name, args):
            rows += [{"network": name, **row} for row in found]
            record.write("robustness", rows, images=args.images)


def measure(name: str, args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The rows of one network, as they come."""
    images, labels = raw(f"test[:{args.images}]")
    if {"network", "corruption"} & set(args.parts):
        apply = networks(name, args.cases, args.images)
        clean = {case: run(normalised(images)) for case, run in apply.items()}
        if "network" in args.parts:
            dense = clean.get("dense", next(iter(clean.values())))
            rows = [measure_network(case, x, dense, labels) for case, x in clean.items()]
            shown = [{k: v for k, v in row.items() if k not in ("part", "classes")} for row in rows]
            print(record.markdown(shown), flush=True)
            yield rows
        if "corruption" in args.parts:
            rows = measure_corruptions(apply, images, labels)
            print(record.markdown([_shown(row) for row in rows]), flush=True)
            yield rows
    if "inputs" in args.parts:
        network = CutNetwork(name, SPARSITY, args.images)
        for kind, inputs in other_inputs().items():
            network.images = normalised(inputs)
            small = network.compressed(network.changed(importance="reconstruction"))
            row = {"part": "inputs", "calibration inputs": kind, "count": len(inputs)}
            yield [row | {"accuracy": round(network.accuracy(small), 2)}]
            print(row, flush=True)


def measure_corruptions(
    apply: dict[str, Callable[[np.ndarray], np.ndarray]], images: np.ndarray, labels: np.ndarray
) -> list[dict[str, Any]]:
    """A row per network and kind of corruption, accuracies at strengths 1 to 5."""
    rows: list[dict[str, Any]] = []
    for kind in STRENGTHS:
        found: dict[str, list[float]] = {case: [] for case in apply}
        for strength in range(1, 6):
            inputs = normalised(corrupt(images, kind, strength))
            for case, run in apply.items():
                right = run(inputs).argmax(-1) == labels
                found[case].append(round(100 * float(right.mean()), 2))
        rows += [
            {"part": "corruption", "kind": kind, "case": case, "accuracy": x}
            for case, x in found.items()
        ]
    return rows


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    values = " / ".join(f"{x:.1f}" for x in row["accuracy"])
    return {"kind": row["kind"], "case": row["case"], "strength 1 to 5": values}


if __name__ == "__main__":
    main()
