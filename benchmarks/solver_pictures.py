"""The plot of `solvers.py`: cost, accuracy and time of every solver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ifjax.report import canvas
from ifjax.transport import solvers

NOT_DRAWN = ("512 x 256", "2048 x 1024")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost gap and accuracy over epsilon; time over the number of costs."""
    figure = canvas.new_figure(13.0, 4.6)
    gap, right, fast = figure.subplots(1, 3)
    groups = [row for row in rows if row["part"] == "groups"]
    kernel = [row for row in groups if row["solver"] == "sinkhorn_kernel"]
    names = dict.fromkeys(row["groups"] for row in kernel)
    for k, name in enumerate(name for name in names if name not in NOT_DRAWN):
        shown = [row for row in kernel if row["groups"] == name]
        gap.plot(*_columns(shown, "epsilon", "cost, mean %"), label=name, **canvas.line_style(k))
    gap.set(xscale="log", yscale="log", xlabel="epsilon", title="cost above exact, %")
    found = [row for row in rows if row["part"] == "accuracy"]
    for k, name in enumerate(dict.fromkeys(row["network"] for row in found)):
        shown = [
            row
            for row in found
            if row["network"] == name and row["solver"] == "sinkhorn_kernel" and row["50%"] != "-"
        ]
        style = canvas.line_style(k)
        right.plot(*_columns(shown, "epsilon", "50%"), label=name, **style)
        for solver, dash in (("exact", "--"), ("nearest", ":"), ("prune", "-.")):
            for row in found:
                if (row["network"], row["solver"]) == (name, solver):
                    label = f"{name}, {solver}"
                    right.axhline(row["50%"], color=style["color"], linestyle=dash, label=label)
    right.set(xscale="log", xlabel="epsilon", title="accuracy at 50 %, 2,000 images, %")
    dashes = {"exact": "--", "nearest": ":"}  # as in the panel before; colours are networks there
    for k, name in enumerate(name for name in solvers.SOLVERS if name != "auto"):
        shown = [
            row | {"size": int(np.prod([int(x) for x in row["groups"].split(" x ")]))}
            for row in groups
            if row["solver"] == name and row["epsilon"] in (None, 0.01) and " x " in row["groups"]
        ]
        shown.sort(key=lambda row: row["size"])
        style = canvas.line_style(k) | {"color": "black", "linestyle": dashes.get(name, "-")}
        fast.plot(*_columns(shown, "size", "ms"), label=name, **style)
    fast.set(xscale="log", yscale="log", xlabel="n x m", title="milliseconds, epsilon 0.01")
    for axes in (gap, right, fast):
        canvas.plain(axes)
        axes.legend(
            fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3
        )
    canvas.save(figure, path)


def _columns(rows: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    return [row[x] for row in rows], [row[y] for row in rows]
