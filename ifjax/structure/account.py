"""What cutting a group saves, and the lines of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ifjax.structure import axis as ex
from ifjax.structure.structure import (
    Group,
    Structure,
)


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
