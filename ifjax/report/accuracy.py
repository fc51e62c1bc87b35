"""Accuracy over sparsity, a curve per method."""

import os
from collections.abc import Sequence

from ifjax.report.canvas import line_style, new_figure, plain, require_matplotlib, save
from ifjax.report.rows import Row


def plot_accuracy(rows: Sequence[Row], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw accuracy over sparsity into a file.

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
