"""What small functions are given: other precisions, keys, static arguments, constants, state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import ifjax
from tests.graph.laws import array, kept
from tests.graph.small_mlp import FULL, X


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_mixed_precision():
    """Weights in float32, products in bfloat16, the norm in float32 again."""

    def f(p, x):
        p = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)
        h = jnp.dot(x.astype(jnp.bfloat16), p["w1"], preferred_element_type=jnp.float32)
        h = h * lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-5)
        return jax.nn.relu(h.astype(jnp.bfloat16) + p["b1"]) @ p["m"] @ p["w2"]

    graph = ifjax.trace(f, FULL, X)
    small = ifjax.take(FULL, graph, {"w1": kept(10), "m": kept(8)})
    apply = ifjax.shrink(f, graph.spec(keep={"w1": 5, "m": 4}))
    out = apply(small, X)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), f(small, X).astype(jnp.float32))

    def total(f):
        return jax.grad(lambda p: f(p, X).astype(jnp.float32).sum())(small)

    got, want = total(apply), total(f)
    for name in small:
        assert got[name].dtype == jnp.float32
        np.testing.assert_allclose(got[name], want[name], rtol=2e-2, atol=1e-2)  # bfloat16: 2^-8


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_dropout_is_drawn_at_the_small_width():
    """As the function itself draws it for small arrays; one key per example under vmap."""

    def f(p, x, key):
        h = jax.nn.relu(x @ p["w1"] + p["b1"])
        h = jnp.where(jax.random.bernoulli(key, 0.5, h.shape), 2 * h, 0.0)
        return jax.nn.relu(h @ p["m"]) @ p["w2"]

    key = jax.random.key(0)
    graph = ifjax.trace(f, FULL, X, key)
    small = ifjax.take(FULL, graph, {"w1": kept(10), "m": kept(8)})
    apply = ifjax.shrink(f, graph.spec(keep={"w1": 5, "m": 4}))
    np.testing.assert_allclose(apply(small, X, key), f(small, X, key), rtol=1e-6)
    keys = jax.random.split(key, 4)
    got, want = (jax.vmap(g, (None, 0, 0))(small, X, keys) for g in (apply, f))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_static_arguments_of_equal_value_and_other_type_are_not_confused():
    def f(p, x, n, flag=False):
        return (x @ p["w1"] * n) @ p["m"].astype(jnp.float32) + (1 if flag is True else 0)

    p = {"w1": FULL["w1"], "m": jnp.float32(array(10, 2))}
    graph = ifjax.trace(f, p, X, 1)
    small = ifjax.take(p, graph, {"w1": kept(10)})
    apply = ifjax.shrink(f, graph.spec(keep=5))
    with jax.numpy_dtype_promotion("standard"):
        for n, flag in ((1, 1), (1, True), (1.0, True), (True, False), (2, False)):
            np.testing.assert_allclose(
                apply(small, X, n, flag=flag), f(small, X, n, flag=flag), rtol=1e-5
            )
        # neither hashable nor an array
        np.testing.assert_allclose(
            ifjax.shrink(lambda p, x, table: f(p, x, table["n"]), graph.spec(keep=5))(
                small, X, table={"n": 3}
            ),
            f(small, X, 3),
            rtol=1e-5,
        )


def test_a_number_that_changes_at_every_call_makes_few_programs(monkeypatch):
    p = {"w": jnp.ones((3, 4)), "u": jnp.ones((4, 2))}
    f = lambda p, x, by: jnp.tanh(x @ p["w"]) @ p["u"] / by  # noqa: E731
    x = jnp.ones((1, 3))
    spec = ifjax.trace(f, p, x, 1.0).spec(0.5, method="prune")
    small, made, real = ifjax.fuse_params(p, spec), [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda *args, **kwargs: made.append(1) or real(*args, **kwargs))
    g = ifjax.shrink(f, spec)
    for by in (1.0, 2.0, 0.0, -0.0, 4.0, 5.0, 6.0, 4.0):
        np.testing.assert_allclose(g(small, x, by), f(small, x, by))
    assert len(made) == 4


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_constants_are_sliced_by_runs_of_equal_slices():
    table = np.repeat([1.0, 2.0], 5).astype(np.float32)

    def f(p, x):
        return (jnp.tanh(x @ p["w1"]) * jnp.asarray(table)) @ p["m"]

    p = {k: FULL[k] for k in ("w1", "m")}
    graph = ifjax.trace(f, p, X)
    spec = graph.spec(keep={"w1 (0:5)": 2, "w1 (5:10)": 4})
    small = ifjax.take(p, graph, {"w1 (0:5)": [0, 3], "w1 (5:10)": [0, 1, 2, 4]})
    want = (jnp.tanh(X @ small["w1"]) * np.repeat([1.0, 2.0], [2, 4])) @ small["m"]
    np.testing.assert_allclose(ifjax.shrink(f, spec)(small, X), want, rtol=1e-5)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.avg_pool(x, (2, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(2)(x)


@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_train_mode_with_dropout_and_mutable_statistics():
    x = jnp.float32(array(4, 8, 8, 1))
    variables = Net().init(jax.random.key(0), x)
    graph = ifjax.trace(Net().apply, variables, x)
    train = lambda v, x, key: Net().apply(  # noqa: E731
        v, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )
    graph = graph & ifjax.trace(train, variables, x, jax.random.key(1))
    assert [g.size for g in graph.groups] == [6]
    spec = graph.spec(0.5, method="prune")
    small = ifjax.fuse_params(variables, spec)
    logits, state = jax.jit(ifjax.shrink(train, spec))(small, x[:2], jax.random.key(2))
    assert logits.shape == (2, 2)
    assert jax.tree.map(jnp.shape, state) == {
        "batch_stats": {"BatchNorm_0": {"mean": (3,), "var": (3,)}}
    }
    eager = nn.BatchNorm(use_running_average=False)  # the statistics are those of the kept channels
    y = nn.Conv(3, (3, 3), strides=2).apply({"params": small["params"]["Conv_0"]}, x[:2])
    norm = {
        "params": small["params"]["BatchNorm_0"],
        "batch_stats": small["batch_stats"]["BatchNorm_0"],
    }
    _, want = eager.apply(norm, y, mutable=["batch_stats"])
    np.testing.assert_allclose(
        state["batch_stats"]["BatchNorm_0"]["mean"], want["batch_stats"]["mean"], rtol=1e-5
    )
