"""What consumers read, against the activations of networks written out in numpy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.activations.layer_inputs import layer_inputs


def weights(seed=0, **shapes):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


def seen(apply, params, *inputs):
    structure = ifjax.trace(apply, params, *inputs).structure
    return structure, jax.jit(functools.partial(rows_of, apply, structure))(params, *inputs)


def rows_of(apply, plan, params, *inputs):
    found = {}
    for reading in layer_inputs(apply, params, plan, *inputs):
        for name in reading.groups:
            found.setdefault(name, []).extend(reading.rows(name))
    return found


def test_dense_layers_through_every_kind_of_call():
    @jax.custom_vjp
    def scaled(x):
        return 2 * x

    scaled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))

    def apply(p, x):
        h = jax.jit(lambda x: jax.nn.relu(x @ p["a"]))(x)  # relu is a custom_jvp
        h = jax.checkpoint(lambda h: jnp.tanh(h @ p["b"]))(h)
        return scaled(h) @ p["c"]

    p = weights(a=(3, 4), b=(4, 5), c=(5, 2))
    x = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    _, found = seen(apply, p, x)
    first = np.maximum(x @ np.asarray(p["a"]), 0)
    second = 2 * np.tanh(first @ np.asarray(p["b"]))
    assert set(found) == {"a", "b"}
    np.testing.assert_allclose(found["a"][0], first.T, atol=1e-5)
    np.testing.assert_allclose(found["b"][0], second.T, atol=1e-5)
    assert len(found["a"]) == len(found["b"]) == 1


def test_flattened_maps_split_segments_and_several_consumers():
    def apply(p, x):
        h = jax.lax.conv_general_dilated(
            x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        out = h.reshape(x.shape[0], -1) @ p["flat"]  # positions x channels on one axis
        both = jnp.concatenate([x.mean((1, 2)) @ p["d"], h.max((1, 2))], 1)
        return out, both @ p["cat"]

    p = weights(k=(3, 3, 2, 4), flat=(2 * 3 * 4, 5), d=(2, 3), cat=(7, 1))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 3, 2)), jnp.float32)
    _, found = seen(apply, p, x)
    h = np.asarray(
        jax.lax.conv_general_dilated(
            x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    flat, pooled = sorted(found["k"], key=lambda r: -r.shape[1])
    assert flat.shape == (4, 2 * 6)
    np.testing.assert_allclose(np.sort(flat, 1), np.sort(h.reshape(-1, 4).T, 1), atol=1e-5)
    np.testing.assert_allclose(pooled, h.max((1, 2)).T, atol=1e-5)
    dense = np.asarray(x).mean((1, 2)) @ np.asarray(p["d"])
    np.testing.assert_allclose(found["d"][0], dense.T, atol=1e-5)


def test_a_depthwise_kernel_consumes_nothing_and_a_grouped_one_its_width():
    def apply(p, x):
        h = x @ p["a"]
        numbers = ("NWC", "WIO", "NWC")
        h = jax.lax.conv_general_dilated(
            h, p["depth"], (1,), "SAME", dimension_numbers=numbers, feature_group_count=4
        )
        h = jax.lax.conv_general_dilated(
            h, p["group"], (1,), "SAME", dimension_numbers=numbers, feature_group_count=2
        )
        return h @ p["b"]

    p = weights(a=(3, 4), depth=(3, 1, 4), group=(1, 2, 6), b=(6, 2))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 3)), jnp.float32)
    plan, found = seen(apply, p, x)
    for name, matrices in found.items():
        consumers = [m for m in plan.group[name].members if m.role == "consumer"]
        assert consumers, name
        assert all(m.path != "depth" for m in consumers)
        assert all(r.shape[0] == plan.group[name].size for r in matrices)


def test_attention_and_products_of_weights_are_no_readings():
    def apply(p, x):
        q, k = x @ p["q"], x @ p["k"]
        return jax.nn.softmax(q @ k.T) @ x @ (p["u"] @ p["v"])

    p = weights(q=(3, 4), k=(3, 4), u=(3, 5), v=(5, 2))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
    _, found = seen(apply, p, x)
    assert found == {}


def test_what_a_loop_reads_is_not_seen_and_its_result_right():
    def apply(p, x):
        h = x @ p["a"]
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["s"])
        return jnp.sin(h) @ p["b"]

    p = weights(a=(3, 4), s=(2, 4, 4), b=(4, 2))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
    structure = ifjax.trace(apply, p, x).structure
    found = layer_inputs(apply, p, structure, x)
    h = x @ p["a"]
    for w in p["s"]:
        h = jnp.tanh(h @ w)
    for reading in found:  # none at all where the graph pins the carry
        np.testing.assert_allclose(reading.value, jnp.sin(h), atol=1e-5)


@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_random_keys_in_keywords():
    """Dropout by the usual keyword pins nothing that is read."""

    def f(p, x, *, rngs):
        h = jnp.tanh(x @ p["a"])
        return (h * jax.random.bernoulli(rngs["dropout"], 0.5, h.shape)) @ p["b"]

    params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
    x, rngs = jnp.ones((4, 3)), {"dropout": jax.random.key(0)}
    structure = ifjax.trace(f, params, x, rngs=rngs).structure
    (found,) = layer_inputs(f, params, structure, x, rngs=rngs)
    assert (found.groups, found.value.shape) == (("a",), (4, 8))
