"""Graphs and specs as readable tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ifjax.graph import expression as ex
from ifjax.spec import FusionSpec, Group, Plan

if TYPE_CHECKING:
    from ifjax.graph.trace import DependencyGraph

MOST_PINNED = 12


def graph_table(graph: DependencyGraph) -> str:
    """Groups with size, members, weights and FLOPs; then what is pinned, by reason."""
    plan = graph.plan
    rows: list[tuple[str, ...]] = [("group", "size", "kind", "members", "weights", "FLOPs")]
    for group in graph.groups:
        weights, flops = cost(plan, group)
        members = f"{len(group.members)} in {len({m.path for m in group.members})} leaves"
        size = " x ".join(map(str, (*group.batch, group.size)))
        kind = group.kind if group.exact else f"{group.kind} ~"
        row = (group.name, size, kind, members, f"{weights:,}", f"{flops:,}")
        rows.append(tuple(map(str, row)))
    lines = [
        f"DependencyGraph: {len(graph.groups)} groups, {plan.weights({}):,} weights, "
        f"{plan.flops({}):,} FLOPs",
        *_align(rows),
    ]
    if any(group.batch for group in graph.groups):
        lines.append("L x n: every one of L (layers, experts, heads) has n neurons of its own")
    if not all(group.exact for group in graph.groups):
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
    if graph.literals:
        lines.append("numbers that equal a width and stay as they are:")
        lines += [f"  {text}" for text in graph.literals[:MOST_PINNED]]
        if len(graph.literals) > MOST_PINNED:
            lines.append(f"  and {len(graph.literals) - MOST_PINNED} more, see graph.literals")
    if graph.unused:
        lines.append(f"leaves that reach no output: {', '.join(graph.unused)}")
    return "\n".join(lines)


def spec_table(spec: FusionSpec) -> str:
    """Channels, weights and FLOPs that every cut group saves alone, and the totals of all."""
    plan = spec.plan
    rows = [("group", "neurons", "weights saved", "FLOPs saved")]
    for group in plan.groups:
        if group.kept != group.size:
            weights, flops = cost(plan, group, group.kept)
            neurons = f"{group.size} -> {group.kept}"
            rows.append((group.name, neurons, f"{weights:,}", f"{flops:,}"))
    (w0, w1), (f0, f1) = spec.weights(), spec.flops()
    saved = [f"{1 - b / a:.1%} fewer" if a else "none" for a, b in ((w0, w1), (f0, f1))]
    return "\n".join(
        [
            f"FusionSpec ({spec.method.method}): weights {w0:,} -> {w1:,} ({saved[0]}), "
            f"FLOPs {f0:,} -> {f1:,} ({saved[1]})",
            *_align(rows),
        ]
    )


def cost(plan: Plan, group: Group, kept: int = 0) -> tuple[int, int]:
    """Weights and FLOPs that cutting this group alone to ``kept`` neurons removes."""
    widths = {group.name: kept}
    paths = {m.path for m in group.members if m.role not in ("mean", "variance")}
    weights = sum(math.prod(plan.shape(p, {})) - math.prod(plan.shape(p, widths)) for p in paths)
    flops = 0
    for product in plan.products:
        if any(group.name in ex.atoms(e) for e in product):
            sizes = [(ex.size(e), ex.size(e, widths)) for e in product]
            flops += 2 * (math.prod(a for a, _ in sizes) - math.prod(b for _, b in sizes))
    return weights, flops


def _align(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *rest = zip(row, columns, strict=True)
        yield "  " + "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip()
