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


def test_methods_have_their_colours_whatever_else_is_drawn() -> None:
    few = canvas.method_styles(["Intra-Fusion"])
    more = canvas.method_styles(
        ["random", "plain pruning (l1)", "Intra-Fusion", "PaF, Intra-Fusion", "reconstruction"]
    )
    assert few["Intra-Fusion"] == more["Intra-Fusion"]
    colours = [style["color"] for style in more.values()]
    assert colours[1:] == [canvas.BLUE, canvas.VERMILLION, canvas.VERMILLION, canvas.GREEN]
    assert colours[0] not in colours[1:]


def test_methods_of_one_colour_differ_by_line_and_marker() -> None:
    names = [f"Intra-Fusion, {score}" for score in ("l1", "taylor", "chip", "fisher")]
    styles = canvas.method_styles(names).values()
    assert len({style["linestyle"] for style in styles}) == 4
    assert len({style["marker"] for style in styles}) == 4
    with pytest.raises(ValueError, match="no line left for 'Intra-Fusion, lamp'"):
        canvas.method_styles([*names, "Intra-Fusion, lamp"])


def test_other_methods_are_as_many_as_there_are_colours() -> None:
    with pytest.raises(ValueError, match="no colour left for 'd'; draw fewer methods"):
        canvas.method_styles("abcd")


@pytest.mark.parametrize("lacks", ["protan", "deutan"])
def test_the_colours_of_methods_stay_apart_for_the_colour_blind(lacks: str) -> None:
    """Seen as Viénot, Brettel and Mollon simulate it: by one of red and green, and by blue."""
    seen = []
    for colour, _ in canvas.METHODS.values():
        r, g, b = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
        long, middle, short = (
            sum(w * x**2.2 for w, x in zip(row, (r, g, b), strict=True))
            for row in ((17.88, 43.52, 4.12), (3.46, 27.16, 3.87), (0.03, 0.18, 1.47))
        )
        left = 2.02 * middle - 2.53 * short if lacks == "protan" else 0.49 * long + 1.25 * short
        seen.append((left / 65.5 if lacks == "protan" else left / 34.5, short / 1.68))
    for k, one in enumerate(seen):
        for other in seen[:k]:
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 0.08


def test_titles_and_legends_are_apart() -> None:
    """A title of many words and a legend of many methods, in a narrow figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = canvas.new_figure(4.8, 4.0)
    axes = figure.add_subplot()
    axes.set_xlabel("sparsity")
    for name, style in canvas.method_styles(
        ["plain pruning", "Intra-Fusion", "FaP, plain pruning", "FaP, Intra-Fusion", "random"]
    ).items():
        axes.plot([0, 1], [0, 1], label=name, **style)
    canvas.set_title(figure, "a network on a data set, with " + "many words, " * 12)
    canvas.set_legend(figure)
    agg = FigureCanvasAgg(figure)
    agg.draw()
    renderer = agg.get_renderer()
    title, legend = figure._suptitle.get_window_extent(renderer), figure.legends[0]
    boxes = [title, legend.get_window_extent(renderer), axes.get_tightbbox(renderer)]
    for k, one in enumerate(boxes):
        assert one.x0 >= 0
        assert one.x1 <= figure.bbox.x1
        assert not any(one.overlaps(other) for other in boxes[:k])


def test_curves_stay_apart() -> None:
    """Six curves differ in colour and in marker, for readers who see no colours."""
    styles = [canvas.line_style(number) for number in range(6)]
    assert len({style["color"] for style in styles}) == 6
    assert len({style["marker"] for style in styles}) == 6
