"""Results of a comparison as values, as a table for the terminal, and as files for programs."""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax


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
        latency: milliseconds that one batch of test images takes; None if not measured. Rows that
            differ in it alone are equal.
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
    latency: float | None = dataclasses.field(default=None, compare=False)


def table(rows: Sequence[Row]) -> str:
    """Aligns sparsity, method, weights, FLOPs, accuracy before and after fine-tuning.

    Weights and FLOPs are followed by what that is of the first row's. Seconds and speed-up, and the
    latency in milliseconds, are shown where any row has them.

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
    head += ("ms", "seconds", "speed-up")
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
            "-" if row.latency is None else f"{row.latency:.3g}",
            "-" if row.seconds is None else f"{row.seconds:.1f}",
            "-" if row.speedup is None else f"{row.speedup:.2f} x",
        )
        for row in rows
    ]
    shown = [True] * len(head)
    shown[-3] = any(row.latency is not None for row in rows)
    shown[-2:] = [any(row.seconds is not None for row in rows)] * 2
    head, *cells = (tuple(itertools.compress(line, shown)) for line in (head, *cells))
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [head, tuple("-" * width for width in widths), *cells]
    return "\n".join(_align(line, widths) for line in lines)


def to_json(rows: Sequence[Row], context: Mapping[str, Any] | None = None) -> str:
    """The rows as JSON, after what they were made with.

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


def provenance(command: str) -> dict[str, Any]:
    """Says what results were made with: the command, versions and the machine.

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


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Writes a file so that it is there whole or not at all.

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


def check_records(records: Sequence[Mapping[str, Any]], fields: Mapping[str, type]) -> None:
    """Raises for records that lack a field, or hold another kind of value there.

    Args:
        records: what is to be drawn.
        fields: the fields of every record; ``float`` stands for a finite number.

    Raises:
        ValueError: naming the record, the field, what was expected and what came.

    Example:
        >>> check_records([{"layer": "a", "divergence": 0.1}], {"layer": str, "divergence": float})
    """
    if not records:
        raise ValueError("expected at least one record, got none")
    for number, record in enumerate(records):
        for field, kind in fields.items():
            value = record.get(field)
            number_is_good = (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and math.isfinite(value)
            )
            if not (number_is_good if kind is float else isinstance(value, kind)):
                wanted = "a finite number" if kind is float else f"a {kind.__name__}"
                raise ValueError(
                    f"expected {wanted} as {field!r} of record {number}, got {value!r}; "
                    f"a record has {', '.join(fields)}"
                )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Leaves out the keys that all paths begin and end with; at least one is left of each.

    A name that is alone stays whole.

    Args:
        names: paths, keys joined by slashes.

    Returns:
        The short form of every name.

    Example:
        >>> list(short_names(["params/a/conv/kernel", "params/b/conv/kernel"]).values())
        ['a', 'b']
    """
    paths = [name.split("/") for name in dict.fromkeys(names)]
    shortest = min(map(len, paths)) if len(paths) > 1 else 0
    first = 0
    while first < shortest - 1 and len({path[first] for path in paths}) == 1:
        first += 1
    last = 0
    while last < shortest - first - 1 and len({path[-1 - last] for path in paths}) == 1:
        last += 1
    return {"/".join(path): "/".join(path[first : len(path) - last]) for path in paths}
