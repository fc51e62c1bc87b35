"""Pictures of what compression did: accuracy, sensitivity of groups, divergence, transport maps."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from ifjax.report.canvas import (
    DENSE,
    PURPLE,
    SKY,
    VERMILLION,
    method_styles,
    new_figure,
    plain,
    require_matplotlib,
    save,
    set_legend,
    set_title,
)
from ifjax.report.results import Row, check_records, short_names


def plot_accuracy(rows: Sequence[Row], path: str | os.PathLike[str], title: str = "") -> None:
    """Draws accuracy over sparsity, over the weights that are left and over latency, into a file.

    One panel as compressed, and one after fine-tuning where any row has that; below them the same
    over weights, and over the measured latency, where the rows say so. A colour per method, the
    same in every panel. Rows of sparsity 0 are networks that nothing was cut from: a dotted line
    each; those named ``fold N`` (trained on a part of the data) crosses; those that were fine-tuned
    (fused from others) diamonds.

    Args:
        rows: the networks; shares of weights are those of the first one's.
        path: where to write; the suffix names the format (``.png``, ``.svg``, ``.pdf``).
        title: stands above the panels.

    Raises:
        ModuleNotFoundError: if matplotlib is missing, with the command that installs it.
        ValueError: if there is no row, or more methods than a picture can tell apart.

    Example:
        >>> import tempfile
        >>> dense = Row(0.0, "dense", 1000, 20000, 0.98)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_accuracy([dense, Row(0.5, "pruning", 400, 6000, 0.61)], f"{folder}/a.png")
    """
    require_matplotlib()
    if not rows:
        raise ValueError("expected at least one row, got none")
    cut = [row for row in rows if row.sparsity > 0.0]
    tuned = [row.fine_tuned is not None for row in rows]
    over = ["sparsity"]
    over += ["weights"] if cut and all(row.weights for row in rows) else []
    over += ["latency"] if cut and all(row.latency for row in (rows[0], *cut)) else []
    lines, columns = len(over), (2 if any(tuned) else 1)
    figure = new_figure(1.2 + 4.2 * columns, 1.2 + 3.0 * lines)
    panels = figure.subplots(lines, columns, sharey="col", squeeze=False)
    for column, name in enumerate(("as compressed", "fine-tuned")[:columns]):
        if columns > 1:
            panels[0, column].set_title(name, fontsize="medium")
        for line, axis in enumerate(over):
            _accuracies(panels[line, column], rows, axis, tuned=column == 1)
    set_title(figure, title)
    set_legend(figure)
    save(figure, path)


def _accuracies(panel: Any, rows: Sequence[Row], over: str, *, tuned: bool) -> None:
    """Every row's accuracy, or that after fine-tuning where it has one."""
    dense = rows[0]

    def point(row: Row) -> tuple[float, float | None]:
        accuracy = row.fine_tuned if tuned else row.accuracy
        if over == "sparsity":
            place = 100 * row.sparsity
        elif over == "weights":
            place = 100 * row.weights / dense.weights
        else:  # a network at the dense widths takes as long as the dense one
            place = (dense if row.sparsity == 0.0 else row).latency or 0.0
        return place, None if accuracy is None else 100 * accuracy

    for row in rows:
        if row.sparsity > 0.0:
            continue
        fold, fused = _FOLD.fullmatch(row.method), row.fine_tuned is not None
        if not fold and not fused:
            panel.axhline(100 * row.accuracy, color=DENSE, linestyle=":", label=row.method)
        elif not (fold and tuned):
            style = {"color": SKY, "marker": "x"} if fold else {"color": PURPLE, "marker": "D"}
            label = "each fold" if fold else row.method
            panel.plot(*point(row), linestyle="", label=label, clip_on=False, zorder=4, **style)
    cut = sorted((row for row in rows if row.sparsity > 0.0), key=lambda row: row.sparsity)
    for method, style in method_styles([row.method for row in rows if row in cut]).items():
        points = [point(row) for row in cut if row.method == method]
        points = [(x, y) for x, y in points if y is not None]
        if points:
            panel.plot(*zip(*points, strict=True), label=method, **style)
    # All of the range as compressed; what is fine-tuned lies close together, at the top of it.
    lowest = min((y for _, y in map(point, rows) if y is not None), default=0.0)
    panel.set_ylim(max(0.0, 1.2 * lowest - 20) if tuned else 0.0, 102 if not tuned else None)
    panel.set_ylabel("test accuracy (%)")
    panel.set_xlabel(_LABELS[over])
    if over == "weights":
        panel.set_xscale("log")
        panel.invert_xaxis()
    if over == "latency":  # no two are alike
        panel.set_xlim(1.05 * max(point(row)[0] for row in rows), 0)
    else:
        ticks = sorted({point(row)[0] for row in rows})
        panel.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        panel.minorticks_off()
    plain(panel)


_LABELS = {
    "sparsity": "sparsity: neurons removed from every group (%)",
    "weights": "weights left (%)",
    "latency": "latency of a batch (ms)",
}
_FOLD = re.compile(r"fold \d+")


COLUMNS = 5
MOST = 30


