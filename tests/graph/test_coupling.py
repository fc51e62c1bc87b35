"""What a graph holds besides words: enough to make it again."""

import jax.numpy as jnp

import ifjax
from ifjax.graph.coupling import Coupling, PinnedAxis

PARAMS = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2)), "unused": jnp.ones(4)}


def test_a_graph_is_made_of_its_coupling():
    graph = ifjax.trace(lambda p, x: x @ p["a"] @ p["b"], PARAMS, jnp.ones((1, 3)))
    found = graph.coupling
    assert isinstance(found, Coupling)
    assert ifjax.DependencyGraph(*found).structure == graph.structure
    assert found.unused == ("unused",)
    assert {(p.path, p.axis, p.size) for p in found.pinned} >= {("a", 0, 3), ("b", 1, 2)}
    assert all(isinstance(p, PinnedAxis) and p.reason for p in found.pinned)
