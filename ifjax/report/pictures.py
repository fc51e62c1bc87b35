"""Pictures of what compression did: accuracy, sensitivity of groups, divergence, transport maps."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from ifjax.report.canvas import line_style, new_figure, plain, require_matplotlib, save
from ifjax.report.results import Row, check_records, short_names


def plot_accuracy(rows: Sequence[Row], path: str | os.PathLike[str], title: str = "") -> None:
    """Draws accuracy over sparsity into a file.

    One colour and marker per method; solid with filled markers as compressed, dashed with open
    markers after fine-tuning. A row of sparsity 0 is drawn as a horizontal line.

    Args:
        rows: the networks.
        path: where to write; the suffix names the format (``.png``, ``.svg``, ``.pdf``).
        title: stands above the plot.

    Raises:
        ModuleNotFoundError: if matplotlib is missing, with the command that installs it.
        ValueError: if there is no row.

    Example:
        >>> import tempfile
        >>> dense = Row(0.0, "dense", 1000, 20000, 0.98)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_accuracy([dense, Row(0.5, "pruning", 400, 6000, 0.61)], f"{folder}/a.png")
    """
    require_matplotlib()
    if not rows:
        raise ValueError("expected at least one row, got none")
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    for row in rows:
        if row.sparsity == 0.0:
            axes.axhline(100 * row.accuracy, color="0.45", linestyle=":", label=row.method)
    cut = sorted((row for row in rows if row.sparsity > 0.0), key=lambda row: row.sparsity)
    for number, method in enumerate(dict.fromkeys(row.method for row in rows if row in cut)):
        style = line_style(number)
        of_method = [row for row in cut if row.method == method]
        sparsities = [100 * row.sparsity for row in of_method]
        axes.plot(sparsities, [100 * row.accuracy for row in of_method], label=method, **style)
        tuned = [row for row in of_method if row.fine_tuned is not None]
        if tuned:
            axes.plot(
                [100 * row.sparsity for row in tuned],
                [100 * row.fine_tuned for row in tuned if row.fine_tuned is not None],
                label=f"{method}, fine-tuned",
                **style | {"linestyle": "--", "markerfacecolor": "white"},
            )
    axes.set_xlabel("sparsity: neurons removed from every group (%)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_ylim(0, 102)
    axes.set_xticks(sorted({100 * row.sparsity for row in rows}))
    plain(axes)
    axes.set_title(title, fontsize="medium", loc="left")
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    save(figure, path)


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
    figure = new_figure(min(16.0, 5.2 + 0.4 * len(layers)), 4.2)
    panels = figure.subplots(1, 2, sharex=True)
    for number, method in enumerate(dict.fromkeys(r["method"] for r in results)):
        own = sorted((r for r in results if r["method"] == method), key=lambda r: place[r["layer"]])
        places = [place[r["layer"]] for r in own]
        for panel, field in zip(panels, ("distance", "cosine"), strict=True):
            style = line_style(number) | {"markersize": 5.0}
            panel.plot(places, [r[field] for r in own], label=method, **style)
    for panel in panels:
        panel.set_xticks(range(len(layers)), list(layers.values()), rotation=90, fontsize="small")
        panel.set_ylim(bottom=min(0.0, *(y for line in panel.lines for y in line.get_ydata())))
        plain(panel)
    panels[0].set_ylabel("relative distance to the dense output")
    panels[1].set_ylabel("cosine with the dense output")
    panels[0].legend(frameon=False, fontsize="small", loc="upper left")
    figure.supxlabel("layer, from the input to the output", fontsize="medium")
    figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
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
    axes.plot(np.arange(m), place[targets], ".", color="#D55E00", markersize=min(5.0, 160 / n))
    axes.locator_params(integer=True)
    axes.set_xlabel(f"{m} targets")
    axes.set_ylabel(f"{n} neurons, sorted by target")
    figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
    figure.colorbar(image, ax=axes, label="share of the neuron's mass")
    save(figure, path)
