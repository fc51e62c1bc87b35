"""``graph1 & graph2``: what is safe for two functions of one parameter tree."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)


def norm(h, n):
    return (h - n["mean"]) / jnp.sqrt(n["var"] + 1e-5) * n["scale"] + n["shift"]


def params():
    rng = np.random.default_rng(0)

    def vectors():
        names = ("mean", "scale", "shift")
        return {k: rng.normal(size=6) for k in names} | {"var": rng.uniform(0.5, 2, 6)}

    tree = {"w": rng.normal(size=(4, 6)), "o": rng.normal(size=(6, 3)), "a": vectors()}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree | {"b": vectors()})


def with_a(p, x):
    return jax.nn.relu(norm(x @ p["w"], p["a"])) @ p["o"]


def with_b(p, x):
    return jax.nn.relu(norm(x @ p["w"], p["b"])) @ p["o"]


def without(p, x):
    return jax.nn.relu(x @ p["w"]) @ p["o"]


def train(p, x):
    h = x @ p["w"]
    batch = {**p["a"], "mean": h.mean(0), "var": h.var(0)}
    updated = {k: 0.9 * p["a"][k] + 0.1 * batch[k] for k in ("mean", "var")}
    return jax.nn.relu(norm(h, batch)) @ p["o"], {"a": updated}


@pytest.mark.parametrize(("other", "count"), [(with_a, 1), (train, 1), (with_b, 0), (without, 0)])
def test_a_norm_is_folded_only_where_both_functions_allow_it(other, count):
    p = params()
    graphs = [ifjax.trace(f, p, X) for f in (with_a, other)]
    assert len(graphs[0].structure.norms) == 1
    assert len((graphs[0] & graphs[1]).structure.norms) == count
    assert len((graphs[1] & graphs[0]).structure.norms) == count


@pytest.mark.parametrize("other", [with_b, without])
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_duplicates_merge_without_change_in_both_functions(other):
    """Three neurons and their copies: the preserving merge changes neither function."""
    half = params()

    def twice(path, x):
        axis = 0 if path[0].key != "w" else 1
        first = jnp.take(x, jnp.arange(3), axis)
        return jnp.concatenate([first, first], axis)

    p = jax.tree_util.tree_map_with_path(twice, half)
    graph = ifjax.trace(with_a, p, X) & ifjax.trace(other, p, X)
    scores = {"w": jnp.asarray([6.0, 5, 4, 3, 2, 1])}
    spec = graph.spec(0.5, merge="preserving", solver="nearest")
    small = ifjax.fuse_params(p, spec, scores=scores)
    for f in (with_a, other):
        np.testing.assert_allclose(ifjax.shrink(f, spec)(small, X), f(p, X), atol=1e-5)


def test_what_one_function_pins_or_ties_stays_so():
    def tied(p, x):
        return jax.nn.relu(x @ p["w"] + p["c"]) @ p["o"]

    def sorted_(p, x):
        return jnp.sort(x @ p["w"]) @ p["o"] + p["c"].sum()

    p = {"w": jnp.ones((4, 6)), "c": jnp.ones(6), "o": jnp.ones((6, 3))}
    a, b = ifjax.trace(tied, p, X), ifjax.trace(sorted_, p, X)
    assert [g.name for g in (a & a).groups] == ["w"]
    assert (a & a).groups == a.groups
    both = a & b
    assert both.groups == ()
    assert any("sort" in pin.reason for pin in both.pinned)


def test_graphs_of_other_trees_and_other_things_are_refused():
    p = params()
    graph = ifjax.trace(with_a, p, X)
    fewer = ifjax.trace(without, {"w": p["w"], "o": p["o"]}, X)
    with pytest.raises(ValueError, match="different parameter trees"):
        graph & fewer
    with pytest.raises(TypeError):
        graph & 3


def test_numbers_are_warned_of_where_the_other_function_splits_their_group():
    def scaled(p, x):
        h = x @ p["up"]
        return (h * math.sqrt(h.shape[-1])) @ p["down"]

    def split(p, x):
        h = x @ p["up"]
        return jnp.tanh(h[:, :3]) @ p["down"][:3] + h[:, 3:] @ p["down"][3:]

    p, x = {"up": jnp.ones((4, 12)), "down": jnp.ones((12, 2))}, jnp.ones((2, 4))
    both = ifjax.trace(scaled, p, x) & ifjax.trace(split, p, x)
    assert {g.name for g in both.groups} == {"up (0:3)", "up (3:12)"}
    assert {name for n in both.numbers for name in n.groups} <= {g.name for g in both.groups}
    with pytest.warns(UserWarning, match="numbers that come from widths"):
        both.spec(0.5)
