"""Indexing where networks do it: experts, tokens, caches, stacked layers, rotary pairs, pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, hold


def test_expert_kernels_chosen_by_data_keep_their_roles():
    def f(p, x, expert):
        h = jnp.tanh(jnp.einsum("nc,ncd->nd", x @ p["a"], p["up"][expert]))
        return jnp.einsum("nd,ndc->nc", h, p["down"][expert]) @ p["b"]

    p = arrays(a=(3, 6), up=(4, 6, 5), down=(4, 5, 6), b=(6, 2))
    graph = hold(f, p, array(3, 3), np.array([2, 0, 2]))
    sizes = {frozenset((m.path, m.axis, m.role) for m in g.members): g.size for g in graph.groups}
    assert sizes == {
        frozenset({("a", 1, "producer"), ("up", 1, "consumer")}): 6,
        frozenset({("up", 2, "producer"), ("down", 1, "consumer")}): 5,
        frozenset({("down", 2, "producer"), ("b", 0, "consumer")}): 6,
    }


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_class_tokens():
    def f(p, x):
        h = x @ p["a"]
        token = jnp.broadcast_to(p["class"], (4, 1, 6))
        h = jnp.concatenate([token, h], 1) + p["position"]
        h = h + jnp.tanh(h.mean(1, keepdims=True) @ p["w"])
        return h[:, 0] @ p["b"]

    p = arrays(a=(3, 6), position=(6, 6), w=(6, 6), b=(6, 2)) | {"class": array(1, 1, 6)}
    hold(f, p, array(4, 5, 3))
    assert [g.size for g in ifjax.trace(f, p, array(4, 5, 3)).groups] == [6]


def test_tokens_read_at_a_traced_position():
    """The last token of every sequence, as language models pool."""

    def f(p, x, length):
        h = jnp.tanh(x @ p["a"])
        last = jnp.take_along_axis(h, length[:, None, None] - 1, axis=1)[:, 0]
        return last @ p["b"] + h[jnp.arange(4), length - 1] @ p["b"]

    hold(f, arrays(a=(3, 6), b=(6, 2)), array(4, 5, 3), np.array([1, 5, 3, 2]), groups={"a": 6})


def test_relative_position_bias():
    """A table of biases, read at static positions: heads follow, positions are pinned."""
    n, heads, d = 4, 2, 3
    offsets = np.arange(n)[:, None] - np.arange(n)[None] + n - 1

    def f(p, x):
        q, k, v = (jnp.einsum("nc,chd->hnd", x, p[name]) for name in "qkv")
        bias = p["bias"][offsets.reshape(-1)].reshape(n, n, heads).transpose(2, 0, 1)
        weights = jax.nn.softmax(jnp.einsum("hid,hjd->hij", q, k) + bias)
        return jnp.einsum("hij,hjd,hdo->io", weights, v, p["o"])

    p = arrays(q=(3, heads, d), k=(3, heads, d), v=(3, heads, d), bias=(7, heads), o=(heads, d, 2))
    graph = hold(f, p, array(n, 3))
    sizes = {frozenset(m.path for m in g.members): g.size for g in graph.groups}
    assert sizes == {
        frozenset({"q", "k", "v", "bias", "o"}): 2,
        frozenset({"q", "k"}): 3,
        frozenset({"v", "o"}): 3,
    }


def test_a_cache_written_at_a_traced_position():
    """Keys and values go into a cache made in the function: their widths stay free."""

    def f(p, x, position):
        q, k, v = (jnp.einsum("bc,chd->bhd", x, p[name]) for name in "qkv")
        caches = []
        for new in (k, v):
            cache = jnp.zeros((2, 5, 2, 3), new.dtype)
            caches.append(lax.dynamic_update_slice(cache, new[:, None], (0, position, 0, 0)))
        scores = jnp.einsum("bhd,bthd->bht", q, caches[0])
        scores = jnp.where(jnp.arange(5) <= position, scores, -1e9)
        return jnp.einsum("bht,bthd,hdo->bo", jax.nn.softmax(scores), caches[1], p["o"])

    p = arrays(q=(3, 2, 3), k=(3, 2, 3), v=(3, 2, 3), o=(2, 3, 2))
    graph = hold(f, p, array(2, 3), np.int64(3))
    sizes = {frozenset(m.path for m in g.members): g.size for g in graph.groups}
    assert sizes == {frozenset("qkvo"): 2, frozenset("qk"): 3, frozenset("vo"): 3}


def test_layers_of_stacked_leaves_read_in_a_loop():
    """Every layer is a dynamic slice of its leaf; all layers share one choice."""

    def f(p, x):
        h = x @ p["a"]

        def layer(i, h):
            up, down = (lax.dynamic_index_in_dim(p[n], i, keepdims=False) for n in ("up", "down"))
            return h + jnp.tanh(h @ up) @ down

        for i in range(2):
            h = layer(jnp.int32(i), h)
        return h @ p["b"]

    p = arrays(a=(3, 4), up=(2, 4, 5), down=(2, 5, 4), b=(4, 2))
    graph = hold(f, p, array(3, 3))
    assert sorted(g.size for g in graph.groups) == [4, 5]


ROTARY = {
    "half split": (
        lambda x, cos, sin: x * cos + jnp.concatenate([-x[..., 3:], x[..., :3]], -1) * sin,
        np.tile(array(5, 3), 2),
    ),
    "half split, written back": (
        lambda x, cos, sin: (
            x.at[..., :3]
            .set(x[..., :3] * cos[:, :3] - x[..., 3:] * sin[:, :3])
            .at[..., 3:]
            .set(x[..., 3:] * cos[:, :3] + x[..., :3] * sin[:, :3])
        ),
        np.tile(array(5, 3), 2),
    ),
    "interleaved": (
        lambda x, cos, sin: (
            x * cos + jnp.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape) * sin
        ),
        np.repeat(array(5, 3), 2, -1),
    ),
}


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("frequencies", ["one", "many"])
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_rotary_embeddings(name, frequencies):
    """Pairs are turned by an angle that depends on the pair: pinned; heads are free.

    Where all pairs turn alike, they are one group of pairs.
    """
    turn, table = ROTARY[name]
    if frequencies == "one":
        table = np.broadcast_to(table[:, :1], table.shape)

    def f(p, x):
        q, k = (
            turn(jnp.einsum("nc,chd->hnd", x, p[n]), np.cos(table), np.sin(table)) for n in "qk"
        )
        v = jnp.einsum("nc,chd->hnd", x, p["v"])
        weights = jax.nn.softmax(jnp.einsum("hid,hjd->hij", q, k))
        return jnp.einsum("hij,hjd,hdo->io", weights, v, p["o"])

    p = arrays(q=(3, 2, 6), k=(3, 2, 6), v=(3, 2, 4), o=(2, 4, 2))
    graph = hold(f, p, array(5, 3))
    sizes = {frozenset(m.path for m in g.members): g.size for g in graph.groups}
    pairs = {frozenset("qk"): 3} if frequencies == "one" else {}
    assert sizes == {frozenset("qkvo"): 2, frozenset("vo"): 4} | pairs


def test_pixel_shuffle_and_patches():
    """Space to depth by reshape, and depth to space: channels stay free, block offsets do not."""

    def f(p, x):
        patches = x.reshape(2, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 2, 2, -1)
        h = jnp.tanh(patches @ p["a"])
        h = h.reshape(2, 2, 2, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 4)
        return jnp.sin(h).mean((1, 2)) @ p["b"]

    graph = hold(f, arrays(a=(12, 16), b=(4, 2)), array(2, 4, 4, 3))
    sizes = {frozenset((m.path, m.where) for m in g.members): g.size for g in graph.groups}
    assert sizes[frozenset({("a", ("0:16=2x2x4.2",)), ("b", ("0:4",))})] == 4


def test_channel_shuffle():
    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        h = h.reshape(4, 2, 3).swapaxes(1, 2).reshape(4, 6)
        return jnp.sin(h) @ p["b"]

    hold(
        f,
        arrays(a=(3, 6), b=(6, 2)),
        array(4, 3),
        groups={"a (factor 1 of 2x3)": 2, "a (factor 2 of 2x3)": 3},
    )


def test_shrunk_functions_hold_no_full_width():
    def f(p, x, position):
        h = (x @ p["a"]).at[:, :4].multiply(2.0)
        h = lax.dynamic_update_slice(jnp.zeros((5, 16)), h[:1], (position, 0))
        return h[np.array([0, 2])] @ p["b"]

    p, x = jax.tree.map(np.float32, (arrays(a=(3, 16), b=(16, 2)), array(4, 3)))
    graph = ifjax.trace(f, p, x, np.int32(1))
    assert {g.size for g in graph.groups} == {4, 12}
    spec = graph.spec(0.5)
    text = str(jax.make_jaxpr(ifjax.shrink(f, spec))(spec.small_struct(p), x, np.int32(1)))
    assert "16" not in text
    assert ",8]" in text


def test_gradients_through_a_shrunk_lookup():
    def f(p, tokens):
        return (jnp.tanh(p["table"][tokens]) @ p["b"]).sum()

    p, tokens = arrays(table=(7, 4), b=(4, 2)), np.array([1, 0, 6])
    graph = ifjax.trace(f, p, tokens)
    small = ifjax.take(p, graph, {"table": np.array([1, 3])})
    got = jax.grad(ifjax.shrink(f, graph.spec(keep=2)))(small, tokens)
    want = ifjax.take(jax.grad(f)(p, tokens), graph, {"table": np.array([1, 3])})
    np.testing.assert_allclose(got["table"], want["table"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["b"], want["b"], rtol=1e-5, atol=1e-6)
