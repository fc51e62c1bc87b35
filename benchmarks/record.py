"""Writes what a benchmark measured: table, machine, versions, seed and command, as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# Progress bars are for terminals; tqdm reads this when it is imported, after this module.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")
PACKAGES = ("jax", "flax", "ott-jax", "POT", "numpy")


def shared_folder() -> Path:
    """Where checkpoints, data sets and fixtures lie: ``$IFJAX_SHARED`` or beside the repository."""
    folder = Path(os.environ.get("IFJAX_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        sys.exit("this benchmark needs the shared files: set IFJAX_SHARED to where they are")
    return folder


def machine() -> dict[str, Any]:
    """Processor count, system and versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
    }


def write(name: str, rows: Sequence[Mapping[str, Any]], **extra: Any) -> Path:
    """Writes ``results/NAME.json`` and returns its path."""
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    record = {"command": command, "machine": machine(), **extra, "rows": list(rows)}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def with_earlier(
    name: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[Mapping[str, Any]]:
    """The rows, and those of ``results/NAME.json`` of which none has the same keys."""
    path = RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    known = {tuple(row[key] for key in keys) for row in rows}
    kept = [row for row in earlier if tuple(row.get(key) for key in keys) not in known]
    return [*kept, *rows]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a markdown table."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([_cell(r[k]) for k in head] for r in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1
        else (f"{value:.2f}" if isinstance(value, float) else str(value))
    )
