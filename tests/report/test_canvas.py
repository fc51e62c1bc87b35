"""What all pictures share."""

from __future__ import annotations

import pytest

from ifjax import report
from ifjax.report import canvas

RECORD = {"group": "a", "layer": "a", "method": "m", "sparsity": 0.5}
DRAW = {
    "accuracy": lambda path: report.plot_accuracy([report.Row(0.0, "dense", 1, 2, 0.5)], path),
    "sensitivity": lambda path: report.plot_sensitivity([RECORD | {"accuracy": 0.5}], path),
    "divergence": lambda path: report.plot_divergence(
        [RECORD | {"distance": 0.5, "cosine": 1.0}], path
    ),
}


@pytest.mark.parametrize("picture", DRAW)
def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path, picture) -> None:
    monkeypatch.setattr(canvas.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ifjax\[train\]'"):
        DRAW[picture](tmp_path / "a.png")


def test_curves_stay_apart() -> None:
    """Six methods differ in colour and in marker, for readers who see no colours."""
    styles = [canvas.line_style(number) for number in range(6)]
    assert len({style["color"] for style in styles}) == 6
    assert len({style["marker"] for style in styles}) == 6
