"""Random keys in keyword arguments are inputs: what is drawn with them follows the widths."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ifjax
from tests.graph.laws import array, arrays, between, reasons


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(16)(x)))
        return nn.Dense(3)(h)


X = jax.random.normal(jax.random.key(7), (4, 6))
NET = Net()
VARIABLES = NET.init(jax.random.key(0), X)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_the_usual_call_of_a_linen_module_in_train_mode(make):
    graph = ifjax.trace(NET.apply, VARIABLES, X, train=True, rngs={"dropout": make(1)})
    assert [(g.size, g.kind) for g in graph.groups] == [(16, "neuron")]
    small = ifjax.fuse_params(VARIABLES, graph.spec(0.5, method="prune"))
    apply = ifjax.shrink(NET.apply, graph.spec(0.5, method="prune"))
    draws = [apply(small, X, train=True, rngs={"dropout": make(i)}) for i in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert abs(draws[0] - draws[2]).max() > 1e-3  # the key of the call, not of the first one
    np.testing.assert_allclose(apply(small, X), apply(small, X, train=False))


def test_a_single_key_and_one_beside_what_is_no_key():
    def f(p, x, *, rng, noise=None, table=None):
        h = jnp.tanh(x @ p["a"]) * table["ones"]
        h = h * jax.random.bernoulli(rng, 0.5, h.shape)
        return (h + jax.random.normal(noise["key"], h.shape) * noise["scale"]) @ p["b"]

    p, x = arrays(a=(3, 8), b=(8, 2)), array(4, 3)
    noise = {"key": jax.random.key(3), "scale": 0.1, "name": "normal"}
    options = {"rng": jax.random.key(2), "noise": noise, "table": {"ones": np.ones(8)}}
    graph = ifjax.trace(f, p, x, **options)
    assert [g.size for g in graph.groups] == [8]
    spec = graph.spec(keep=2)
    small = ifjax.take(p, graph, {"a": [1, 4]})
    assert ifjax.shrink(f, spec)(small, x, **options).shape == (4, 2)


@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_fine_tuning_with_dropout_through_shrink():
    """A spec of the eval-mode function serves the train-mode one; the keys of the steps differ."""
    spec = ifjax.trace(NET.apply, VARIABLES, X).spec(0.5, method="prune")
    small = ifjax.fuse_params(VARIABLES, spec)
    apply, optimizer = ifjax.shrink(NET.apply, spec), optax.adam(1e-2)
    traced = []

    @jax.jit
    def step(small, state, key):
        def loss(small):
            traced.append(1)
            out = apply(small, X, train=True, rngs={"dropout": key})
            return jnp.mean(out**2)

        value, gradient = jax.value_and_grad(loss)(small)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(small, updates), state, value

    state, values = optimizer.init(small), []
    for key in jax.random.split(jax.random.key(5), 40):
        small, state, value = step(small, state, key)
        values.append(float(value))
    assert len(traced) == 1
    assert np.mean(values[-5:]) < 0.5 * np.mean(values[:5])


def test_a_key_that_an_outer_function_traces_is_not_a_constant():
    spec = ifjax.trace(NET.apply, VARIABLES, X).spec(0.5, method="prune")
    small = ifjax.fuse_params(VARIABLES, spec)

    @jax.jit
    def run(small, key):
        apply = lambda v, x: NET.apply(v, x, train=True, rngs={"dropout": key})  # noqa: E731
        return ifjax.shrink(apply, spec)(small, X)

    assert run(small, jax.random.key(1)).shape == (4, 3)


def test_a_constant_key_is_refused_with_the_way_out():
    def fixed(v, x):
        return NET.apply(v, x, train=True, rngs={"dropout": jax.random.key(1)})

    with pytest.warns(UserWarning, match="constant key.*eval mode"):
        graph = ifjax.trace(fixed, VARIABLES, X)
    assert graph.groups == ()
    assert "give the key with the call" in str(graph)
    with pytest.raises(ValueError, match="no groups: random numbers are drawn with a constant"):
        graph.spec(0.5)
    why = reasons(graph)["params/Dense_0/kernel", 1]
    assert "the random key is not an input" in why
    assert "keyword" in why
    spec = ifjax.trace(NET.apply, VARIABLES, X).spec(0.5, method="prune")
    small = ifjax.fuse_params(VARIABLES, spec)
    with pytest.raises(ValueError, match="give the key with the call") as error:
        ifjax.shrink(fixed, spec)(small, X)
    assert "graph1 & graph2" not in str(error.value)  # it would lose the group


def test_a_key_among_the_parameters_is_given():
    """nnx holds its streams of random numbers as state."""

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        return (h * jax.random.bernoulli(p["key"], 0.5, h.shape)) @ p["b"]

    p = arrays(a=(3, 8), b=(8, 2)) | {"key": jax.random.key(0)}
    assert [g.size for g in ifjax.trace(f, p, array(4, 3)).groups] == [8]
    _, p, x = between(jnp.tanh)
    fixed = jax.random.normal(jax.random.key(0), (8,))
    graph = ifjax.trace(lambda p, x: (x @ p["a"] * fixed) @ p["b"], p, x)
    assert graph.groups == ()
    assert "nothing can be cut" in str(graph)
