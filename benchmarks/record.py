"""Writes what a benchmark measured: table, machine, versions, seed, command and age, as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import result_page
from age import git
from result_page import markdown as markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(os.environ.get("IFJAX_RESULTS") or ROOT / "benchmarks/results")
RESULTS.mkdir(exist_ok=True, parents=True)
# Progress bars are for terminals; tqdm reads this when it is imported, after this module.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")
# As it was when the process began: a checkout may move on while it runs.
COMMIT = git(ROOT, "rev-parse", "HEAD")
CHANGED = (git(ROOT, "status", "--porcelain", "-uall") or "").splitlines()
PACKAGES = ("jax", "flax", "ott-jax", "POT", "numpy", "torch", "torch-pruning", "transformers")
# What was read of earlier results, by name.
_earlier: dict[str, dict[str, Any]] = {}


def shared_folder() -> Path:
    """Where checkpoints, data sets and fixtures lie: ``$IFJAX_SHARED`` or beside the repository."""
    folder = Path(os.environ.get("IFJAX_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        sys.exit("this benchmark needs the shared files: set IFJAX_SHARED to where they are")
    return folder


def machine() -> dict[str, Any]:
    """Processor count, system, versions, and how XLA was told to compile where it was."""
    versions = {"XLA_FLAGS": os.environ["XLA_FLAGS"]} if os.environ.get("XLA_FLAGS") else {}
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


def depends(modules: Iterable[Any], root: Path = ROOT) -> list[str]:
    """The files of the repository that a result comes from: scripts, and packages of the library.

    A process that imported nothing of the library left the work to others: all of it then.
    """
    found = set()
    for module in list(modules):
        file = getattr(module, "__file__", None)
        path = Path(file).resolve() if file else root
        if path != root and path.is_relative_to(root):
            parts = path.relative_to(root).parts
            found.add("/".join(parts[:2]) if parts[0] == "ifjax" else "/".join(parts))
    found -= {
        f"benchmarks/{name}.py" for name in ("record", "age", "result_page")
    }  # what is written, not what is measured
    inside = {path for path in found if path.split("/")[0] in ("ifjax", "benchmarks", "tests")}
    return sorted(inside if any(p.startswith("ifjax/") for p in inside) else {*inside, "ifjax"})


def origin() -> dict[str, Any]:
    """The commit, what the result depends on, and what of that differed from the commit."""
    files = depends(sys.modules.values())
    changed = [line[3:] for line in CHANGED if any(line[3:].startswith(file) for file in files)]
    return {"commit": COMMIT, "depends": files} | ({"uncommitted": changed} if changed else {})


def write(name: str, rows: Sequence[Mapping[str, Any]], **extra: Any) -> Path:
    """Writes ``results/NAME.json`` and its page, ``NAME.md``, and returns the path of the former.

    Where rows are among those that `read` gave, the result is as old as they are, and its commands
    are all that made it and this one, also those of which no row is left.
    """
    command: str | list[str] = shlex.join(
        ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    )
    born = origin()
    old = _earlier.get(name, {"rows": []})
    if {id(row) for row in rows} & {id(row) for row in old["rows"]}:
        born = {key: old[key] for key in ("commit", "depends", "uncommitted") if key in old}
        command = [*dict.fromkeys([*commands(old), command])]
    record = {"command": command, **born, "machine": machine(), **extra, "rows": list(rows)}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    result_page.write(path)
    return path


def commands(result: Mapping[str, Any]) -> list[str]:
    """Those that made a result, the oldest first."""
    found = result.get("command", [])
    return [found] if isinstance(found, str) else list(found)


def read(name: str) -> dict[str, Any]:
    """What ``results/NAME.json`` holds, no rows where it does not exist."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {"rows": []}
    _earlier[name] = found
    return found


def with_earlier(
    name: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[Mapping[str, Any]]:
    """The rows, and those of ``results/NAME.json`` of which none has the same keys."""
    known = {tuple(row[key] for key in keys) for row in rows}
    kept = [r for r in read(name)["rows"] if tuple(r.get(key) for key in keys) not in known]
    return [*kept, *rows]


def pivoted(
    rows: Sequence[Mapping[str, Any]],
    by: str,
    column: Callable[[Mapping[str, Any]], str],
    cell: Callable[[Mapping[str, Any]], Any],
) -> list[dict[str, Any]]:
    """A row per value of a key, a column per kind of row."""
    table: dict[Any, dict[str, Any]] = {}
    for row in rows:
        table.setdefault(row[by], {by: row[by]})[column(row)] = cell(row)
    return list(table.values())
