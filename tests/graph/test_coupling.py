"""What a graph holds besides words, enough to make it again; and its table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import ifjax
from ifjax.graph import coupling
from ifjax.graph.coupling import Coupling, PinnedAxis
from ifjax.spec.table import savings
from tests.graph.laws import array, arrays

X = array(4, 3)


def network(p, x):
    h = jnp.tanh(x @ p["a"] + p["bias"])
    return (jnp.tanh(h @ p["m"]) @ p["b"]) * jnp.linspace(1, 2, 2)


P = arrays(a=(3, 8), bias=(8,), m=(8, 5), b=(5, 2), unused=(7,))
GRAPH = ifjax.trace(network, P, X)


def test_a_graph_lists_its_groups_what_is_pinned_and_what_is_unused():
    lines = str(GRAPH).splitlines()
    weights = 24 + 8 + 40 + 10 + 7
    assert (
        lines[0] == f"DependencyGraph: 2 groups, {weights} weights, {2 * 4 * (24 + 40 + 10)} FLOPs"
    )
    assert lines[1].split() == ["group", "size", "kind", "members", "weights", "FLOPs"]
    row = ["a", "8", "neuron", "3", "in", "3", "leaves", "72", "512"]
    assert lines[2].split() == row
    assert lines[3].split() == f"m 5 neuron 2 in 2 leaves 50 {2 * 4 * 50}".split()
    assert "pinned: 2 axes" in lines
    assert "  a[0]: an axis of the function's inputs" in lines
    assert any(line.startswith("  b[1]: ") for line in lines)
    assert lines[-1] == "leaves that reach no output: unused"
    assert len({len(line) for line in lines[1:4]}) == 1  # columns are aligned


def test_many_pinned_axes_are_summed_up(monkeypatch):
    monkeypatch.setattr(coupling, "MOST_PINNED", 1)

    def f(p, x):
        return sum(x @ p[k] for k in "abcde") @ jnp.cumsum(p["w"], 0)

    text = str(ifjax.trace(f, arrays(**dict.fromkeys("abcde", (3, 4)), w=(4, 2)), X))
    assert "a[0], b[0], c[0] and 2 more: an axis of the function's inputs" in text
    assert "more reasons, see graph.pinned" in text


def test_the_cost_of_a_group_is_what_cutting_it_saves():
    for group in GRAPH.groups:
        for kept in (1, 3, 5):
            spec = GRAPH.spec(keep={group.name: kept})
            (w0, w1), (f0, f1) = spec.weights(), spec.flops()
            assert savings(GRAPH.structure, group, kept) == (w0 - w1, f0 - f1)


def test_a_spec_lists_the_groups_that_it_cuts():
    spec = GRAPH.spec(0.5, include="a", method="prune")
    lines = str(spec).splitlines()
    start = "FusionSpec (prune): neurons 13 -> 9 (30.8% fewer), weights 89 -> 53 (40.4% fewer), "
    assert lines[0].startswith(start + "FLOPs 592 -> ")
    assert [line.split()[0] for line in lines[1:]] == ["group", "a"]
    assert lines[2].split() == ["a", "8", "->", "4", "prune", "36", "256"]
    assert "(0.0% fewer)" in str(GRAPH.spec(0.0))


def test_a_spec_says_what_is_done_to_every_group():
    """Heads are pruned where neurons are fused."""

    def f(p, x):
        q, k, v = (jnp.einsum("bc,chd->bhd", x, p[n]) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
        h = jnp.tanh(jnp.einsum("hqk,khd,hdc->qc", weights, v, p["o"]))
        return h @ p["out"]

    shapes = dict.fromkeys("qkv", (3, 4, 6)) | {"o": (4, 6, 8), "out": (8, 2)}
    graph = ifjax.trace(f, arrays(**shapes), X)
    kinds = {g.name: g.kind for g in graph.groups}

    def said(spec):
        return {g: next(n for n in str(spec).splitlines() if f"  {g}  " in n) for g in kinds}

    for name, line in said(graph.spec(0.5, solver="exact")).items():
        assert ("fuse" if kinds[name] == "neuron" else "prune") in line
    assert sorted(kinds.values()) == ["head", "head_dim", "head_dim", "neuron"]
    assert all("fuse" in line for line in said(graph.spec(0.5, heads="fuse")).values())


def test_graphs_without_groups_or_contractions_print_too():
    graph = ifjax.trace(lambda p, x: x + p["c"], {"c": np.ones(3)}, X)
    assert str(graph).startswith("DependencyGraph: 0 groups, 3 weights, 0 FLOPs")
    assert "FLOPs 0 -> 0 (none)" in str(graph.spec(0.0))


def test_batches_inexact_groups_and_numbers_that_equal_a_width():
    def f(p, x):
        h = jnp.einsum("bc,ecf->bef", x, p["up"])
        h = h / jnp.linalg.norm(h, axis=-1, keepdims=True) * 6.0
        return jnp.einsum("bef,efc->bc", h, p["down"])

    graph = ifjax.trace(f, arrays(up=(2, 3, 6), down=(2, 6, 4)), X)
    lines = str(graph).splitlines()
    assert any(
        line.split()[:8] == ["up", "(axis", "2)", "2", "x", "6", "neuron", "~"] for line in lines
    )
    assert any(line.startswith("L x n:") for line in lines)
    assert any(line.startswith("~: cutting is not zeroing") for line in lines)
    assert "mul by 6 at" in lines[-1]
    assert lines[-1].endswith("the width of up (axis 2)")


PARAMS = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2)), "unused": jnp.ones(4)}


def test_a_graph_is_made_of_its_coupling():
    graph = ifjax.trace(lambda p, x: x @ p["a"] @ p["b"], PARAMS, jnp.ones((1, 3)))
    found = graph.coupling
    assert isinstance(found, Coupling)
    assert ifjax.DependencyGraph(*found).structure == graph.structure
    assert found.unused == ("unused",)
    assert {(p.path, p.axis, p.size) for p in found.pinned} >= {("a", 0, 3), ("b", 1, 2)}
    assert all(isinstance(p, PinnedAxis) and p.reason for p in found.pinned)
