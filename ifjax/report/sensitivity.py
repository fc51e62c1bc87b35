"""Accuracy over sparsity with one group cut at a time, a panel per group."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ifjax.report.canvas import line_style, new_figure, plain, require_matplotlib, save
from ifjax.report.records import check_records, short_names

COLUMNS = 5
MOST = 30


def plot_sensitivity(
    results: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], title: str = ""
) -> None:
    """Draw how much accuracy each group costs when it alone is cut, into a file.

    A panel per group in the order of the records, all with the same axes; a curve per method: the
    comparison that Theus et al., Towards Meta-Pruning via Optimal Transport, make
    (https://arxiv.org/abs/2402.07839).

    Args:
        results: records with ``"group"`` and ``"method"`` (text), ``"sparsity"`` (fraction of the
            group's neurons removed) and ``"accuracy"`` (fraction classified correctly). Those of
            sparsity 0 are the dense network, a horizontal line in every panel.
        path: where to write; the suffix names the format (``.png``, ``.svg``, ``.pdf``).
        title: stands above the panels.

    Raises:
        ModuleNotFoundError: if matplotlib is missing, with the command that installs it.
        ValueError: if there is no record of a group that is cut, one lacks a field, or there are
            more than 30 groups, which no page holds.

    Example:
        >>> import tempfile
        >>> one = {"group": "params/a/kernel", "method": "pruning", "sparsity": 0.5}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_sensitivity([one | {"accuracy": 0.8}], f"{folder}/sensitivity.png")
    """
    require_matplotlib()
    check_records(results, {"sparsity": float, "accuracy": float})
    cut = [r for r in results if r["sparsity"] > 0]
    check_records(cut, {"group": str, "method": str})
    groups = short_names([r["group"] for r in cut])
    methods = dict.fromkeys(r["method"] for r in cut)
    cut.sort(key=lambda r: r["sparsity"])
    if len(groups) > MOST:
        raise ValueError(f"expected at most {MOST} groups, got {len(groups)}; choose some of them")
    columns = min(COLUMNS, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = new_figure(max(4.8, 1.9 * columns), 0.9 + 1.7 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    dense = {r["accuracy"] for r in results if r["sparsity"] == 0}
    ticks = sorted({100 * r["sparsity"] for r in cut})
    for panel, group in zip(panels, groups, strict=False):
        for accuracy in dense:
            panel.axhline(100 * accuracy, color="0.45", linestyle=":", label="dense")
        for number, method in enumerate(methods):
            own = [r for r in cut if (r["group"], r["method"]) == (group, method)]
            sparsities = [100 * r["sparsity"] for r in own]
            style = line_style(number) | {"linewidth": 1.4, "markersize": 4.0}
            panel.plot(sparsities, [100 * r["accuracy"] for r in own], label=method, **style)
        panel.set_title(groups[group], fontsize="small", loc="left")
        panel.set_ylim(0, 102)
        panel.set_xticks(ticks[:: math.ceil(len(ticks) / 5)])
        panel.tick_params(labelsize="small")
        plain(panel)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(groups) - columns) : len(groups)]:
        panel.tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    legend = dict(zip(labels, handles, strict=True))
    figure.legend(
        legend.values(),
        legend.keys(),
        frameon=False,
        fontsize="small",
        loc="outside upper right",
        ncols=len(legend),
    )
    figure.supxlabel("sparsity of this group alone (%)", fontsize="medium")
    figure.supylabel("test accuracy (%)", fontsize="medium")
    figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
    save(figure, path)
