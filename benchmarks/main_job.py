"""The main job over several seeds: ``python train.py`` with each, medians and ranges.

    python benchmarks/main_job.py            # five seeds, about 4 minutes on 2 cores

Runs that are finished already, in ``runs/seeds``, are read and not repeated: remove that folder
first if anything has changed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).parents[1]


def rows_of(seed: int, folder: str, options: Sequence[str]) -> list[dict[str, Any]]:
    """The table of one run."""
    out = Path(folder) / str(seed)
    results = ROOT / out / "results.json"
    if results.exists():
        return json.loads(results.read_text())["rows"]
    command = [sys.executable, "train.py", "--seed", str(seed), "--out", str(out), *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads(results.read_text())["rows"]


def summary(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every method at every sparsity: accuracies in %, one per run."""
    found = []
    for same in zip(*runs, strict=True):
        row = {key: same[0][key] for key in ("sparsity", "method", "weights", "flops")}
        for key in ("accuracy", "fine_tuned"):
            row[key] = [round(100 * r[key], 2) for r in same if r[key] is not None]
        found.append(row)
    return found


def spread(values: Sequence[float]) -> str:
    """Median, and the range in brackets."""
    if not values:
        return ""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Runs, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", default="runs/seeds", help="folder of the runs")
    args, options = parser.parse_known_args()
    rows = summary([rows_of(seed, args.runs, options) for seed in range(args.seeds)])
    shown = [
        {
            "sparsity": f"{100 * row['sparsity']:.0f} %",
            "method": row["method"],
            "weights": f"{100 * row['weights'] / rows[0]['weights']:.1f} %",
            "accuracy, %": spread(row["accuracy"]),
            "fine-tuned, %": spread(row["fine_tuned"]),
        }
        for row in rows
    ]
    print(record.markdown(shown))
    print("written:", record.write("main_job", rows, seeds=args.seeds).name)


if __name__ == "__main__":
    main()
