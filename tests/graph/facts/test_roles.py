"""What a leaf does to the neurons along its axes."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

import ifjax
from tests.graph.laws import array, arrays

X = array(4, 3)


def roles(f, p, *inputs):
    graph = ifjax.trace(f, p, *inputs)
    return {(m.path, m.axis): m.role for g in graph.groups for m in g.members}


def test_additive_and_multiplicative_vectors():
    def f(p, x):
        h = x @ p["w"] + p["bias"]
        h = jnp.where(h > 0, h, h * p["slope"]) * p["gain"] - p["shift"]
        return h @ p["v"]

    p = arrays(w=(3, 6), v=(6, 2), bias=(6,), slope=(6,), gain=(6,), shift=(6,))
    assert roles(f, p, X) == {
        ("w", 1): "producer",
        ("v", 0): "consumer",
        ("bias", 0): "additive",
        ("shift", 0): "additive",
        ("slope", 0): "multiplicative",
        ("gain", 0): "multiplicative",
    }


def test_a_kernel_that_is_computed_from_leaves():
    """Masked, and a sum of two factors: every leaf has the role of what becomes of it."""

    def f(p, x):
        w = p["w"] * p["mask"] + p["left"] @ p["right"]
        return jnp.tanh(x @ w) @ p["v"]

    p = arrays(w=(3, 6), mask=(3, 6), left=(3, 2), right=(2, 6), v=(6, 2))
    found = roles(f, p, X)
    assert found["w", 1] == found["right", 1] == "producer"
    assert found["mask", 1] == "multiplicative"
    assert found["v", 0] == "consumer"


def test_the_last_producer_of_a_group_gives_its_position():
    def f(p, x):
        h = x @ p["a"]
        for name in ("k1", "k2"):
            h = h + jnp.tanh(h @ p[f"{name}u"]) @ p[f"{name}d"]
        return h @ p["b"]

    p = arrays(a=(3, 4), k1u=(4, 5), k1d=(5, 4), k2u=(4, 6), k2d=(6, 4), b=(4, 2))
    graph = ifjax.trace(f, p, X)
    assert {g.name: g.position for g in graph.groups} == {"a": 5, "k1u": 2, "k2u": 4}
    positions = {m.path: m.position for m in graph.structure.group["a"].members}
    assert positions == {"a": 1, "k1d": 3, "k2d": 5, "b": -1, "k1u": -1, "k2u": -1}


def test_tied_weights_that_produce_and_consume_are_neurons():
    def f(p, x):
        return jnp.tanh(x @ p["a"] @ p["w"]) @ p["w"].T @ p["b"]

    graph = ifjax.trace(f, arrays(a=(3, 6), w=(6, 4), b=(6, 2)), X)
    assert {g.name: g.kind for g in graph.groups} == {"a": "neuron", "w": "neuron"}


def test_depthwise_kernels_scale():
    def f(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=numbers)
        h = lax.conv_general_dilated(
            h, p["d"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=4
        )
        return h.sum((1, 2)) @ p["b"]

    p = arrays(k=(1, 1, 3, 4), d=(3, 3, 1, 4), b=(4, 2))
    found = roles(f, p, array(2, 3, 3, 3))
    assert found == {("k", 3): "producer", ("d", 3): "multiplicative", ("b", 0): "consumer"}


def test_square_kernels_keep_their_two_axes_apart():
    """A sum, a transpose and a product of square kernels of one group, on either side."""

    def f(p, x):
        h = jnp.tanh(x @ p["w"])
        h = h + jnp.tanh(h @ (p["u"] + p["v"].T)) + jnp.tanh(h @ (p["a"] @ p["b"]))
        return h @ p["o"]

    p = arrays(w=(3, 6), u=(6, 6), v=(6, 6), a=(6, 6), b=(6, 6), o=(6, 2))
    found = roles(f, p, X)
    assert found["u", 0] == found["v", 1] == found["o", 0] == "consumer"
    assert found["u", 1] == found["v", 0] == "producer"
    assert (found["a", 0], found["b", 1]) == ("consumer", "producer")


def test_low_rank_updates_consume_with_their_first_factor():
    def f(p, x):
        return jnp.tanh(x @ p["w"]) @ (p["o"] + p["a"] @ p["b"])

    found = roles(f, arrays(w=(3, 6), o=(6, 2), a=(6, 4), b=(4, 2)), X)
    assert found["a", 0] == found["o", 0] == found["b", 0] == "consumer"
    assert found["a", 1] == "producer"


def test_a_scaled_consumer_has_one_consumer_and_one_factor():
    def f(p, x):
        return jnp.tanh(x @ p["w"]) @ (p["o"] * p["s"][:, None])

    found = roles(f, arrays(w=(3, 6), o=(6, 2), s=(6,)), X)
    assert (found["o", 0], found["s", 0]) == ("consumer", "multiplicative")


def test_a_kernel_of_one_entry_that_is_scaled_keeps_its_axes():
    def f(p, x):
        return lax.cond(x.sum() > 0, lambda: 2.0 * p["w"], lambda: p["w"]) @ (x @ p["v"]).T

    graph = ifjax.trace(f, {"w": jnp.ones((1, 1)), "v": jnp.ones((3, 1))}, jnp.ones((4, 3)))
    assert graph.groups == ()
