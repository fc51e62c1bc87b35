"""What an analysis finds: the structure, what of it is pinned, what is not used; as a table."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from ifjax.spec.table import align, savings
from ifjax.structure.structure import Structure

MOST_PINNED = 12


@dataclasses.dataclass(frozen=True)
class PinnedAxis:
    """An axis of a leaf that cannot be cut, or only in part.

    Attributes:
      path: path of the leaf.
      axis: the axis.
      size: its size.
      reason: what pins it, with the source line.
    """

    path: str
    axis: int
    size: int
    reason: str


class Coupling(NamedTuple):
    """What hangs together in a function.

    Attributes:
      structure: leaves, groups, batch norms; every group at full width.
      pinned: axes that cannot be cut, and why.
      unused: paths of leaves that reach no output.
    """

    structure: Structure
    pinned: tuple[PinnedAxis, ...]
    unused: tuple[str, ...]


def graph_table(
    graph: Coupling, literals: tuple[str, ...] = (), hints: tuple[str, ...] = ()
) -> str:
    """Groups with size, members, weights and FLOPs; then what is pinned, by reason."""
    structure = graph.structure
    rows: list[tuple[str, ...]] = [("group", "size", "kind", "members", "weights", "FLOPs")]
    for group in structure.groups:
        weights, flops = savings(structure, group)
        members = f"{len(group.members)} in {len({m.path for m in group.members})} leaves"
        size = " x ".join(map(str, (*group.batch, group.size)))
        kind = group.kind if group.exact else f"{group.kind} ~"
        row = (group.name, size, kind, members, f"{weights:,}", f"{flops:,}")
        rows.append(tuple(map(str, row)))
    lines = [
        f"DependencyGraph: {len(structure.groups)} groups, {structure.weights({}):,} weights, "
        f"{structure.flops({}):,} FLOPs",
        *align(rows),
    ]
    if any(group.batch for group in structure.groups):
        lines.append(
            "L x n: every one of L (layers, experts, heads, slices) has n neurons of its own"
        )
    if not all(group.exact for group in structure.groups):
        lines.append("~: cutting is not zeroing, for a norm, a softmax or a mean runs over them")
    if graph.pinned:
        lines.append(f"pinned: {len(graph.pinned)} axes")
        by_reason: dict[str, list[str]] = {}
        for p in graph.pinned:
            by_reason.setdefault(p.reason, []).append(f"{p.path}[{p.axis}]")
        for reason, places in list(by_reason.items())[:MOST_PINNED]:
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            lines.append(f"  {', '.join(places[:3])}{more}: {reason}")
        if len(by_reason) > MOST_PINNED:
            lines.append(f"  and {len(by_reason) - MOST_PINNED} more reasons, see graph.pinned")
    if literals:
        lines.append("numbers that come from a width:")
        lines += [f"  {text}" for text in literals[:MOST_PINNED]]
        if len(literals) > MOST_PINNED:
            lines.append(f"  and {len(literals) - MOST_PINNED} more, see graph.literals")
    if graph.unused:
        lines.append(f"leaves that reach no output: {', '.join(graph.unused)}")
    return "\n".join([*lines, *hints])
