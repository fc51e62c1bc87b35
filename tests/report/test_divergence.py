from __future__ import annotations

import numpy as np
import pytest

from ifjax.report import plot_divergence

RECORDS = [
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
    plot_divergence(RECORDS[:3] + RECORDS[:2:-1], tmp_path / "d.png", "a network")
    axes, cosines = figures[0].axes
    fusion, pruning = axes.get_lines()
    np.testing.assert_allclose(fusion.get_data(), [[0, 1, 2], [0, 0.1, 0.2]])
    np.testing.assert_allclose(pruning.get_data(), [[0, 1, 2], [0, 0.2, 0.4]])
    for line, expected in zip(cosines.get_lines(), (0.9, 0.8), strict=True):
        np.testing.assert_allclose(line.get_data(), [[0, 1, 2], [expected] * 3])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["stem", "block", "head"]


def test_it_is_a_small_picture(tmp_path):
    plot_divergence(RECORDS, tmp_path / "d.png")
    content = (tmp_path / "d.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 200_000


def test_bad_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="finite number as 'distance' of record 0"):
        plot_divergence([{"layer": "a", "method": "b"}], tmp_path / "d.png")
    assert not list(tmp_path.iterdir())
