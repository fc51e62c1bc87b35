"""How far a compressed network's activations have moved, layer by layer."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ifjax.report.canvas import line_style, new_figure, plain, require_matplotlib, save
from ifjax.report.records import check_records, short_names


def plot_divergence(
    results: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], title: str = ""
) -> None:
    """Draw the divergence of every layer, from the input to the output, into a file.

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
