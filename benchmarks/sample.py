"""Rows of a kept result measured again on today's code: `python -m benchmarks --sample`.

To measure all results anew takes a day. A few rows of each show whether its numbers still hold.
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


def differences(old: Sequence[Row], new: Sequence[Row], sample: Sample) -> dict[str, float]:
    """The largest difference of every column that is compared.

    Of lists, such as one number per seed, the shorter counts.

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
    found = dict.fromkeys(sample.same, 0.0)
    for row in new:
        kept = known.get(_key(row, sample))
        if kept is None:
            named = {name: row.get(name) for name in sample.by}
            raise ValueError(f"expected a row that the kept result has too, got {named}")
        for name in sample.same:
            found[name] = max(found[name], _apart(kept.get(name), row.get(name)))
    return found


def noted(result: Path, again: Path, sample: Sample) -> dict[str, Any]:
    """Compares two results, and writes into the first what came of it, which is returned."""
    kept, new = (json.loads(path.read_text()) for path in (result, again))
    kept["sampled"] = {
        **{name: new[name] for name in ("commit", "uncommitted", "command") if name in new},
        "rows": len(new["rows"]),
        "largest differences": differences(kept["rows"], new["rows"], sample),
    }
    # Rows stay last, where a reader looks for them.
    kept["rows"] = kept.pop("rows")
    result.write_text(json.dumps(kept, indent=1) + "\n")
    return kept["sampled"]


def _key(row: Row, sample: Sample) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in sample.by)


def _apart(a: Any, b: Any) -> float:
    if isinstance(a, list) and isinstance(b, list):
        return max((_apart(x, y) for x, y in zip(a, b, strict=False)), default=0.0)
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    return round(abs(a - b), 6)
