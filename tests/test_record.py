"""What all benchmarks share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import benchmark_module
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("place", ["module", "function"])
def test_logs_of_benchmarks_hold_no_progress_bars(place: str) -> None:
    script = {
        "module": "import record; from tqdm import tqdm; print(sum(tqdm(range(4))))",
        "function": "import record, tqdm; bar = tqdm.tqdm(range(4)); print(sum(bar)); bar.close()",
    }[place]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=BENCHMARKS, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("6\n", "")


def test_benchmarks_with_progress_bars_import_what_switches_them_off_first() -> None:
    files = [file for file in BENCHMARKS.glob("*.py") if "tqdm import" in file.read_text()]
    assert files
    for file in files:
        text = file.read_text()
        assert 0 < text.find("import record") < text.find("tqdm import tqdm"), file.name


def test_a_pivoted_table_has_a_row_per_value_and_a_column_per_kind() -> None:
    rows = [{"way": w, "of": o, "x": i} for i, (w, o) in enumerate(["ap", "bp", "aq"])]
    pivoted = benchmark_module.loaded("record").pivoted
    assert pivoted(rows, "way", lambda row: row["of"], lambda row: row["x"]) == [
        {"way": "a", "p": 0, "q": 2},
        {"way": "b", "p": 1},
    ]
