"""The table of a spec, and what cutting a group saves, against sums over leaves."""

import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.spec.table import MOST_LINES, align, savings, shortened

PARAMS = {"w1": jnp.ones((4, 8)), "b1": jnp.ones(8), "w2": jnp.ones((8, 2))}


def network(p, x):
    return (x @ p["w1"] + p["b1"]) @ p["w2"]


def test_neurons_weights_and_operations_before_and_after():
    text = str(ifjax.trace(network, PARAMS, jnp.ones((3, 4))).spec(keep=6, method="prune"))
    head, columns, row = text.splitlines()
    weights = [n * (4 + 1 + 2) for n in (8, 6)]
    flops = [2 * 3 * n * (4 + 2) for n in (8, 6)]
    assert head.startswith("FusionSpec (prune): neurons 8 -> 6 (25.0% fewer)")
    assert f"weights {weights[0]} -> {weights[1]} (25.0% fewer)" in head
    assert f"FLOPs {flops[0]} -> {flops[1]} (25.0% fewer)" in head
    assert columns.split() == ["group", "neurons", "weights", "saved", "FLOPs", "saved"]
    saved = [str(a - b) for a, b in (weights, flops)]
    assert row.split() == ["w1", "8", "->", "6", "prune", *saved]
    assert len({len(line) for line in (columns, row)}) == 1


def test_long_tables_are_shortened_for_notebooks():
    lines = [f"line {i}" for i in range(MOST_LINES + 3)]
    assert shortened("\n".join(lines[:MOST_LINES])) == "\n".join(lines[:MOST_LINES])
    *kept, last = shortened("\n".join(lines)).splitlines()
    assert kept == lines[:MOST_LINES]
    assert last.startswith("... and 3 more lines")
    assert np.char.count(last, "print") == 1


SCALED = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 6)), "scale": jnp.ones(6), "c": jnp.ones((6, 2))}


def scaled(p, x):
    return (x @ p["a"] @ p["b"] * p["scale"]) @ p["c"]


@pytest.mark.parametrize(("name", "kept"), [("a", 0), ("a", 5), ("b", 4)])
def test_a_group_alone_saves_its_rows_and_columns(name, kept):
    structure = ifjax.trace(scaled, SCALED, jnp.ones((5, 3))).structure
    group = structure.group[name]
    gone = group.size - kept
    beside = {"a": 3 + 6, "b": 8 + 1 + 2}[name]
    products = {"a": 3 + 6, "b": 8 + 2}[name]
    assert savings(structure, group, kept) == (gone * beside, 2 * 5 * gone * products)


def test_lines_of_a_table():
    assert list(align([("a", "10"), ("long", "3"), ("b", "")])) == [
        "  a     10",
        "  long   3",
        "  b",
    ]
