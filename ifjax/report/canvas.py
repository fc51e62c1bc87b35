"""What all pictures share: the library, one palette of methods, how a figure is written."""

import importlib.util
import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifjax.report.results import write_atomically

# Okabe and Ito's colours, which stay apart for colour-blind readers.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
DENSE = "0.45"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "D", "^", "v", "P")

# What a method's name has in it, and its colour and marker in every picture; the first that fits.
METHODS = {"prun": (BLUE, "o"), "fus": (VERMILLION, "s"), "reconstruct": (GREEN, "D")}
VARIANTS = (("-", None), ("--", "^"), ("-.", "v"), (":", "P"))
"""Line and marker of the first, second, ... method of one colour in a picture."""


def require_matplotlib() -> None:
    """Raises if matplotlib is missing, without importing it: before hours of work, not after.

    Raises:
        ModuleNotFoundError: with the command that installs it.

    Example:
        >>> require_matplotlib()
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "plots need matplotlib, which is not installed: pip install 'ifjax[train]'",
            name="matplotlib",
        )


def new_figure(width: float, height: float) -> Any:
    """An empty figure of ``width`` x ``height`` inches, on no screen."""
    require_matplotlib()
    from matplotlib.figure import Figure  # an extra, and slow to import

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def line_style(number: int) -> dict[str, Any]:
    """The line of the ``number``-th curve where curves are no methods: colour and marker."""
    return _line(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])


def method_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The line of every method of a picture; a method has its colour in all pictures.

    Pruning is blue, fusion vermillion, reconstruction green, whatever else their names say;
    methods of one colour differ by line and marker. Other methods get the colours that are left.

    Args:
        methods: their names, in the order of the legend.

    Returns:
        By name, keyword arguments of matplotlib's ``plot``.

    Raises:
        ValueError: if there are more methods than styles.

    Example:
        >>> styles = method_styles(["plain pruning", "Intra-Fusion", "FaP, Intra-Fusion"])
        >>> [style["color"] for style in styles.values()]
        ['#0072B2', '#D55E00', '#D55E00']
        >>> styles["FaP, Intra-Fusion"]["linestyle"]
        '--'
    """
    colours = {colour for colour, _ in METHODS.values()}
    left = [pair for pair in zip(COLOURS, MARKERS, strict=True) if pair[0] not in colours]
    styles: dict[str, dict[str, Any]] = {}
    count = dict.fromkeys(METHODS, 0)
    for method in dict.fromkeys(methods):
        word = next((word for word in METHODS if word in method.lower()), None)
        if word is None:
            if not left:
                raise ValueError(f"a picture has no colour left for {method!r}; draw fewer methods")
            styles[method] = _line(*left.pop(0))
            continue
        if count[word] == len(VARIANTS):
            raise ValueError(f"a picture has no line left for {method!r}; draw fewer methods")
        (colour, marker), (line, other) = METHODS[word], VARIANTS[count[word]]
        styles[method] = _line(colour, other or marker) | {"linestyle": line}
        count[word] += 1
    return styles


def _line(colour: str, marker: str) -> dict[str, Any]:
    return {
        "color": colour,
        "marker": marker,
        "linewidth": 1.8,
        "markersize": 6.5,
        "clip_on": False,
        "zorder": 3,
    }


def set_title(figure: Any, title: str) -> None:
    """Writes a title at the top left, in as many lines as the width of the figure asks for."""
    lines = textwrap.fill(title, int(13 * figure.get_figwidth()), break_on_hyphens=False)
    figure.suptitle(lines, fontsize="medium", x=0.01, ha="left")


def set_legend(figure: Any) -> None:
    """Writes one legend of all panels below them, where it covers nothing."""
    found = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    rows = math.ceil(len(found) / max(1, int(figure.get_figwidth() / 1.55)))
    figure.legend(
        found.values(),
        found.keys(),
        frameon=False,
        fontsize="small",
        loc="outside lower center",
        ncols=math.ceil(len(found) / rows),
    )


def plain(axes: Any) -> None:
    """Leaves a light grid and the two axes that carry numbers."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure, whole or not at all; the suffix of the path names the format."""
    path = Path(path)
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:] or "png"))
