"""The dependency graph as a picture: a row per group, and arcs where a kernel leads to the next."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ifjax.graph.drawing import group_classes, pattern
from ifjax.graph.graph import DependencyGraph
from ifjax.report.canvas import (
    BLUE,
    DENSE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILLION,
    new_figure,
    require_matplotlib,
    save,
    set_title,
)
from ifjax.spec.table import savings
from ifjax.structure.structure import Group

ON: dict[str, Any] = {"color": DENSE, "linewidth": 1.0}
BACK: dict[str, Any] = {"color": VERMILLION, "linewidth": 0.9, "linestyle": "--"}
KINDS = {"neuron": BLUE, "head": ORANGE, "head_dim": PURPLE, "free": GREEN}
MOST = 100
_ROW, _TOP, _LONGEST = 0.23, 1.1, 44  # inches, inches, characters


class Row(NamedTuple):
    """Groups that look the same but for numbers in their names."""

    name: str
    size: str
    kind: str
    weights: int
    groups: frozenset[str]


def plot_graph(
    graph: DependencyGraph, path: str | os.PathLike[str], title: str = "", most: int = MOST
) -> None:
    """Draws the groups of a graph, and how they follow on each other, into a file.

    A row per group, from the input to the output; groups that differ in numbers alone (the layers
    of a network) share one. An arc on the left says that a kernel reads the neurons of the one and
    writes those of the other: solid where it leads on, dashed where it leads back, as out of a
    residual block. Colours are kinds of groups; bars are the share of the network's weights that a
    row holds, which is where cutting saves most. A kernel between two groups counts for both.

    Args:
        graph: from `ifjax.trace`.
        path: where to write; the suffix names the format (``.png``, ``.svg``, ``.pdf``).
        title: stands above the rows.
        most: rows that are drawn, those of the most weights; the others are counted below.

    Raises:
        ModuleNotFoundError: if matplotlib is missing, with the command that installs it.
        ValueError: if there is no group, or ``most`` is less than 1.

    Example:
        >>> import ifjax, tempfile, jax.numpy as jnp
        >>> params = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 8)), "w3": jnp.ones((8, 2))}
        >>> apply = lambda p, x: x @ p["w1"] @ p["w2"] @ p["w3"]
        >>> graph = ifjax.trace(apply, params, jnp.ones((1, 3)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_graph(graph, f"{folder}/graph.png")
    """
    require_matplotlib()
    if most < 1:
        raise ValueError(f"expected to draw at least 1 row, got most={most!r}")
    rows = _rows(graph)
    if not rows:
        raise ValueError("expected a graph with groups, got none; print(graph) says why")
    drawn = sorted(sorted(range(len(rows)), key=lambda i: -rows[i].weights)[:most])
    shown = [rows[i] for i in drawn]
    figure = new_figure(9.0, _TOP + _ROW * (len(shown) + 2))
    arcs, bars = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    _draw_arcs(arcs, shown, _follow(graph, shown))
    total = graph.structure.weights({})
    shares = [100 * row.weights / total for row in shown]
    bars.barh(range(len(shown)), shares, color=[KINDS[row.kind] for row in shown], height=0.7)
    bars.set_xlabel("of all weights (%)", fontsize="small")
    for panel in (arcs, bars):
        panel.set_ylim(len(shown) - 0.3, -1.4)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(left=False, labelleft=False, labelsize="small")
    bars.grid(alpha=0.25, axis="x")
    if len(rows) > len(shown):
        rest = [row for i, row in enumerate(rows) if i not in drawn]
        count = sum(len(row.groups) for row in rest)
        arcs.set_xlabel(f"and {count} smaller groups", fontsize="small")
    set_title(figure, title)
    _set_legend(figure, shown)
    save(figure, path)


def _rows(graph: DependencyGraph) -> list[Row]:
    """Groups by class, in the order in which the network produces them."""
    found = []
    for groups in group_classes(graph.structure.groups).values():
        one, names = groups[0], frozenset(group.name for group in groups)
        size = " x ".join(map(str, (*one.batch, one.size))) + ("" if one.exact else " ~")
        weights = len(groups) * savings(graph.structure, one)[0]
        row = Row(pattern([g.name for g in groups]), size, one.kind, weights, names)
        found.append((_place(one), len(found), row))
    return [row for *_, row in sorted(found, key=lambda entry: entry[:2])]


def _place(group: Group) -> int:
    """Where the network first produces the group."""
    places = [m.position for m in group.members if m.role == "producer" and m.position >= 0]
    return min(places, default=0)


def _follow(graph: DependencyGraph, rows: Sequence[Row]) -> set[tuple[int, int]]:
    """Pairs of rows of which a kernel reads the first and writes the second."""
    row = {name: i for i, r in enumerate(rows) for name in r.groups}
    ends: dict[str, dict[str, set[int]]] = {}
    for group in graph.structure.groups:
        for member in group.members:
            if group.name in row and member.role in ("producer", "consumer"):
                roles = ends.setdefault(member.path, {"producer": set(), "consumer": set()})
                roles[member.role].add(row[group.name])
    return {(a, b) for e in ends.values() for a in e["consumer"] for b in e["producer"] if a != b}


def _draw_arcs(panel: Any, rows: Sequence[Row], pairs: Iterable[tuple[int, int]]) -> None:
    """Dots, names and arcs; long arcs reach further out, all of them a third of the panel."""
    from matplotlib.patches import Arc  # an extra, and slow to import

    furthest = np.sqrt(max(1, len(rows) - 1))
    for a, b in sorted(pairs):
        back = b < a
        reach = (2.0 if back else 1.7) * np.sqrt(abs(b - a)) / furthest
        where: dict[str, Any] = {"theta1": 90, "theta2": 270}
        look = BACK if back else ON
        panel.add_patch(Arc((0, (a + b) / 2), reach, abs(b - a), **where, **look))
    for i, row in enumerate(rows):
        panel.plot(0, i, "o", color=KINDS[row.kind], markersize=6, zorder=3)
        panel.text(0.06, i, _shortened(row.name), va="center", fontsize="small")
        panel.text(1.9, i, row.size, va="center", ha="right", fontsize="small")
    panel.text(1.9, -0.9, "neurons", va="center", ha="right", fontsize="small", color=DENSE)
    panel.set_xlim(-1, 1.95)
    panel.set_xticks([])
    panel.spines["bottom"].set_visible(False)


def _shortened(name: str) -> str:
    """The beginning and the end of a long name."""
    name = name.removeprefix("params/")
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[: half - 1]}…{name[-half:]}"


def _set_legend(figure: Any, rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D

    kinds = [kind for kind in KINDS if any(row.kind == kind for row in rows)]
    dot: dict[str, Any] = {"linestyle": "", "marker": "o"}
    handles = [Line2D([], [], color=KINDS[kind], label=kind, **dot) for kind in kinds]
    handles += [Line2D([], [], label="leads on", **ON), Line2D([], [], label="leads back", **BACK)]
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(handles)}
    figure.legend(handles=handles, frameon=False, fontsize="small", **place)