def plot_sensitivity(
    results: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], title: str = ""
) -> None:
    """Draws how much accuracy each group costs when it alone is cut, into a file.

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
    styles = method_styles([r["method"] for r in cut])
    cut.sort(key=lambda r: r["sparsity"])
    if len(groups) > MOST:
        raise ValueError(f"expected at most {MOST} groups, got {len(groups)}; choose some of them")
    columns = min(COLUMNS, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = new_figure(max(4.8, 1.9 * columns), 1.4 + 1.9 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    dense = {r["accuracy"] for r in results if r["sparsity"] == 0}
    ticks = sorted({100 * r["sparsity"] for r in cut})
    for panel, group in zip(panels, groups, strict=False):
        for accuracy in dense:
            panel.axhline(100 * accuracy, color=DENSE, linestyle=":", label="dense")
        for method, line in styles.items():
            own = [r for r in cut if (r["group"], r["method"]) == (group, method)]
            sparsities = [100 * r["sparsity"] for r in own]
            style = line | {"linewidth": 1.4, "markersize": 4.0}
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
        panel.set_xlabel("sparsity (%)", fontsize="small")
    figure.supylabel("test accuracy (%)", fontsize="medium")
    set_title(figure, title)
    set_legend(figure)
    save(figure, path)


def plot_divergence(
    results: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], title: str = ""
) -> None:
    """Draws the divergence of every layer, from the input to the output, into a file.

    Two panels: how far each output lies from the dense network's, and whether it points the same
    way. The first counts a wrong scale as well, which later layers may undo; the second does not.

    Args:
        results: records with ``"layer"`` and ``"method"`` (text), ``"distance"`` and ``"cosine"``,
            as :class:`ifjax.activations.divergence.Divergence` defines them; layers in the order
            in which they first occur.
        path: where to write; the suffix names the format (``.png``, ``.svg``, ``.pdf``).
        title: stands above the plot.

    Raises:
        ModuleNotFoundError: if matplotlib is missing, with the command that installs it.
        ValueError: if there is no record, or one lacks a field.

    Example:
        >>> import tempfile
        >>> one = {"layer": "a", "method": "pruning", "distance": 0.4, "cosine": 0.9}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_divergence([one], f"{folder}/divergence.png")
    """
    require_matplotlib()
    check_records(results, {"layer": str, "method": str, "distance": float, "cosine": float})
    layers = short_names([r["layer"] for r in results])
    place = {layer: number for number, layer in enumerate(layers)}
    figure = new_figure(min(16.0, 5.2 + 0.4 * len(layers)), 5.2)
    panels = figure.subplots(1, 2, sharex=True)
    for method, line in method_styles([r["method"] for r in results]).items():
        own = sorted((r for r in results if r["method"] == method), key=lambda r: place[r["layer"]])
        places = [place[r["layer"]] for r in own]
        for panel, field in zip(panels, ("distance", "cosine"), strict=True):
            style = line | {"markersize": 5.0}
            panel.plot(places, [r[field] for r in own], label=method, **style)
    for panel in panels:
        panel.set_xticks(range(len(layers)), list(layers.values()), rotation=90, fontsize="small")
        panel.set_ylim(bottom=min(0.0, *(y for line in panel.lines for y in line.get_ydata())))
        panel.set_xlabel("layer, from the input to the output")
        plain(panel)
    panels[0].set_ylabel("relative distance to the dense output")
    panels[1].set_ylabel("cosine with the dense output")
    set_title(figure, title)
    set_legend(figure)
    save(figure, path)


def plot_map(
    plan: Float[Array | np.ndarray, "n m"],
    targets: Int[Array | np.ndarray, " m"],
    path: str | os.PathLike[str],
    title: str = "",
) -> None:
    """Draws where each neuron's mass goes, into a file.

    Rows are the n neurons, sorted by the target that gets most of their mass and then by how much
    that is; columns are the m targets in the order of their index. Each row is divided by its sum,
    so that colours are shares of a neuron. A dot marks the neuron that is itself the target.

    Args:
        plan: the transport plan, as in :class:`ifjax.Transport`.
        targets: the neuron that each column stands for.
        path: where to write; the suffix names the format (``.png``, ``.svg``, ``.pdf``).
        title: stands above the map.

    Raises:
        ModuleNotFoundError: if matplotlib is missing, with the command that installs it.
        ValueError: if the plan is no matrix with as many columns as there are targets, or holds
            negative or infinite numbers or NaN.

    Example:
        >>> import tempfile
        >>> plan, targets = np.array([[0.4, 0.0], [0.1, 0.5]]), np.array([0, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_map(plan, targets, f"{folder}/map.png")
    """
    require_matplotlib()
    plan, targets = np.asarray(plan), np.asarray(targets)
    if plan.ndim != 2 or targets.shape != plan.shape[1:] or not plan.size:
        raise ValueError(
            f"expected a plan [n, m] and m targets, got shapes {plan.shape} and {targets.shape}; "
            "a group with batch axes has one plan per entry: choose one"
        )
    if not (np.isfinite(plan).all() and (plan >= 0).all()):
        raise ValueError("expected finite masses of at least 0 in the plan; did the solver fail?")
    mass = plan.sum(1, keepdims=True)
    shares = np.divide(plan, mass, out=np.zeros_like(plan), where=mass > 0)
    rows = np.lexsort((-shares.max(1), shares.argmax(1)))
    n, m = plan.shape
    figure = new_figure(4.8, 4.6)
    axes = figure.add_subplot()
    image = axes.imshow(
        shares[rows], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    place = np.argsort(rows)
    axes.plot(np.arange(m), place[targets], ".", color=VERMILLION, markersize=min(5.0, 160 / n))
    axes.locator_params(integer=True)
    axes.set_xlabel(f"{m} targets")
    axes.set_ylabel(f"{n} neurons, sorted by target")
    set_title(figure, title)
    figure.colorbar(image, ax=axes, label="share of the neuron's mass")
    save(figure, path)
