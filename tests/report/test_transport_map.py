from __future__ import annotations

import numpy as np
import pytest

from ifjax.report import plot_map

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


def test_it_is_a_small_picture(tmp_path):
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
