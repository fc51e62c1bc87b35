"""How much where: ResNet-20 cut by each group's effect on the output, beside one ratio for all.

The groups inside the blocks of the pretrained CIFAR-10 network, at the FLOPs of the uniform ratios
30, 50 and 70 %; 512 training images without labels both to allocate and to reconstruct, no
fine-tuning; the full test set. Rows that were measured before are kept, so that an interrupted run
goes on.

    python benchmarks/allocation.py                     # about 15 minutes on 2 cores
    python benchmarks/allocation.py --sparsities 0.5
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import record
from reconstruction import accuracy, images_of, network_of

import ifjax

IMAGES = 512
BATCH = 32
INNER = "params/layer*/conv1/kernel"
METHODS = ("uniform", "allocate")


def measure(sparsity: float, method: str, levels: int, count: int, test: Any) -> dict[str, Any]:
    """One row of the table."""
    apply_fn, params = network_of("resnet20")
    images, _ = images_of(f"train[:{count}]")
    batches = [images[i : i + BATCH] for i in range(0, count, BATCH)]
    graph = ifjax.trace(apply_fn, params, images[:1])
    options: dict[str, Any] = {"method": "prune", "importance": "reconstruction"}
    spec = graph.spec(sparsity, include=INNER, **options)
    before, after = spec.flops()
    began = time.perf_counter(), time.process_time()
    if method == "allocate":
        given = apply_fn, params, graph, batches, 1 - after / before
        spec = ifjax.allocate(*given, include=INNER, levels=levels, **options)
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    small, _ = ifjax.compress(apply_fn, params, spec, batches)
    return {
        "sparsity": sparsity,
        "method": method,
        "flops": f"{spec.flops()[1] / before:.1%}",
        "weights": f"{spec.weights()[1] / spec.weights()[0]:.1%}",
        "accuracy": accuracy(ifjax.shrink(apply_fn, spec), small, *test),
        "seconds": round(seconds[0], 1),
        "of processor": round(seconds[1], 1),
        "kept": " ".join(f"{g.kept}/{g.size}" for g in spec.groups if g.kept != g.size),
    }


def main() -> None:
    """Measures what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--images", type=int, default=IMAGES, help="of the training set")
    parser.add_argument("--test-images", type=int, default=10_000, help="fewer for a trial")
    parser.add_argument("--again", action="store_true", help="measure what was measured before too")
    args = parser.parse_args()
    rows = record.read("allocation")["rows"]
    test = images_of(f"test[:{args.test_images}]")
    for sparsity in args.sparsities:
        for method in METHODS:
            same = [r for r in rows if (r["sparsity"], r["method"]) == (sparsity, method)]
            if same and not args.again:
                continue
            rows = [row for row in rows if row not in same]
            rows.append(measure(sparsity, method, args.levels, args.images, test))
            print(rows[-1], flush=True)
            record.write("allocation", rows)
    print(record.markdown(rows))


if __name__ == "__main__":
    main()
