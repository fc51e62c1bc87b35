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
    totals = {
        "neurons": (structure.neurons({}), structure.neurons()),
        "weights": (structure.weights({}), structure.weights()),
        "FLOPs": (structure.flops({}), structure.flops()),
    }
    shares = (f"{what} {a:,} -> {b:,} ({_fewer(a, b)})" for what, (a, b) in totals.items())
    return "\n".join([f"FusionSpec ({method.method}): {', '.join(shares)}", *align(rows)])


def _fewer(before: int, after: int) -> str:
    return f"{1 - after / before:.1%} fewer" if before else "none"


MOST_LINES = 24


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
