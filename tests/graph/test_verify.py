from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.graph.verify import general_position

X = np.linspace(0.5, 2.0, 8, dtype=np.float32).reshape(2, 4)


def arrays(**shapes):
    return {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}


def mlp(p, x):
    return jax.nn.relu(x @ p["w"] + p["b"]) @ p["o"]


MLP = arrays(w=(4, 6), b=(6,), o=(6, 3))


def test_a_right_graph_stays_far_below_the_effect_of_noise():
    """Even where all parameters are zero, as in a freshly initialised branch."""
    result = ifjax.trace(mlp, MLP, X).verify(mlp, MLP, X)
    assert result.ok
    assert result.unverified == ()
    assert 0 <= result.changes["w"] < 1e-4


def test_structs_are_enough():
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), MLP)
    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    assert ifjax.trace(mlp, params, x).verify(mlp, params, x).ok


@pytest.mark.parametrize("lost", range(3))
def test_a_graph_that_lacks_a_member_is_refused(lost):
    graph = ifjax.trace(mlp, MLP, X)
    (group,) = graph.groups
    members = group.members[:lost] + group.members[lost + 1 :]
    wrong = dataclasses.replace(group, members=members)
    graph = dataclasses.replace(
        graph, structure=dataclasses.replace(graph.structure, groups=(wrong,))
    )
    with pytest.raises(ValueError, match=r"1 of 1 groups changes the output.*worst w, by"):
        graph.verify(mlp, MLP, X)
    assert not graph.verify(mlp, MLP, X, throw=False).ok


def test_a_graph_of_another_function_is_refused():
    def shifted(p, x):
        h = x @ p["w"] + p["b"]
        return jax.nn.relu(h + jnp.roll(h, 1, axis=-1)) @ p["o"]

    with pytest.raises(ValueError, match="changes the output"):
        ifjax.trace(mlp, MLP, X).verify(shifted, MLP, X)


def test_members_without_power_are_listed():
    """What is multiplied by zero does not show."""

    def f(p, x):
        return mlp(p, x) + 0 * jnp.sum((x @ p["w"]) * p["s"] @ p["o"])

    params = {**MLP, **arrays(s=(6,))}
    result = ifjax.trace(f, params, X).verify(f, params, X)
    assert result.ok
    assert result.unverified == ("w: s[0]",)


def test_positive_inputs_are_kept_and_an_infinite_function_is_told():
    def f(p, x):
        return jnp.tanh(jnp.log(x) @ p["w"]) @ p["o"]

    params = arrays(w=(4, 6), o=(6, 3))
    graph = ifjax.trace(f, params, X)
    assert graph.verify(f, params, X).ok
    with pytest.raises(ValueError, match="not finite at parameters in general position"):
        graph.verify(f, params, -X)


def test_random_keys_and_counters_pass_through():
    def f(p, x):
        return mlp(p, x) * (1 + p["count"])

    params = {**MLP, "count": jnp.asarray(3), "key": jax.random.key(0)}
    graph = ifjax.trace(f, params, X)
    assert graph.verify(f, params, X).ok
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert graph.verify(f, structs, X).ok


def test_parameters_of_another_function_are_refused():
    graph = ifjax.trace(mlp, MLP, X)
    with pytest.raises(ValueError, match=r"b: expected shape \(6,\), got no leaf"):
        graph.verify(mlp, {"w": MLP["w"], "o": MLP["o"]}, X)


def test_general_position_follows_the_roles():
    def f(p, x):
        h = (x @ p["w"] - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["scale"] + p["shift"]
        return jax.nn.relu(h) @ p["o"]

    params = arrays(w=(4, 50), mean=(50,), var=(50,), scale=(50,), shift=(50,), o=(50, 3))
    graph = ifjax.trace(f, params, X)
    found = general_position(graph.structure, params, np.random.default_rng(0))
    values = dict(zip(params, found, strict=True))
    assert all(v.dtype == np.float64 for v in values.values())
    assert values["var"].min() > 0
    assert values["scale"].mean() == pytest.approx(1, abs=0.3)
    assert values["w"].std() == pytest.approx(0.5, rel=0.3)  # 1 / sqrt(fan in)


@pytest.mark.parametrize("dummy", [0.0, 1.0])
def test_dummy_inputs_do_not_hide_a_member(dummy):
    """With zeros as input the first kernel would have no power."""
    x = jnp.full((2, 4), dummy)
    assert ifjax.trace(mlp, MLP, x).verify(mlp, MLP, x).unverified == ()


def test_a_function_that_runs_in_float32_only_is_verified_there():
    """The loop gives what it carries a dtype, which in float64 its results would not have."""

    def recurrent(p, x, wrong=False):
        def step(h, t):
            h = jnp.tanh(t @ p["x"] + h @ p["h"])
            return (h[:, ::-1] if wrong else h), None

        start = jnp.zeros((x.shape[1], 6), jnp.float32)
        return jax.lax.scan(step, start, x)[0] @ p["o"]

    params = arrays(x=(3, 6), h=(6, 6), o=(6, 2))
    graph = ifjax.trace(recurrent, jax.tree.map(jnp.float32, params), jnp.ones((5, 4, 3)))
    result = graph.verify(recurrent, params, jnp.ones((5, 4, 3)))
    assert result.unverified == ()
    assert result.changes["x"] < 1
    with pytest.raises(ValueError, match="effect of relative weight noise of 1e-06"):
        graph.verify(recurrent, params, jnp.ones((5, 4, 3)), wrong=True)
