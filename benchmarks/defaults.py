"""Which options of a fusion pay: one changed at a time.

From exact transport, uniform marginals, the highest scores as targets, the reference's merge,
groups one after another, p = 1 (the paper's setting): importance marginals, centroids, the merge
that preserves duplicates, all groups at once, other costs, Sinkhorn at several epsilons. ResNet-20
and ResNet-56 inside their blocks, VGG11-BN everywhere; l1, no fine-tuning, as merged and with the
norms' statistics reset on 512 training images.

    python benchmarks/defaults.py                     # about 10 minutes on 2 cores
    python benchmarks/defaults.py --cases "resnet20 30%" --images 500
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import record
from cut_network import CutNetwork

import ifjax

CASES = {
    "resnet20 30%": ("resnet20", 0.3),
    "resnet20 50%": ("resnet20", 0.5),
    "resnet56 50%": ("resnet56", 0.5),
    "vgg11 50%": ("vgg11", 0.5),
}
BASE = {"method": "fuse", "solver": "exact"}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain pruning": {"method": "prune"},
    "the paper's": {},
    "importance of the neurons": {"source_marginal": "importance"},
    "importance of the targets": {"target_marginal": "importance"},
    "importance of both": {"source_marginal": "importance", "target_marginal": "importance"},
    "k-means centroids": {"targets": "centroids"},
    "preserving merge": {"merge": "preserving"},
    "all groups at once": {"order": "simultaneous"},
    "p = 2": {"cost_p": 2.0},
    "cosine": {"cost_p": "cosine"},
    "nearest": {"solver": "nearest"},
    **{
        f"Sinkhorn, {epsilon:g}": {"solver": "sinkhorn_kernel", "epsilon": epsilon}
        for epsilon in (0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
    },
}


def measure(network: CutNetwork, case: str, option: str) -> dict[str, Any]:
    """One row."""
    began = time.perf_counter()
    small = ifjax.fuse_params(network.params, network.changed(**BASE | OPTIONS[option]))
    return {
        "case": case,
        "option": option,
        "accuracy": round(network.accuracy(small), 2),
        "statistics reset": round(network.accuracy(network.reset(small)), 2),
        "seconds": round(time.perf_counter() - began, 1),
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per option, a column per case: as merged / reset."""
    return record.pivoted(
        rows,
        "option",
        lambda row: row["case"],
        lambda row: f"{row['accuracy']:.1f} / {row['statistics reset']:.1f}",
    )


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="of the test set")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=OPTIONS)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in args.cases:
        network = CutNetwork(*CASES[case], args.images)
        for option in args.options:
            rows.append(measure(network, case, option))
            print(rows[-1], flush=True)
        record.write("defaults", rows, images=args.images)
    print(record.markdown(summary(rows)))


if __name__ == "__main__":
    main()
