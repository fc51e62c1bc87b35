"""A spec as a readable table, and what cutting a group saves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ifjax.spec.method import Method
from ifjax.structure import axis as ex
from ifjax.structure.structure import Group, Structure

MOST_LINES = 24


def spec_table(structure: Structure, method: Method) -> str:
    """What becomes of every cut group, what it saves alone, and the totals of all."""
    rows = [("group", "neurons", "", "weights saved", "FLOPs saved")]
    for group in structure.groups:
        if group.kept != group.size:
            weights, flops = savings(structure, group, group.kept)
            neurons = f"{group.size} -> {group.kept}"
            how = method.of(group.kind).method
            rows.append((group.name, neurons, how, f"{weights:,}", f"{flops:,}"))
    totals = {
        "neurons": (structure.neurons({}), structure.neurons()),
        "weights": (structure.weights({}), structure.weights()),
        "FLOPs": (structure.flops({}), structure.flops()),
    }
    shares = (f"{what} {a:,} -> {b:,} ({_fewer(a, b)})" for what, (a, b) in totals.items())
    return "\n".join([f"FusionSpec ({method.method}): {', '.join(shares)}", *align(rows)])


def _fewer(before: int, after: int) -> str:
    return f"{1 - after / before:.1%} fewer" if before else "none"


def shortened(text: str) -> str:
    """The first lines of a table, for notebooks; ``print`` shows all of it.

    Example:
      >>> shortened("one line")
      'one line'
    """
    lines = text.splitlines()
    more = len(lines) - MOST_LINES
    if more <= 0:
        return text
    return "\n".join([*lines[:MOST_LINES], f"... and {more} more lines: print(...) shows them"])


def savings(structure: Structure, group: Group, kept: int = 0) -> tuple[int, int]:
    """Weights and FLOPs that cutting this group alone to ``kept`` neurons removes."""
    widths = {group.name: kept}
    paths = {m.path for m in group.members if m.role not in ("mean", "variance")}
    weights = sum(
        math.prod(structure.shape(p, {})) - math.prod(structure.shape(p, widths)) for p in paths
    )
    flops = 0
    for product in structure.products:
        if any(group.name in ex.atoms(e) for e in product):
            sizes = [(ex.size(e), ex.size(e, widths)) for e in product]
            flops += 2 * (math.prod(a for a, _ in sizes) - math.prod(b for _, b in sizes))
    return weights, flops


def align(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *rest = zip(row, columns, strict=True)
        yield "  " + "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip()
