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
    "a permutation": (lambda x: x[:, np.array([1, 0, 3, 2, 5, 4])], "abc > ab~c"),
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
    "backwards": (lambda x: x[:, ::-1], "abc > ab~c"),
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


def test_what_is_indexed_says_so():
    f, p, x = between(lambda h: h[:, WHERE], 6, 3)
    with jax.enable_x64(True):
        assert reasons(ifjax.trace(f, p, x))["a", 1].startswith("gather: the axis is indexed")
    walked = Walked(lambda x, i: lax.dynamic_slice(x, (i, 0, 0), (2, 6, 5)), X, np.int64(1))
    reason = walked.store.reasons(walked.inputs[0][0])
    assert reason[0].startswith("dynamic_slice: part of the axis is taken")
