"""What cutting one group saves, against counting leaves."""

import jax.numpy as jnp
import pytest

import ifjax
from ifjax.structure.account import align, savings

PARAMS = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 6)), "scale": jnp.ones(6), "c": jnp.ones((6, 2))}


def network(p, x):
    return (x @ p["a"] @ p["b"] * p["scale"]) @ p["c"]


@pytest.mark.parametrize(("name", "kept"), [("a", 0), ("a", 5), ("b", 4)])
def test_a_group_alone_saves_its_rows_and_columns(name, kept):
    structure = ifjax.trace(network, PARAMS, jnp.ones((5, 3))).structure
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
