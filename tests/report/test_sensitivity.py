from __future__ import annotations

import numpy as np
import pytest

from ifjax.report import plot_sensitivity

RECORDS = [
    {"group": "", "sparsity": 0.0, "method": "dense", "accuracy": 0.9},
    *(
        {"group": f"params/{g}/kernel", "sparsity": s, "method": m, "accuracy": a - s}
        for g in ("b", "a", "c")
        for m, a in (("pruning", 0.8), ("fusion", 0.85))
        for s in (0.7, 0.3)
    ),
]


def test_every_group_has_a_panel_with_every_curve(tmp_path, figures):
    plot_sensitivity(RECORDS, tmp_path / "s.png", "a network")
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


def test_it_is_a_small_picture(tmp_path):
    plot_sensitivity(RECORDS, tmp_path / "s.png")
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
        (RECORDS[:1], "at least one record"),
        ([{"sparsity": 0.5, "accuracy": 0.5, "group": "a"}], "a str as 'method' of record 0"),
        ([RECORDS[1] | {"group": f"g{i}"} for i in range(31)], "at most 30 groups, got 31"),
    ],
)
def test_bad_records_are_refused(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        plot_sensitivity(records, tmp_path / "s.png")
    assert not list(tmp_path.iterdir())
