"""Tables that align, JSON that loads, plots that are pictures, files whole or not there."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from ifjax import report
from ifjax.report import Row, plot_accuracy, table, to_json, write_atomically

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


@pytest.mark.parametrize("draw", [table, lambda rows: plot_accuracy(rows, "never-written.png")])
def test_no_rows_are_refused(draw) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        draw([])


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_plot_is_written_in_the_format_of_its_suffix(
    tmp_path: Path, suffix: str, magic: bytes
) -> None:
    path = tmp_path / f"accuracy{suffix}"
    plot_accuracy(ROWS, path, title="a network")
    assert path.read_bytes().startswith(magic)
    assert list(tmp_path.iterdir()) == [path]


def test_plot_draws_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the figure when it is saved."""
    from matplotlib.figure import Figure

    seen = {}

    def savefig(figure: Figure, file: Path, **_: object) -> None:
        (axes,) = figure.axes
        for line in axes.get_lines():
            xy = [(round(float(x)), float(y)) for x, y in zip(*line.get_data(), strict=True)]
            seen[line.get_label()] = xy
        seen["labels"] = (axes.get_xlabel(), axes.get_ylabel())
        file.write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", savefig)
    plot_accuracy(ROWS, tmp_path / "a.png")
    assert seen["pruning"] == [(30, 81.25), (50, 40.0)]
    assert seen["pruning, fine-tuned"] == [(30, 97.0)]
    assert seen["Intra-Fusion"] == [(30, 90.0), (50, 60.0)]
    assert seen["Intra-Fusion, fine-tuned"] == [(30, 97.5), (50, 100.0)]
    assert {y for _, y in seen["dense"]} == {98.0}
    assert all(seen["labels"])


def test_a_dense_row_alone_can_be_drawn(tmp_path: Path) -> None:
    plot_accuracy(ROWS[:1], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ifjax\[train\]'"):
        report.require_matplotlib()


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


def test_provenance_names_versions_and_machine() -> None:
    found = report.provenance("python train.py --seed 1")
    assert found["command"] == "python train.py --seed 1"
    assert found["versions"]["jax"] == jax.__version__
    assert found["machine"]["devices"]
    assert json.loads(to_json(ROWS, found))["machine"] == found["machine"]
