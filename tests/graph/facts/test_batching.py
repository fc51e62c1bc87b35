"""Independent copies of a class: a permutation of its own for each leaves the function alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, hold

X = array(2, 5, 4)


def batches(graph):
    return {g.size: g.batch for g in graph.groups}


def test_layers_of_a_scan():
    def f(p, x):
        def block(h, layer):
            return h + jnp.tanh(h @ layer["up"]) @ layer["down"], None

        return lax.scan(block, x, p)[0].sum(1)

    p = {"up": array(3, 4, 7), "down": array(3, 7, 4)}
    graph = hold(f, p, X, groups={"up": 7})
    assert batches(graph) == {7: (3,)}
    assert graph.groups[0].along == ("down[0]",)


def test_what_layers_share_is_not_batched():
    def f(p, x):
        def block(h, layer):
            return h + jnp.tanh(h @ layer["up"] @ p["mix"]) @ layer["down"], None

        return lax.scan(block, x, {k: p[k] for k in ("up", "down")})[0].sum(1)

    p = arrays(up=(3, 4, 6), mix=(6, 5), down=(3, 5, 4))
    assert batches(hold(f, p, X)) == {6: (), 5: ()}


def test_the_stream_of_a_scan_is_not_batched():
    def f(p, x):
        def block(h, layer):
            return h + jnp.tanh(h @ layer), None

        return lax.scan(block, x @ p["in"], p["w"])[0].sum(1) @ p["out"]

    p = arrays(w=(3, 6, 6), **{"in": (4, 6), "out": (6, 2)})
    assert batches(hold(f, p, X)) == {6: ()}


def test_stacked_layers_that_are_read_one_by_one():
    def f(p, x):
        for i in range(3):
            x = x + jnp.tanh(x @ p["up"][i]) @ p["down"][i]
        return x.sum(1)

    graph = hold(f, arrays(up=(3, 4, 7), down=(3, 7, 4)), X)
    assert batches(graph) == {7: (3,)}


def test_experts():
    def f(p, x):
        gate = jax.nn.softmax(x @ p["router"])
        h = jax.nn.relu(jnp.einsum("btc,ecf->btef", x, p["up"]))
        return jnp.einsum("bte,btef,efc->btc", gate, h, p["down"]).sum(1)

    p = arrays(router=(4, 3), up=(3, 4, 6), down=(3, 6, 2))
    graph = hold(f, p, X)
    assert batches(graph) == {3: (), 6: (3,)}
    (inner,) = (g for g in graph.groups if g.size == 6)
    assert inner.along == next((g.name,) for g in graph.groups if g.size == 3)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_experts_under_vmap_with_biases():
    def f(p, x):
        one = lambda q, x: jnp.tanh(x @ q["up"] + q["bias"]) @ q["down"]  # noqa: E731
        return jax.vmap(one, (0, None))(p, x).sum(0)

    graph = hold(f, arrays(up=(3, 4, 6), bias=(3, 6), down=(3, 6, 2)), array(5, 4))
    assert batches(graph)[6] == (3,)


@pytest.mark.parametrize("merged", [False, True])
def test_head_dims_by_heads(merged):
    def f(p, x):
        if merged:
            q, k, v = jnp.split(x @ p["qkv"], [18, 36], -1)
            q, k, v = (z.reshape(2, 5, 3, -1) for z in (q, k, v))
        else:
            q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        if merged:
            return y.reshape(2, 5, 12) @ p["o"].reshape(12, 2)
        return jnp.einsum("bthd,hdc->btc", y, p["o"])

    kernels = {"qkv": (4, 48)} if merged else {"q": (4, 3, 6), "k": (4, 3, 6), "v": (4, 3, 4)}
    graph = hold(f, arrays(o=(3, 4, 2), **kernels), X)
    assert batches(graph) == {3: (), 6: (3,), 4: (3,)}


def test_layers_and_heads():
    def f(p, x):
        def block(x, p):
            q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
            weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
            y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
            return x + jnp.einsum("bthd,hdc->btc", y, p["o"]), None

        return lax.scan(block, x, p)[0].sum(1)

    p = arrays(q=(2, 4, 3, 6), k=(2, 4, 3, 6), v=(2, 4, 3, 5), o=(2, 3, 5, 4))
    graph = hold(f, p, X)
    assert batches(graph) == {3: (2,), 6: (2, 3), 5: (2, 3)}


def test_the_width_of_a_grouped_convolution():
    numbers = ("NHWC", "HWIO", "NHWC")

    def f(p, x):
        h = lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=numbers)
        h = lax.conv_general_dilated(
            jnp.tanh(h), p["g"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=2
        )
        return jnp.tanh(h).sum((1, 2)) @ p["o"]

    graph = hold(f, arrays(a=(1, 1, 3, 6), g=(2, 2, 3, 8), o=(8, 2)), array(2, 4, 4, 3))
    assert batches(graph) == {2: (), 3: (2,), 4: (2,)}


def not_moved(move):
    def f(p, x):
        h = jnp.einsum("bc,ecf->bef", x, p["up"])
        return jnp.einsum("bef,efc->bc", jnp.tanh(h) + move(h), p["down"])

    return f


MOVES = {
    "rev": lambda h: h[:, ::-1],
    "cumsum": lambda h: h.cumsum(1),
    "sort": lambda h: jnp.sort(h, 1),
    "roll": lambda h: jnp.roll(h, 1, 1),
    "mean": lambda h: h.mean(1, keepdims=True),
    "softmax": lambda h: jax.nn.softmax(h, 1),
    "turned": lambda h: h[:, jnp.array([2, 0, 1])],
    "windows": lambda h: lax.reduce_window(h, 0.0, lax.add, (1, 3, 1), (1, 1, 1), "SAME"),
    "overwritten": lambda h: lax.dynamic_update_slice(h, h[:, 1:2], (0, 0, 0)),
    "set": lambda h: h.at[:, jnp.array([1, 0])].set(h[:, jnp.array([0, 2])]),
    "mixed": lambda h: jnp.einsum("bef,eg->bgf", h, jnp.eye(3)),
}


@pytest.mark.parametrize("case", MOVES)
def test_nothing_batches_along_an_axis_that_data_moves_along(case):
    graph = hold(not_moved(MOVES[case]), arrays(up=(3, 4, 6), down=(3, 6, 2)), array(2, 4))
    assert batches(graph)[6] == ()


def test_a_low_rank_product_is_not_batched_by_its_free_axis():
    def f(p, x):
        h = jnp.tanh(x @ p["in"])
        return (h + jnp.tanh(h @ p["a"] @ p["b"])).sum(1) @ p["out"]

    p = arrays(a=(6, 5), b=(5, 6), **{"in": (4, 6), "out": (6, 2)})
    assert batches(hold(f, p, X)) == {6: (), 5: ()}


def test_two_functions_keep_what_both_batch():
    def layers(p, x):
        block = lambda h, q: (h + jnp.tanh(h @ q["up"]) @ q["down"], None)  # noqa: E731
        return lax.scan(block, x, p)[0].sum(1)

    def tied(p, x):
        return layers(p, x) + (p["up"].sum(0) @ p["down"].sum(0)).sum()

    with jax.enable_x64(True):
        p = arrays(up=(3, 4, 7), down=(3, 7, 4))
        graph, other = ifjax.trace(layers, p, X), ifjax.trace(tied, p, X)
        both = graph & graph
        assert [(g.name, g.batch) for g in both.groups] == [("up", (3,))]
        assert both.verify(layers, p, X).ok
        assert [g.batch for g in (graph & other).groups] == [()]
