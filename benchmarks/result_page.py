"""What a result holds as a page of markdown; `python -m benchmarks --tables` writes all anew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a markdown table of the columns of the first.

    >>> print(markdown([{"n": 1, "error": 0.0123}, {"n": 2}]))
    | n | error |
    | --- | --- |
    | 1 | 0.0123 |
    | 2 |  |
    """
    return _table(list(rows[0]), rows)


def _table(head: list[str], rows: Sequence[Row]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(r.get(k, "")) for k in head] for r in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_cell(key)}: {_cell(x)}" for key, x in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_cell, value))
    return str(value).replace("|", "\\|").replace("\n", " ")


def page(name: str, result: Mapping[str, Any]) -> str:
    """Where a result comes from, and all of its tables.

    >>> print(page("a", {"command": "python a.py", "rows": [{"n": 1}, {"n": 2, "m": [1.5]}]}))
    # a
    <BLANKLINE>
    `python a.py`
    <BLANKLINE>
    | n | m |
    | --- | --- |
    | 1 |  |
    | 2 | 1.50 |
    <BLANKLINE>
    """
    command = result["command"]
    parts = [f"# {name}"]
    parts += [f"`{line}`" for line in ([command] if isinstance(command, str) else command)]
    told = {k: v for k, v in result.items() if k not in ("command", "depends")}
    tables = {k: told.pop(k) for k in list(told) if _is_table(told[k])}
    if told:
        parts.append("\n".join(f"* {key}: {_cell(value)}" for key, value in told.items()))
    for key, rows in tables.items():
        parts += [f"## {key}"] if key != "rows" else []
        parts.append(_table(list(dict.fromkeys(k for row in rows for k in row)), rows))
    return "\n\n".join(parts) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, Mapping) for x in value)


def write(file: Path) -> None:
    """Writes the page of a result beside its JSON."""
    file.with_suffix(".md").write_text(page(file.stem, json.loads(file.read_text())))
