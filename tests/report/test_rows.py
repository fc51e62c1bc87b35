"""Tables that align, JSON that loads."""

import dataclasses
import json

import pytest

from ifjax.report import Row, table, to_json

ROWS = (
    Row(0.0, "dense", 23_946, 400_000, 0.98),
    Row(0.3, "pruning", 12_000, 200_000, 0.8125, 0.97),
    Row(0.3, "Intra-Fusion", 12_000, 200_000, 0.9, 0.975, "fuse-0.3"),
    Row(0.5, "pruning", 6_000, 100_000, 0.4),
    Row(0.5, "Intra-Fusion", 6_000, 100_000, 0.6, 1.0),
)


def test_table_aligns_its_columns() -> None:
    lines = table(ROWS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["sparsity", "method", "weights", "FLOPs", "accuracy", "fine-tuned"]
    starts = [k for k, c in enumerate(lines[1]) if c == "-" and (k == 0 or lines[1][k - 1] == " ")]
    for line in lines:
        assert all(line[start - 1] == " " and line[start - 2] == " " for start in starts[1:])


def test_table_says_what_the_rows_say() -> None:
    lines = table(ROWS).splitlines()[2:]
    assert lines[0].split() == (
        ["0", "%", "dense", "23,946", "100.0", "%", "400,000", "100.0", "%", "98.00", "%", "-"]
    )
    assert " ".join(lines[1].split()) == "30 % pruning 12,000 50.1 % 200,000 50.0 % 81.25 % 97.00 %"


def test_json_holds_rows_and_context() -> None:
    content = json.loads(to_json(ROWS, {"seed": 3, "config": {"lr": 0.1}}))
    assert content["seed"] == 3
    assert content["config"] == {"lr": 0.1}
    assert [Row(**row) for row in content["rows"]] == list(ROWS)


def test_json_refuses_nan_and_an_entry_rows() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json([dataclasses.replace(ROWS[0], accuracy=float("nan"))])
    with pytest.raises(ValueError, match='entry "rows"'):
        to_json(ROWS, {"rows": []})


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        table([])
