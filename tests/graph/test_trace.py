"""What `trace` takes, what it calls a group, and what it says of the rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ifjax
from tests.graph.laws import array, arrays, hold, reasons, shuffled, zeroed


def mlp(p, x):
    return jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"]


MLP = arrays(w1=(3, 6), b1=(6,), w2=(6, 2))
X = array(4, 3)


def names(graph: ifjax.DependencyGraph) -> dict[str, int]:
    return {g.name: g.size for g in graph.groups}


# Inputs


def test_structs_are_enough_and_nothing_is_evaluated():
    p = {k: jax.ShapeDtypeStruct(v.shape, jnp.float32) for k, v in MLP.items()}
    x = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    assert ifjax.trace(mlp, p, x) == ifjax.trace(
        mlp, jax.tree.map(jnp.float32, MLP), jnp.float32(X)
    )


def test_python_values_and_keywords_are_static():
    def f(p, x, double, note, scale=1.0, act=jnp.tanh):
        assert note == "a string"
        h = act(x @ p["w1"])
        return (2 * h if double else h) @ p["w2"] * scale

    p = {k: MLP[k] for k in ("w1", "w2")}
    hold(f, p, X, True, "a string", groups={"w1": 6}, scale=3.0, act=jnp.sin)


def test_inputs_may_be_trees_with_keys_integers_and_nothing():
    def f(p, batch, key, none):
        assert none is None
        h = batch["x"] @ p["w1"] + jax.random.normal(key, ())
        return jnp.where(batch["flag"][:, None] > 0, h, -h) @ p["w2"]

    p = {k: MLP[k] for k in ("w1", "w2")}
    batch = {"x": X, "flag": np.array([1, 0, 2, 0])}
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        hold(f, p, batch, key, None, groups={"w1": 6})


def test_outputs_of_any_structure_are_pinned():
    def f(p, x):
        h = jnp.tanh(x @ p["w1"])
        return {"logits": h @ p["w2"], "features": (jnp.sin(x @ p["c"]), None)}

    graph = hold(f, {k: MLP[k] for k in ("w1", "w2")} | arrays(c=(3, 5)), X, groups={"w1": 6})
    assert reasons(graph)["c", 1] == "an axis of the function's outputs"


def test_params_without_arrays_and_leaves_that_are_none_are_errors():
    with pytest.raises(ValueError, match="params holds no arrays"):
        ifjax.trace(lambda p, x: x, {}, X)
    with pytest.raises(TypeError, match=r"params leaf rate: expected an array .* got float"):
        ifjax.trace(lambda p, x: x, {"rate": 0.5}, X)


# Leaves


def test_a_bare_array_is_a_tree_too():
    """Its path is empty; an output of the same shape is no mirror of it."""
    square = array(4, 4)
    assert ifjax.trace(lambda w, x: x @ w, square, square).groups == ()
    graph = hold(lambda w, x: jnp.tanh(x @ w) @ w.T, array(3, 5), X, groups={"params": 5})
    assert graph.structure.leaves[0].path == ""


def test_integer_scalar_empty_and_complex_leaves():
    def f(p, x):
        h = p["scale"] * jnp.tanh(x @ p["w1"] * p["mask"])
        tail = (p["z"].real @ p["b"]) + p["count"] + p["e"].sum()
        return h @ p["w2"] + tail

    p = {k: MLP[k] for k in ("w1", "w2")} | arrays(b=(5, 2), e=(0,))
    p |= {"scale": np.float64(0.5), "count": np.int32(3), "z": np.ones(5, np.complex128)}
    with jax.enable_x64(True):
        graph = ifjax.trace(f, p | arrays(mask=(6,)), X)
        assert {g.name: g.kind for g in graph.groups} == {"w1": "neuron", "z": "neuron"}
        p["mask"] = np.array([1, 0, 1, 1, 0, 1])  # goes along, and is not averaged
        graph = ifjax.trace(f, p, X)
        graph.verify(f, p, X)
    assert {g.name: g.kind for g in graph.groups} == {"w1": "integer", "z": "neuron"}


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_leaves_that_reach_no_output_are_reported():
    """They are cut with their group where they share one, and left alone otherwise."""

    def f(p, x):
        h = jnp.tanh(x @ p["w1"])
        _ = h * p["seen"]  # computed, then dropped
        return h @ p["w2"]

    p = {k: MLP[k] for k in ("w1", "w2")} | arrays(seen=(6,), unseen=(6,))
    graph = ifjax.trace(f, p, X)
    assert names(graph) == {"w1": 6}
    assert graph.unused == ("seen", "unseen")
    small = ifjax.take(p, graph, {"w1": [4, 1]})
    np.testing.assert_array_equal(small["seen"], p["seen"][[4, 1]].astype(np.float32))
    assert small["unseen"].shape == (6,)
    got = ifjax.shrink(f, graph.spec(keep=2))(small, X)
    np.testing.assert_allclose(got, f(small, X), rtol=1e-5)


def test_a_class_that_only_one_side_holds_is_free_and_cut_only_by_name():
    def f(p, x):
        return (x @ p["a"])[:, :2] @ p["b"]

    graph = ifjax.trace(f, arrays(a=(3, 6), b=(2, 2)), X)
    assert {g.name: g.kind for g in graph.groups} == {"a (0:2)": "neuron", "a (2:6)": "free"}
    assert graph.spec(0.5).structure.widths == {"a (0:2)": 1}
    assert graph.spec({"a (2:6)": 0.5}).structure.widths == {"a (2:6)": 2}


# Outputs that mirror leaves


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(2)(jnp.tanh(x))


def test_updated_statistics_follow_the_widths_in_train_mode():
    x = np.float32(array(8, 3))
    variables = Net().init(jax.random.key(0), x)

    def train(v, x):
        return Net().apply(v, x, train=True, mutable=["batch_stats"])

    graph = ifjax.trace(train, variables, x)
    assert names(graph) == {"params/Dense_0/kernel": 6}
    (group,) = graph.groups
    assert {m.path for m in group.members} >= {
        "batch_stats/BatchNorm_0/mean",
        "batch_stats/BatchNorm_0/var",
    }
    order = shuffled(6)
    logits, state = train(ifjax.take(variables, graph, {group.name: order}), x)
    want, full = train(variables, x)
    np.testing.assert_allclose(logits, want, atol=1e-5)
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(new, old[order], atol=1e-6)


def test_statistics_that_pass_through_unchanged_follow_and_fold():
    x = np.float32(array(8, 3))
    variables = Net().init(jax.random.key(0), x)
    graph = ifjax.trace(lambda v, x: Net().apply(v, x, mutable=["batch_stats"]), variables, x)
    assert names(graph) == {"params/Dense_0/kernel": 6}
    assert [n.kernel for n in graph.structure.norms] == ["params/Dense_0/kernel"]


def test_state_that_is_overwritten_follows_by_its_name():
    """The old value is read nowhere; the new one has its path, shape and dtype."""

    def f(v, x):
        h = x @ v["params"]["w1"]
        return jnp.tanh(h) @ v["params"]["w2"], {"state": {"last": h.mean(0)}}

    v = {"params": arrays(w1=(3, 6), w2=(6, 2)), "state": arrays(last=(6,))}
    graph = ifjax.trace(f, v, X)
    assert names(graph) == {"params/w1": 6}
    out, state = ifjax.shrink(f, graph.spec(0.5))(ifjax.take(v, graph, {"params/w1": [0, 1, 2]}), X)
    assert out.shape == (4, 2)
    assert state["state"]["last"].shape == (3,)


def test_an_output_that_only_looks_like_a_leaf_is_pinned():
    """Same path, shape and dtype as a kernel, but its axes are others: an output like any other."""
    square = array(4, 4)
    f = lambda p, x: {"w": x @ p["w"]}  # noqa: E731
    assert ifjax.trace(f, {"w": square}, square).groups == ()
    # positions in tuples and lists name nothing
    pair = lambda p, x: (x @ p[0], jnp.tanh(x @ p[1]) @ p[1].T)  # noqa: E731
    graph = ifjax.trace(pair, [square, array(4, 4, seed=1)], square)
    assert names(graph) == {"1": 4}


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_gradients_as_outputs_follow_the_widths():
    def gradient(p, x):
        return jax.grad(lambda p: (mlp(p, x) ** 2).mean())(p)

    p, x = jax.tree.map(jnp.float32, MLP), jnp.float32(X)
    graph = ifjax.trace(gradient, p, x) & ifjax.trace(mlp, p, x)
    assert names(graph) == {"w1": 6}
    small = ifjax.take(p, graph, {"w1": [5, 0]})
    got = ifjax.shrink(gradient, graph.spec(keep=2))(small, x)
    want = gradient(small, x)
    for k in want:
        np.testing.assert_allclose(got[k], want[k], atol=1e-6)


# Two functions of one tree


def test_the_intersection_is_safe_for_both():
    """One function ties two widths, the other one splits a third and pins a fourth."""

    def one(p, x):
        return (jnp.tanh(x @ p["a"]) + jnp.sin(x @ p["c"])) @ p["b"] + (x @ p["d"]) @ p["e"]

    def two(p, x):
        h = x @ p["d"]
        return jnp.tanh(x @ p["a"]) @ p["b"] + (h[:, :2] * h[:, 2:]) @ p["e"][:2]

    def three(p, x):
        return x @ p["a"]

    p = arrays(a=(3, 6), c=(3, 6), b=(6, 2), d=(3, 4), e=(4, 2))
    g1, g2, g3 = (ifjax.trace(f, p, X) for f in (one, two, three))
    assert names(g1) == {"a": 6, "d": 4}
    assert names(g2) == {"a": 6, "d (0:2)": 2, "e (2:4)": 2}
    both = g1 & g2
    assert names(both) == {"a": 6, "d (0:2)": 2}
    assert {m.path for m in both.structure.group["a"].members} == {"a", "b", "c"}
    assert names(g2 & g1) == names(both)
    assert names(g1 & g3) == {"d": 4}
    assert reasons(g1 & g3)["b", 0] == "an axis of the function's outputs"
    assert both.unused == ()
    spec = both.spec(0.5)
    selection = {n: np.arange(w) for n, w in spec.structure.widths.items()}
    small = ifjax.take(p, both, selection)
    for f in (one, two):
        want = f(zeroed(p, both, selection), X)
        np.testing.assert_allclose(ifjax.shrink(f, spec)(small, X), want, atol=1e-5)


def test_graphs_of_different_trees_are_an_error():
    graph = ifjax.trace(mlp, MLP, X)
    other = ifjax.trace(mlp, arrays(w1=(3, 5), b1=(5,), w2=(5, 2)), X)
    with pytest.raises(ValueError, match=r"at b1 expected shape \(6,\), got \(5,\)"):
        graph & other
    fewer = ifjax.trace(lambda p, x: x @ p["w1"], {"w1": MLP["w1"]}, X)
    with pytest.raises(ValueError, match="the second one lacks leaves"):
        graph & fewer


# Names
