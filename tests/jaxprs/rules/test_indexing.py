"""Indexing: what is taken whole follows, what is indexed is pinned, static ranges are slices."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, between, hold, reasons
from tests.jaxprs.rules.commuting import Walked, commute

X = array(4, 6, 5)
WHERE = np.array([2, 0, 3])

# what is taken of [4, 6, 5] and the axes that stay free, of the argument and of the result
TAKEN = {
    "one, static": (lambda x: x[:, 0], "a(1+b)c > ac"),
    "the last": (lambda x: x[:, -1], "a(b+1)c > ac"),
    "one, at a traced position": (
        lambda x: x[:, jnp.argmax(x[0, :, 0])],
        "(1+a).(1+b) > (1+a)(1+b)",
    ),
    "a static list": (lambda x: x[:, WHERE], "a.b > a.b"),
    "a list with a new axis": (lambda x: x[:, WHERE[:, None]], "a.b > a.1b"),
    "a static range": (lambda x: x[:, np.arange(2, 5)], "a(b+c+1)d > acd"),
    "the whole range": (lambda x: x[:, np.arange(6)], "abc > abc"),
    "negative positions": (lambda x: x[:, np.array([-3, -2])], "a(b+c+1)d > acd"),
    "every second, by a list": (lambda x: x[:, np.arange(1, 6, 2)], "a(b*.)c > abc"),
    "a permutation": (lambda x: x[:, np.array([1, 0, 3, 2, 5, 4])], "a.b > a.b"),
    "a repetition": (lambda x: x[:, np.repeat(np.arange(6), 2)], "abc > a(b*d)c"),
    "a repetition of all": (lambda x: x[:, np.tile(np.arange(6), 2)], "abc > a(d*b)c"),
    "a rotation": (lambda x: x[:, np.roll(np.arange(6), 2)], "a(b+c)d > a(c+b)d"),
    "a shuffle": (lambda x: x[:, np.arange(6).reshape(2, 3).T.ravel()], "a(b*c)d > a(c*b)d"),
    "two lists": (lambda x: x[WHERE, np.array([1, 1, 2])], "..a > .a"),
    "two lists apart": (lambda x: x[WHERE, :, np.array([1, 1, 2])], ".a. > .a"),
    "a mask": (lambda x: x[:, np.array([True, True, False, False, True, False])], "a.b > a.b"),
    "take": (lambda x: jnp.take(x, WHERE, axis=1), "a.b > a.b"),
    "take, clipped": (lambda x: jnp.take(x, WHERE, axis=2, mode="clip"), "ab. > ab."),
    "take, wrapped": (
        lambda x: jnp.take(x, np.array([7, 8]), axis=1, mode="wrap"),
        "a(1+b+c)d > abd",
    ),
    "take, filled": (
        lambda x: jnp.take(x, np.array([4, 5, 6]), axis=1, mode="fill", fill_value=2.0),
        "a.b > a.b",
    ),
    "take along": (lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1), "a.b > a.b"),
    "one per row": (
        lambda x: jax.vmap(lambda r, i: r[i])(x, np.array([0, 1, 1, 5])),
        "(1+a+1).b > (1+a+1)b",
    ),
    "rows that are chosen": (
        lambda x: jnp.take_along_axis(x, jnp.argmax(x, 1, keepdims=True), 1),
        "abc > a1c",
    ),
    "rows by data": (
        lambda x: jnp.take_along_axis(x, jnp.argmax(x, 1, keepdims=True) // 2, 1),
        "a.b > a1b",
    ),
    "a stride": (lambda x: x[:, ::2], "a(b*.)c > abc"),
    "backwards": (lambda x: x[:, ::-1], "a.b > a.b"),
    "a slice at a static start": (
        lambda x: lax.dynamic_slice(x, (0, 2, 0), (4, 3, 5)),
        "a(b+c+1)d > acd",
    ),
    "a slice past the end": (lambda x: lax.dynamic_slice(x, (0, 5, 9), (4, 3, 5)), "a(b+c)d > acd"),
    "a slice at a traced start": (
        lambda x: lax.dynamic_slice_in_dim(x, x[0, 0, 0].astype(int), 3, 1),
        "(1+a).(1+b) > (1+a).(1+b)",
    ),
    "a slice per row": (
        lambda x: jax.vmap(lambda r, i: lax.dynamic_slice_in_dim(r, i, 2))(x, np.arange(4)),
        "..a > ..a",
    ),
    "rolled": (lambda x: jnp.roll(x, 2, 1), "a(b+c)d > a(c+b)d"),
    "rolled by a traced amount": (
        lambda x: jnp.roll(x, x[0, 0, 0].astype(int), 1),
        "(1+a).(1+b) > (1+a).(1+b)",
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken(name):
    f, signature = TAKEN[name]
    commute(f, X, signature=signature)


V = array(4, 3, 5, seed=2)
WRITTEN = {
    "a static range": (lambda x, v: x.at[:, :3].set(v), "a(b+c)d abd > a(b+c)d"),
    "the end": (lambda x, v: x.at[:, 3:].add(v), "a(b+c)d acd > a(b+c)d"),
    "every second": (lambda x, v: x.at[:, ::2].multiply(v), "a(b*.)c abc > a(b*.)c"),
    "one": (lambda x, v: x.at[:, 0].set(v[:, 0]), "a(1+b)c a(1+d)c > a(1+b)c"),
    "a number": (lambda x, v: x.at[:, -1].set(0.5) + v.sum(), "a(b+1)c def > a(b+1)c"),
    "a list": (lambda x, v: x.at[:, WHERE].min(v), "a.b a.b > a.b"),
    "a list twice": (lambda x, v: x.at[:, np.array([1, 1, 2])].add(v), "a.b a.b > a.b"),
    "out of bounds": (lambda x, v: x.at[:, np.arange(4, 7)].add(v), "a.b a.b > a.b"),
    "by data": (
        lambda x, v: x.at[:, jnp.argsort(v[0, :, 0])].add(v),
        "(1+a).(1+b) (1+a).(1+b) > (1+a).(1+b)",
    ),
    "per row": (
        lambda x, v: jax.vmap(lambda r, u, i: r.at[i].set(u))(x, v, np.tile(WHERE, (4, 1))),
        "a.b a.b > a.b",
    ),
    "an update at a static start": (
        lambda x, v: lax.dynamic_update_slice(x, v, (0, 1, 0)),
        "a(1+b+c)d abd > a(1+b+c)d",
    ),
    "an update at a traced start": (
        lambda x, v: lax.dynamic_update_slice_in_dim(x, v, v[0, 0, 0].astype(int), 1),
        "(1+a).(1+b) (1+a).(1+b) > (1+a).(1+b)",
    ),
    "segments": (
        lambda x, v: (
            jax.ops.segment_sum(jnp.moveaxis(x, 1, 0), np.array([0, 1, 1, 0, 2, 2]), 3) + v.sum()
        ),
        "a.b cde > .ab",
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written(name):
    f, signature = WRITTEN[name]
    commute(f, X, V, signature=signature)


@st.composite
def indices(draw):
    """A random index of an array [4, 6, 5], and how its positions are said."""
    parts = []
    for n in X.shape:
        kind = draw(st.sampled_from(["all", "all", "slice", "one", "list", "range", "data"]))
        if kind == "slice":
            start, stop = sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n))))
            parts.append(slice(start, stop, draw(st.sampled_from([None, 1, 2, 3, -1]))))
        elif kind == "one":
            parts.append(draw(st.integers(-n, n - 1)))
        elif kind == "list":
            parts.append(np.array(draw(st.lists(st.integers(-n, n - 1), min_size=3, max_size=3))))
        elif kind == "range":
            start = draw(st.integers(0, n - 3))
            parts.append(np.arange(start, start + 3))
        elif kind == "data":
            parts.append("data")
        else:
            parts.append(slice(None))
    return tuple(parts), draw(st.sampled_from(["get", "set", "add", "max", "multiply"]))


def flipped(index: tuple) -> tuple:
    """Slices that go backwards start at their end."""
    return tuple(
        slice(None, None, -1) if isinstance(i, slice) and i.step == -1 else i for i in index
    )


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(indices(), st.sampled_from(["fill", "clip", None]))
@pytest.mark.usefixtures("unchecked")
def test_random_indices(drawn, mode):
    """Whatever a rule leaves free commutes with the function as jax evaluates it."""
    index, action = drawn

    def f(x, i):
        at = x.at[tuple(i if isinstance(k, str) else k for k in flipped(index))]
        if action == "get":
            return at.get(mode=mode)
        return getattr(at, action)(2.0, mode=mode)

    commute(f, X, np.array([1, 3, 0]))


# Models


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_embeddings_follow_their_width_and_pin_the_vocabulary():
    def f(p, tokens):
        return jnp.tanh(p["table"][tokens] + p["position"][jnp.arange(5)]) @ p["b"]

    tokens = np.array([[1, 0, 6, 3, 3], [2, 2, 5, 0, 1]])
    graph = hold(f, arrays(table=(7, 4), position=(5, 4), b=(4, 2)), tokens, groups={"table": 4})
    role = {m.path: m.role for m in graph.groups[0].members}
    assert role == {"table": "producer", "position": "additive", "b": "consumer"}
    assert reasons(graph)["table", 0].startswith("gather: the axis is indexed")
    assert "test_indexing.py" in reasons(graph)["table", 0]


@pytest.mark.parametrize("mode", ["fill", "clip", "wrap"])
def test_embeddings_by_take_and_tied_decoders(mode):
    def f(p, tokens):
        h = jnp.tanh(jnp.take(p["table"], tokens, axis=0, mode=mode))
        return (h @ p["w"]) @ p["table"].T

    tokens = np.array([[1, 0, 6], [2, 2, 5]])
    hold(f, arrays(table=(7, 4), w=(4, 4)), tokens, groups={"table": 4})


def test_embeddings_under_vmap_and_one_hot():
    def f(p, tokens):
        h = jax.vmap(jax.vmap(lambda t: jnp.asarray(p["table"])[t]))(tokens)
        return jnp.tanh(h + jax.nn.one_hot(tokens, 7) @ p["other"]) @ p["b"]

    tokens = np.array([[1, 0, 6], [2, 2, 5]])
    p = arrays(table=(7, 4), other=(7, 4), b=(4, 2))
    hold(f, p, tokens)
    assert len(ifjax.trace(f, p, tokens).groups) == 1


def test_flax_embeddings():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(7, 4)
            return embed.attend(nn.Dense(4)(jnp.tanh(embed(tokens))))

    tokens = np.array([[1, 0, 6], [2, 2, 5]])
    model = Model()
    params = model.init(jax.random.key(0), tokens)
    graph = ifjax.trace(model.apply, params, tokens)
    assert [g.size for g in graph.groups] == [4]
    assert graph.verify(model.apply, params, tokens).ok


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


def test_what_is_indexed_says_so():
    f, p, x = between(lambda h: h[:, WHERE], 6, 3)
    with jax.enable_x64(True):
        assert reasons(ifjax.trace(f, p, x))["a", 1].startswith("gather: the axis is indexed")
    walked = Walked(lambda x, i: lax.dynamic_slice(x, (i, 0, 0), (2, 6, 5)), X, np.int64(1))
    reason = walked.store.reasons(walked.inputs[0][0])
    assert reason[0].startswith("dynamic_slice: part of the axis is taken")
