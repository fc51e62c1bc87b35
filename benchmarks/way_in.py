"""From nothing to a smaller network of one's own, step by step, as the tutorial says.

In a new folder: a clone of this checkout's last commit, a virtual environment, the tutorial's
install, and then the code of its sections one after the other in one process, as a user would paste
it. Seconds of every step.

    python benchmarks/way_in.py          # two minutes on 2 cores
    python benchmarks/way_in.py --here   # the code alone, in the checkout and environment of now
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("docs/tutorial.md")


def sections(text: str) -> list[tuple[str, str]]:
    """The python code of a page by heading."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    found = [
        (name, re.findall(r"^```python\n(.*?)^```$", body, re.M | re.S)) for name, body in pairs
    ]
    return [(name, "\n".join(code)) for name, code in found if code]


def read() -> None:
    """Runs the page, in its environment, and prints the seconds of its sections."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for name, code in sections(PAGE.read_text()):
        start = time.perf_counter()
        exec(compile(code, name, "exec"), namespace)
        print("STEP" + json.dumps([name, time.perf_counter() - start]), flush=True)


def timed(step: str, command: Sequence[str], folder: Path) -> dict[str, Any]:
    """A row: what a command took."""
    print(f"{step}: {' '.join(command)}", flush=True)
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return {"step": step, "seconds": time.perf_counter() - start}


def installed(folder: Path) -> tuple[list[dict[str, Any]], str, Path]:
    """Rows of all that comes before the code, and the python and the checkout to run it in."""
    [install] = re.findall(r"`(pip install [^`]*)`", (ROOT / PAGE).read_text())
    checkout, python = folder / "ifjax", str(folder / "environment/bin/python")
    words = install.replace("'", "").split()[1:]
    rows = [
        timed("clone", ["git", "clone", "--quiet", str(ROOT), str(checkout)], folder),
        timed("virtual environment", [sys.executable, "-m", "venv", "environment"], folder),
        timed(install, [python, "-m", "pip", "--quiet", *words], checkout),
    ]
    return rows, python, checkout


def main(here: bool) -> None:
    """Goes the way, prints and writes."""
    import record

    with tempfile.TemporaryDirectory() as folder:
        rows, python, checkout = ([], sys.executable, ROOT) if here else installed(Path(folder))
        child = [python, "benchmarks/way_in.py", "--read"]
        start = time.perf_counter()
        done = subprocess.run(child, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True)
        every = time.perf_counter() - start + sum(row["seconds"] for row in rows)
    said = [line[4:] for line in done.stdout.splitlines() if line.startswith("STEP")]
    rows += [{"step": step, "seconds": seconds} for step, seconds in map(json.loads, said)]
    rows.append({"step": "all", "seconds": every})
    print(record.markdown(rows))
    print("written:", record.write("way_in", rows).name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--here", action="store_true", help="the code alone")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    read() if args.read else main(args.here)
