"""What all pictures share: the library, colours that stay apart, how a figure is written."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from ifjax.report.results import write_atomically

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P")


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
    """The line of the ``number``-th curve: a colour and a marker of its own."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linewidth": 1.8,
        "markersize": 6.5,
        "clip_on": False,
        "zorder": 3,
    }


def plain(axes: Any) -> None:
    """Leaves a light grid and the two axes that carry numbers."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure, whole or not at all; the suffix of the path names the format."""
    path = Path(path)
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:] or "png"))
