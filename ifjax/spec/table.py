"""A spec as a readable table."""

from __future__ import annotations

from ifjax.spec.method import Method
from ifjax.structure.account import align, savings
from ifjax.structure.structure import (
    Structure,
)


def spec_table(structure: Structure, method: Method) -> str:
    """What becomes of every cut group, what it saves alone, and the totals of all."""
    rows = [("group", "neurons", "", "weights saved", "FLOPs saved")]
    for group in structure.groups:
        if group.kept != group.size:
            weights, flops = savings(structure, group, group.kept)
            neurons = f"{group.size} -> {group.kept}"
            how = method.of(group.kind).method
            rows.append((group.name, neurons, how, f"{weights:,}", f"{flops:,}"))
    (w0, w1), (f0, f1) = (
        (structure.weights({}), structure.weights()),
        (structure.flops({}), structure.flops()),
    )
    saved = [f"{1 - b / a:.1%} fewer" if a else "none" for a, b in ((w0, w1), (f0, f1))]
    return "\n".join(
        [
            f"FusionSpec ({method.method}): weights {w0:,} -> {w1:,} ({saved[0]}), "
            f"FLOPs {f0:,} -> {f1:,} ({saved[1]})",
            *align(rows),
        ]
    )
