"""FaP and PaF on the digits: networks of folds made one, and cut after or before.

`train.py --mode fap` and ``paf`` with two and four folds, half of the neurons gone, the rest its
defaults: 12 epochs a fold, then 2 on all data. Beside them the network of all data. Accuracies in
%, before and after fine-tuning; seconds of the whole command.

    python benchmarks/folds.py           # about 5 minutes on 2 cores
    python benchmarks/folds.py --counts 2 --model mlp --epochs 1      # the rest goes to train.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record


def measured(mode: str, count: int, options: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one run."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "train.py", "--mode", mode, "--folds", str(count), *options]
        command += ["--sparsities", "0.5", "--no-compile-cache", "--out", out]
        start = time.perf_counter()
        subprocess.run(command, cwd=record.ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        found = json.loads((Path(out) / "results.json").read_text())["rows"]
    return [
        {
            "mode": mode,
            "folds": count,
            "method": row["method"],
            "accuracy": round(100 * row["accuracy"], 2),
            "fine-tuned": row["fine_tuned"] and round(100 * row["fine_tuned"], 2),
            "seconds": round(seconds, 1),
        }
        for row in found
    ]


def main() -> None:
    """Runs, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", nargs="+", type=int, default=[2, 4])
    args, options = parser.parse_known_args()
    pairs = [(mode, count) for mode in ("fap", "paf") for count in args.counts]
    rows = [row for mode, count in pairs for row in measured(mode, count, options)]
    print(record.markdown(rows))
    print("written:", record.write("folds", rows).name)


if __name__ == "__main__":
    main()
