"""Rows of a kept result measured again on today's code: `python -m benchmarks --sample`.

To measure all results anew takes days. A few rows of those that do not measure time show whether
their numbers still hold.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Which rows, the entry ``sample`` of a study in ``studies.toml``.

    Attributes:
      arguments: of the script, as in the full form but of fewer cases; ``{results}`` is the folder
        that it writes to.
      by: the columns that tell rows apart.
      same: the columns that are compared, numbers or lists of them: not times.
    """

    arguments: str
    by: list[str]
    same: list[str]


def differences(old: Sequence[Row], new: Sequence[Row], sample: Sample) -> dict[str, float | None]:
    """The largest difference of every column that is compared; None for one that no row has.

    Of lists, such as one number per seed, the shorter counts. Where only one of two is a number
    they are infinitely far apart.

    Raises:
      ValueError: for no rows, and a row that the kept result does not have.

    Example:
      >>> sample = Sample("--seeds 1", ["n"], ["accuracy"])
      >>> differences([{"n": 1, "accuracy": [90.0, 80.0]}], [{"n": 1, "accuracy": [91.5]}], sample)
      {'accuracy': 1.5}
    """
    if not new:
        raise ValueError("expected rows that were measured again, got none")
    known = {_key(row, sample): row for row in old}
    found: dict[str, list[float]] = {name: [] for name in sample.same}
    for row in new:
        kept = known.get(_key(row, sample))
        if kept is None:
            named = {name: row.get(name) for name in sample.by}
            raise ValueError(f"expected a row that the kept result has too, got {named}")
        for name in sample.same:
            found[name] += _apart(kept.get(name), row.get(name))
    return {name: max(each, default=None) for name, each in found.items()}


def noted(result: Path, again: Path, sample: Sample, notes: Path) -> dict[str, Any]:
    """Compares two results, and notes what came of it under the name of the first."""
    kept, new = (json.loads(path.read_text()) for path in (result, again))
    note = {
        "arguments": sample.arguments,
        **{name: new[name] for name in ("commit", "uncommitted", "depends") if name in new},
        "rows": len(new["rows"]),
        "largest differences": differences(kept["rows"], new["rows"], sample),
    }
    every = json.loads(notes.read_text()) if notes.exists() else {}
    every[result.stem] = note
    notes.write_text(json.dumps(dict(sorted(every.items())), indent=1) + "\n")
    return note


def _key(row: Row, sample: Sample) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in sample.by)


def _apart(a: Any, b: Any) -> list[float]:
    if isinstance(a, list) and isinstance(b, list):
        return [d for x, y in zip(a, b, strict=False) for d in _apart(x, y)]
    missing = [x is None or math.isnan(x) for x in (a, b)]
    if any(missing):
        return [] if all(missing) else [math.inf]
    return [round(abs(a - b), 6)]
