"""Results: tables that align, JSON that loads, files that are whole, records that are complete."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import pytest

from ifjax import report
from ifjax.report import Row, table, to_json, write_atomically
from ifjax.report.results import check_records, short_names

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


def test_a_table_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        table([])


def test_provenance_names_versions_and_machine() -> None:
    found = report.provenance("python train.py --seed 1")
    assert found["command"] == "python train.py --seed 1"
    assert found["versions"]["jax"] == jax.__version__
    assert found["machine"]["devices"]
    assert (
        json.loads(report.to_json([report.Row(0.0, "dense", 1, 2, 0.5)], found))["machine"]
        == found["machine"]
    )


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail(file: Path) -> None:
        file.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "at least one record"),
        ([{"layer": "a", "divergence": 1}, {"layer": 3, "divergence": 1}], "'layer' of record 1"),
        ([{"layer": "a"}], "finite number as 'divergence' of record 0, got None"),
        ([{"layer": "a", "divergence": math.nan}], "got nan"),
        ([{"layer": "a", "divergence": True}], "got True"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(records, message):
    with pytest.raises(ValueError, match=message):
        check_records(records, {"layer": str, "divergence": float})


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["params/a/kernel"], ["params/a/kernel"]),
        (["p/a/k", "p/b/k", "p/a/k"], ["a", "b"]),
        (["p/a/x/k", "p/k"], ["a/x/k", "k"]),
        (["p/a/k", "p/a/b/k"], ["k", "b/k"]),
        ([], []),
    ],
)
def test_names_are_shortened_and_stay_apart(names, short):
    found = short_names(names)
    assert list(found) == list(dict.fromkeys(names))
    assert len(set(found.values())) == len(found)
    assert list(found.values()) == short
