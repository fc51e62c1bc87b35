"""Plots that are pictures of every row."""

from pathlib import Path

import pytest

from ifjax.report import Row, plot_accuracy

ROWS = (
    Row(0.0, "dense", 23_946, 400_000, 0.98),
    Row(0.3, "pruning", 12_000, 200_000, 0.8125, 0.97),
    Row(0.3, "Intra-Fusion", 12_000, 200_000, 0.9, 0.975, "fuse-0.3"),
    Row(0.5, "pruning", 6_000, 100_000, 0.4),
    Row(0.5, "Intra-Fusion", 6_000, 100_000, 0.6, 1.0),
)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_plot_is_written_in_the_format_of_its_suffix(
    tmp_path: Path, suffix: str, magic: bytes
) -> None:
    path = tmp_path / f"accuracy{suffix}"
    plot_accuracy(ROWS, path, title="a network")
    assert path.read_bytes().startswith(magic)
    assert list(tmp_path.iterdir()) == [path]


def test_plot_draws_every_row(tmp_path: Path, figures) -> None:
    plot_accuracy(ROWS, tmp_path / "a.png")
    (axes,) = figures[0].axes
    seen = {}
    for line in axes.get_lines():
        xy = [(round(float(x)), float(y)) for x, y in zip(*line.get_data(), strict=True)]
        seen[line.get_label()] = xy
    assert seen["pruning"] == [(30, 81.25), (50, 40.0)]
    assert seen["pruning, fine-tuned"] == [(30, 97.0)]
    assert seen["Intra-Fusion"] == [(30, 90.0), (50, 60.0)]
    assert seen["Intra-Fusion, fine-tuned"] == [(30, 97.5), (50, 100.0)]
    assert {y for _, y in seen["dense"]} == {98.0}
    assert axes.get_xlabel()
    assert axes.get_ylabel()


def test_a_dense_row_alone_can_be_drawn(tmp_path: Path) -> None:
    plot_accuracy(ROWS[:1], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        plot_accuracy([], tmp_path / "never-written.png")
    assert not list(tmp_path.iterdir())
