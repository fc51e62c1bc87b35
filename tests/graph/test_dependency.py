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
    assert spec.plan.widths == {"a": 3}
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
