"""What a graph offers: specs, verification, intersection, text and drawing."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import ifjax
from tests.graph.laws import array, arrays

P, X = arrays(a=(3, 6), b=(6, 2)), array(4, 3)


def network(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


def test_a_graph_makes_specs_verifies_prints_and_draws():
    graph = ifjax.trace(network, P, X)
    spec = graph.spec({"a": 0.5}, method="prune", importance="l2")
    assert spec.structure.widths == {"a": 3}
    assert (spec.method.method, spec.method.importance) == ("prune", "l2")
    assert graph.verify(network, P, X).ok
    assert str(graph).startswith("DependencyGraph: 1 groups")
    assert graph.to_mermaid().startswith("flowchart")
    assert [g.name for g in (graph & graph).groups] == ["a"]


def test_what_a_graph_does_not_know():
    graph = ifjax.trace(network, P, X)
    with pytest.raises(ValueError, match=r"unknown option 'sparsities' of spec; expected one of"):
        graph.spec(0.5, sparsities=3)
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = graph & 3


def test_protected_leaves_and_what_would_change_them():
    def residual(p, x):
        h = x @ p["in"]
        h = h + jnp.tanh(h @ p["up"]) @ p["down"]
        return h @ p["out"]

    p = arrays(up=(5, 7), down=(7, 5), out=(5, 2), **{"in": (3, 5)})
    graph = ifjax.trace(residual, p, X)
    found = graph.couplings("do*")
    assert {name: [(m.axis, m.role) for m in at] for name, at in found.items()} == {
        "in": [(1, "producer")],
        "up": [(0, "consumer")],
    }
    assert graph.spec(0.5, protect="out").structure.widths == {"up": 3}
    with pytest.raises(ValueError, match="removes no neuron"):
        graph.spec(0.5, protect=["up", "in"])
    with pytest.raises(ValueError, match=r"cutting group in changes protected leaves: out\[0\]"):
        graph.spec({"in": 0.5}, protect="out")
    with pytest.raises(ValueError, match=r"pattern 'heads' matches none of the leaves, such as"):
        graph.spec(0.5, protect="heads")
