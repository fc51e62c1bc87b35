"""Pictures that show all that they are given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ifjax.report import Row, plot_accuracy, plot_divergence, plot_map, plot_sensitivity

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


def drawn(axes) -> dict[str, list[tuple[float, float]]]:
    """Rounded points by label."""
    return {
        line.get_label(): [
            (round(float(x), 1), round(float(y), 2)) for x, y in zip(*line.get_data(), strict=True)
        ]
        for line in axes.get_lines()
    }


def test_every_row_is_drawn_over_sparsity_and_over_weights(tmp_path: Path, figures) -> None:
    plot_accuracy(ROWS, tmp_path / "a.png")
    compressed, tuned, by_weights, tuned_by_weights = figures[0].axes
    assert [axes.get_title() for axes in (compressed, tuned)] == ["as compressed", "fine-tuned"]
    seen = drawn(compressed)
    assert seen["pruning"] == [(30, 81.25), (50, 40.0)]
    assert seen["Intra-Fusion"] == [(30, 90.0), (50, 60.0)]
    assert {y for _, y in seen["dense"]} == {98.0}
    assert drawn(tuned)["pruning"] == [(30, 97.0)]
    assert drawn(tuned)["Intra-Fusion"] == [(30, 97.5), (50, 100.0)]
    assert drawn(by_weights)["pruning"] == [(50.1, 81.25), (25.1, 40.0)]
    assert drawn(tuned_by_weights)["Intra-Fusion"] == [(50.1, 97.5), (25.1, 100.0)]
    for axes in figures[0].axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        low, high = axes.get_ylim()
        assert all(low <= y <= high for points in drawn(axes).values() for _, y in points)
    assert by_weights.xaxis_inverted()


def test_measured_latency_has_panels_of_its_own(tmp_path: Path, figures) -> None:
    times = (8.0, 6.0, 5.0, 3.0, 2.0)
    rows = [dataclasses.replace(r, latency=ms) for r, ms in zip(ROWS, times, strict=True)]
    fused = Row(0.0, "FaP, fused", 23_946, 400_000, 0.9, 0.95)  # as wide as the dense one
    plot_accuracy([*rows, fused], tmp_path / "a.png")
    assert len(figures[0].axes) == 6
    compressed, tuned = figures[0].axes[4:]
    assert drawn(compressed)["pruning"] == [(6.0, 81.25), (3.0, 40.0)]
    assert drawn(tuned)["Intra-Fusion"] == [(5.0, 97.5), (2.0, 100.0)]
    assert drawn(compressed)["FaP, fused"] == [(8.0, 90.0)]
    assert compressed.xaxis_inverted()
    assert "ms" in compressed.get_xlabel()


def test_colours_keep_their_meaning_over_panels(tmp_path: Path, figures) -> None:
    plot_accuracy(ROWS, tmp_path / "a.png")
    for label in ("pruning", "Intra-Fusion", "dense"):
        lines = [line for axes in figures[0].axes for line in axes.get_lines()]
        assert len({line.get_color() for line in lines if line.get_label() == label}) == 1
    (legend,) = figures[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert sorted(names) == ["Intra-Fusion", "dense", "pruning"]


def test_dense_folds_fused_cut_and_tuned_are_apart(tmp_path: Path, figures) -> None:
    rows = [
        Row(0.0, "all data", 100, 10, 0.98),
        Row(0.5, "Intra-Fusion", 25, 3, 0.5, 0.97),
        Row(0.0, "fold 0", 100, 10, 0.95),
        Row(0.0, "fold 1", 100, 10, 0.96),
        Row(0.0, "FaP, fused", 100, 10, 0.7, 0.94),
        Row(0.5, "FaP, Intra-Fusion", 25, 3, 0.4, 0.93),
    ]
    plot_accuracy(rows, tmp_path / "a.png")
    compressed, tuned = figures[0].axes[:2]
    assert drawn(compressed)["FaP, fused"] == [(0, 70.0)]
    assert drawn(tuned)["FaP, fused"] == [(0, 94.0)]
    folds = [line for line in compressed.get_lines() if line.get_label() == "each fold"]
    assert [line.get_ydata()[0] for line in folds] == [95.0, 96.0]
    assert "each fold" not in drawn(tuned)
    (legend,) = figures[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["all data", "each fold", "FaP, fused", "Intra-Fusion", "FaP, Intra-Fusion"]
    looks = {
        (line.get_color(), line.get_marker(), line.get_linestyle())
        for line in compressed.get_lines()
    }
    assert len(looks) == len(names)


def test_without_weights_and_without_tuning_there_is_one_panel(tmp_path: Path, figures) -> None:
    plot_accuracy(
        [Row(0.0, "dense", 0, 0, 0.9), Row(0.5, "pruning", 0, 0, 0.5)], tmp_path / "a.png"
    )
    (axes,) = figures[0].axes
    assert drawn(axes)["pruning"] == [(50, 50.0)]


def test_a_dense_row_alone_can_be_drawn(tmp_path: Path) -> None:
    plot_accuracy(ROWS[:1], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_a_picture_of_no_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        plot_accuracy([], tmp_path / "never-written.png")
    assert not list(tmp_path.iterdir())


SENSITIVITY = [
    {"group": "", "sparsity": 0.0, "method": "dense", "accuracy": 0.9},
    *(
        {"group": f"params/{g}/kernel", "sparsity": s, "method": m, "accuracy": a - s}
        for g in ("b", "a", "c")
        for m, a in (("pruning", 0.8), ("fusion", 0.85))
        for s in (0.7, 0.3)
    ),
]


def test_every_group_has_a_panel_with_every_curve(tmp_path, figures):
    plot_sensitivity(SENSITIVITY, tmp_path / "s.png", "a network")
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == ["b", "a", "c"]
    for panel in panels:
        dense, pruning, fusion = panel.get_lines()
        assert set(dense.get_ydata()) == {90.0}
        np.testing.assert_allclose(pruning.get_data(), [[30, 70], [50, 10]])
        np.testing.assert_allclose(fusion.get_data(), [[30, 70], [55, 15]])
        assert (pruning.get_label(), fusion.get_label()) == ("pruning", "fusion")
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "pruning", "fusion"]


def test_sensitivity_is_a_small_picture(tmp_path):
    plot_sensitivity(SENSITIVITY, tmp_path / "s.png")
    content = (tmp_path / "s.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 200_000


def test_more_panels_than_columns(tmp_path, figures):
    records = [{"group": f"g{i}", "sparsity": 0.5, "method": "m", "accuracy": 0.5}
               for i in range(7)]  # fmt: skip
    plot_sensitivity(records, tmp_path / "s.png")
    assert sum(axes.get_visible() for axes in figures[0].axes) == 7


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "at least one record"),
        (SENSITIVITY[:1], "at least one record"),
        ([{"sparsity": 0.5, "accuracy": 0.5, "group": "a"}], "a str as 'method' of record 0"),
        ([SENSITIVITY[1] | {"group": f"g{i}"} for i in range(31)], "at most 30 groups, got 31"),
    ],
)
def test_bad_records_of_sensitivity_are_refused(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        plot_sensitivity(records, tmp_path / "s.png")
    assert not list(tmp_path.iterdir())


DIVERGENCE = [
    {
        "layer": f"params/{layer}/kernel",
        "method": method,
        "distance": factor * place,
        "cosine": 1 - factor,
    }
    for method, factor in (("fusion", 0.1), ("pruning", 0.2))
    for place, layer in enumerate(("stem", "block", "head"))
]


def test_every_method_has_a_curve_over_all_layers(tmp_path, figures):
    plot_divergence(DIVERGENCE[:3] + DIVERGENCE[:2:-1], tmp_path / "d.png", "a network")
    axes, cosines = figures[0].axes
    fusion, pruning = axes.get_lines()
    np.testing.assert_allclose(fusion.get_data(), [[0, 1, 2], [0, 0.1, 0.2]])
    np.testing.assert_allclose(pruning.get_data(), [[0, 1, 2], [0, 0.2, 0.4]])
    for line, expected in zip(cosines.get_lines(), (0.9, 0.8), strict=True):
        np.testing.assert_allclose(line.get_data(), [[0, 1, 2], [expected] * 3])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["stem", "block", "head"]


def test_divergence_is_a_small_picture(tmp_path):
    plot_divergence(DIVERGENCE, tmp_path / "d.png")
    content = (tmp_path / "d.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 200_000


def test_bad_records_of_divergence_are_refused(tmp_path):
    with pytest.raises(ValueError, match="finite number as 'distance' of record 0"):
        plot_divergence([{"layer": "a", "method": "b"}], tmp_path / "d.png")
    assert not list(tmp_path.iterdir())


PLAN = np.array([[0.0, 0.2], [0.1, 0.1], [0.3, 0.0], [0.0, 0.0], [0.03, 0.09]])
TARGETS = np.array([2, 4])


def test_rows_are_sorted_by_target_and_hold_shares(tmp_path, figures):
    plot_map(PLAN, TARGETS, tmp_path / "m.png")
    axes = figures[0].axes[0]
    shown = axes.images[0].get_array()
    expected = [[1, 0], [0.5, 0.5], [0, 0], [0, 1], [0.25, 0.75]]
    np.testing.assert_allclose(shown, expected)
    # Neuron 2 is row 0, neuron 4 is row 4.
    np.testing.assert_array_equal(axes.get_lines()[0].get_data(), [[0, 1], [0, 4]])


def test_a_map_is_a_small_picture(tmp_path):
    rng = np.random.default_rng(0)
    plot_map(rng.random((256, 128)), np.arange(128), tmp_path / "m.png", "random")
    content = (tmp_path / "m.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 200_000


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PLAN[:, :1], r"shapes \(5, 1\) and \(2,\)"),
        (np.stack([PLAN, PLAN]), "batch axes"),
        (PLAN * np.nan, "did the solver fail"),
        (-PLAN, "masses of at least 0"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path, monkeypatch, plan, message):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        plot_map(plan, TARGETS, tmp_path / "m.png")
    assert not list(tmp_path.iterdir())
