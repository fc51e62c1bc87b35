"""Results of compression: a table for the terminal, JSON for programs, a plot for people."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

# Okabe and Ito's colours, which stay apart for colour-blind readers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "D", "^", "v", "P")


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of a comparison.

    Attributes:
        sparsity: the fraction of neurons removed from every group that was cut; 0 for the dense
            network.
        method: how it was compressed, in the words of the table and the legend.
        weights: how many numbers the network holds.
        flops: floating-point operations for one input.
        accuracy: fraction classified correctly as compressed, before any fine-tuning.
        fine_tuned: the same after fine-tuning; None without.
        checkpoint: where the network was saved; None if it was not.
    """

    sparsity: float
    method: str
    weights: int
    flops: int
    accuracy: float
    fine_tuned: float | None = None
    checkpoint: str | None = None


def table(rows: Sequence[Row]) -> str:
    """Align sparsity, method, weights, FLOPs, accuracy before and after fine-tuning.

    Weights and FLOPs are followed by what that is of the first row's.

    Args:
        rows: the networks, the dense one first.

    Returns:
        Lines joined by newlines, none at the end.

    Raises:
        ValueError: if there is no row.

    Example:
        >>> dense = Row(0.0, "dense", 1000, 20000, 0.98)
        >>> print(table([dense, Row(0.5, "pruning", 400, 6000, 0.61, 0.95)]))
        sparsity  method   weights            FLOPs           accuracy  fine-tuned
        --------  -------  -------  -------  ------  -------  --------  ----------
             0 %  dense      1,000  100.0 %  20,000  100.0 %   98.00 %           -
            50 %  pruning      400   40.0 %   6,000   30.0 %   61.00 %     95.00 %
    """
    if not rows:
        raise ValueError("expected at least one row, got none")
    dense = rows[0]
    head = ("sparsity", "method", "weights", "", "FLOPs", "", "accuracy", "fine-tuned")
    cells = [
        (
            f"{100 * row.sparsity:g} %",
            row.method,
            f"{row.weights:,}",
            f"{100 * row.weights / dense.weights:.1f} %",
            f"{row.flops:,}",
            f"{100 * row.flops / dense.flops:.1f} %",
            f"{100 * row.accuracy:.2f} %",
            "-" if row.fine_tuned is None else f"{100 * row.fine_tuned:.2f} %",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [head, tuple("-" * width for width in widths), *cells]
    return "\n".join(_align(line, widths) for line in lines)


def to_json(rows: Sequence[Row], context: Mapping[str, Any] | None = None) -> str:
    """Give the rows as JSON, after what they were made with.

    Args:
        rows: the networks.
        context: more entries of the top level, such as configuration, seed, versions, machine and
            command; values that JSON can hold.

    Returns:
        An object with the entries of ``context`` and ``"rows"``: a list of objects with the fields
        of :class:`Row`.

    Raises:
        ValueError: if a number is NaN or infinite, or if ``context`` has an entry ``"rows"``.

    Example:
        >>> text = to_json([Row(0.0, "dense", 10, 20, 0.5)], {"seed": 0})
        >>> json.loads(text)["rows"][0]["accuracy"]
        0.5
    """
    context = dict(context or {})
    if "rows" in context:
        raise ValueError('context must not have an entry "rows": the rows stand there')
    content = {**context, "rows": [dataclasses.asdict(row) for row in rows]}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def provenance(command: str) -> dict[str, Any]:
    """Say what results were made with: the command, versions and the machine.

    Args:
        command: the command line that makes them again.

    Returns:
        The entries ``command``, ``versions`` (of Python and the packages that matter) and
        ``machine`` (platform, processor cores and the devices that JAX uses).

    Example:
        >>> sorted(provenance("python train.py"))
        ['command', 'machine', 'versions']
    """
    versions = {"python": platform.python_version()}
    for package in ("ifjax", "jax", "jaxlib", "flax", "optax", "ott-jax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "command": command,
        "versions": versions,
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
        },
    }


def plot_accuracy(rows: Sequence[Row], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw accuracy over sparsity into a file.

    One colour per method; solid with filled markers as compressed, dashed with open markers after
    fine-tuning. A row of sparsity 0 is drawn as a horizontal line.

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
    from matplotlib.figure import Figure  # an extra, and slow to import

    if not rows:
        raise ValueError("expected at least one row, got none")
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        if row.sparsity == 0.0:
            axes.axhline(100 * row.accuracy, color="0.45", linestyle=":", label=row.method)
    cut = sorted((row for row in rows if row.sparsity > 0.0), key=lambda row: row.sparsity)
    for number, method in enumerate(dict.fromkeys(row.method for row in rows if row in cut)):
        style = {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linewidth": 1.8,
            "markersize": 6.5,
            "clip_on": False,
            "zorder": 3,
        }
        of_method = [row for row in cut if row.method == method]
        sparsities = [100 * row.sparsity for row in of_method]
        axes.plot(sparsities, [100 * row.accuracy for row in of_method], label=method, **style)
        tuned = [row for row in of_method if row.fine_tuned is not None]
        if tuned:
            axes.plot(
                [100 * row.sparsity for row in tuned],
                [100 * row.fine_tuned for row in tuned if row.fine_tuned is not None],
                label=f"{method}, fine-tuned",
                linestyle="--",
                markerfacecolor="white",
                **style,
            )
    axes.set_xlabel("sparsity: neurons removed from every group (%)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_ylim(0, 102)
    axes.set_xticks(sorted({100 * row.sparsity for row in rows}))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize="medium", loc="left")
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    path = Path(path)
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:] or "png"))


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Text to the left (the method), numbers to the right."""
    return "  ".join(
        cell.ljust(width) if column == 1 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )


def require_matplotlib() -> None:
    """Raise if matplotlib is missing, without importing it: before hours of work, not after.

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


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: the file; one that exists is replaced.
        write: writes the content to the path it is given, a neighbour of ``path``.

    Raises:
        OSError: if the folder cannot be written to; what ``write`` raises is passed on. In both
            cases ``path`` is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(f"{folder}/a.txt", lambda file: file.write_text("content"))
        ...     os.listdir(folder)
        ['a.txt']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
