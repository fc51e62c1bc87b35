"""Networks of a comparison, as a table for the terminal and as JSON for programs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any


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
        seconds: it took to get there, training included; None if that was not measured.
        speedup: how many times longer the way took that it is compared with; None without one.
    """

    sparsity: float
    method: str
    weights: int
    flops: int
    accuracy: float
    fine_tuned: float | None = None
    checkpoint: str | None = None
    seconds: float | None = None
    speedup: float | None = None


def table(rows: Sequence[Row]) -> str:
    """Align sparsity, method, weights, FLOPs, accuracy before and after fine-tuning.

    Weights and FLOPs are followed by what that is of the first row's. Seconds and speed-up are
    shown where any row has them.

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
    head += ("seconds", "speed-up")
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
            "-" if row.seconds is None else f"{row.seconds:.1f}",
            "-" if row.speedup is None else f"{row.speedup:.2f} x",
        )
        for row in rows
    ]
    if all(row.seconds is None for row in rows):
        head, cells = head[:-2], [line[:-2] for line in cells]
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


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Text to the left (the method), numbers to the right."""
    return "  ".join(
        cell.ljust(width) if column == 1 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
