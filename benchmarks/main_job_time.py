"""How long the main job takes, beside an earlier commit: `train.py` of both, in turn.

Both checkouts are worktrees of this repository, both run in this environment without a cache of
compiled programs, each in a folder of its own. Seconds of the processor, of all threads: machines
that others use too make the clock's seconds say little. Later commits also reconstruct: they are
asked for what the earlier one does. Both need their packages here: that of the default wants tyro.

    pip install -e '.[train]' && pip install tyro
    python benchmarks/main_job_time.py           # 3 minutes on 2 cores
    python benchmarks/main_job_time.py --before COMMIT --rounds 3
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record

# The last one before the middle of the library was written anew.
BEFORE = "f4b514b"
NOW = ("--no-compile-cache", "--methods", "prune", "fuse")


def main() -> None:
    """Runs both, and prints and writes the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="the earlier commit")
    parser.add_argument("--rounds", type=int, default=2)
    args, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as folder:
        sides = {"before": (args.before, ()), "now": ("HEAD", NOW)}
        try:
            for side, (commit, _) in sides.items():
                git("worktree", "add", "--detach", str(Path(folder) / side), commit)
            for turn in range(args.rounds):
                for side, (commit, options) in sides.items():
                    found = ran(Path(folder) / side, [*options, "--out", f"{folder}/{side}-{turn}"])
                    rows.append({"side": side, "of": commit, **found})
                    print(rows[-1], file=sys.stderr, flush=True)
        finally:
            for side in filter(lambda name: (Path(folder) / name).exists(), sides):
                git("worktree", "remove", "--force", str(Path(folder) / side))
    table = [medians(side, rows) for side in sides]
    table[1]["times"] = table[1]["CPU s"] / table[0]["CPU s"]
    print(record.markdown(table))
    print("written:", record.write("main_job_time", rows, medians=table).name)


def git(*arguments: str) -> None:
    """Runs git here."""
    subprocess.run(["git", "-C", str(record.ROOT), *arguments], check=True, capture_output=True)


def ran(checkout: Path, options: Sequence[str]) -> dict[str, float]:
    """Seconds of one run, of the clock and of the processor."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "train.py", *options]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{checkout.name}: train.py ended with {done.stderr.splitlines()[-1:]}")
    after, passed = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": passed, "CPU s": spent}


def medians(side: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of a side."""
    own = [row for row in rows if row["side"] == side]
    found = {key: statistics.median(x[key] for x in own) for key in ("seconds", "CPU s")}
    return {"side": side, "of": own[0]["of"], **found}


if __name__ == "__main__":
    main()
