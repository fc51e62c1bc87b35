"""Caches and carries among the inputs and outputs follow the widths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from tests.graph.laws import array, arrays, kept

X = array(2, 3)


def cell(p, x, carry):
    h = jnp.tanh(x @ p["i"] + carry["h"] @ p["h"])
    return h @ p["o"], {"h": h}


CELL = arrays(i=(3, 6), h=(6, 6), o=(6, 2))
CARRY = {"h": array(2, 6)}


def decode(p, x, cache):
    """One step of attention over the tokens so far, two heads of four."""
    q, k, v = (jnp.einsum("bc,chd->bhd", x, p[n]) for n in "qkv")
    keys = jnp.concatenate([cache["k"], k[:, None]], 1)[:, 1:]
    values = jnp.concatenate([cache["v"], v[:, None]], 1)[:, 1:]
    weights = jax.nn.softmax(jnp.einsum("bhd,bthd->bht", q, keys))
    y = jnp.einsum("bht,bthd->bhd", weights, values)
    return jnp.einsum("bhd,hdc->bc", y, p["o"]), {"k": keys, "v": values}


ATTENTION = arrays(q=(3, 2, 4), k=(3, 2, 4), v=(3, 2, 5), o=(2, 5, 3))
CACHE = {"k": array(2, 6, 2, 4), "v": array(2, 6, 2, 5)}


def double(tree):
    return jax.tree.map(jnp.asarray, tree)


def test_a_recurrent_carry_is_one_group_with_the_state():
    with jax.enable_x64(True):
        p, x, carry = double((CELL, X, CARRY))
        assert ifjax.trace(cell, p, x, carry).groups == ()
        graph = ifjax.trace(cell, p, x, carry, state="*/h")
        assert {g.name: g.size for g in graph.groups} == {"i": 6}
        assert graph.structure.carried == ("outputs/1/h",)
        assert graph.verify(cell, p, x, carry).ok

        spec = graph.spec(keep=3)
        small = ifjax.take(p, graph, {"i": kept(6)})
        shapes = spec.small_inputs(x, carry)
        assert shapes[1]["h"].shape == (2, 3)
        got, state = ifjax.shrink(cell, spec)(small, x, {"h": carry["h"][:, kept(6)]})
        full = {k: np.array(v) for k, v in p.items()}
        drop = np.setdiff1d(np.arange(6), kept(6))
        full["i"][:, drop], full["h"][:, drop], full["o"][drop] = 0, 0, 0
        want, _ = cell(full, x, {"h": carry["h"].at[:, drop].set(0)})
        np.testing.assert_allclose(got, want, atol=1e-12)
        again, _ = ifjax.shrink(cell, spec)(small, x, state)  # the state comes back small
        assert again.shape == (2, 2)


def test_a_cache_follows_heads_and_their_dimensions():
    with jax.enable_x64(True):
        p, x, cache = double((ATTENTION, X, CACHE))
        graph = ifjax.trace(decode, p, x, cache, state=lambda path: "/1/" in path)
        sizes = {g.size: (g.kind, g.batch) for g in graph.groups}
        assert sizes == {2: ("head", ()), 4: ("head_dim", (2,)), 5: ("head_dim", (2,))}
        assert graph.verify(decode, p, x, cache).ok

        spec = graph.spec(keep=1)
        shapes = spec.small_inputs(x, cache)[1]
        assert {k: s.shape for k, s in shapes.items()} == {"k": (2, 6, 1, 1), "v": (2, 6, 1, 1)}
        zeros = jax.tree.map(lambda s: jnp.zeros((7, 9, *s.shape[2:])), shapes)
        small = ifjax.fuse_params(p, spec)
        out, state = ifjax.shrink(decode, spec)(small, jnp.ones((7, 3)), zeros)
        assert out.shape == (7, 3)
        assert state["k"].shape == (7, 9, 1, 1)


def test_two_entry_points_share_the_cache():
    def prefill(p, tokens):
        keys, values = (jnp.einsum("btc,chd->bthd", tokens, p[n]) for n in "kv")
        return {"k": keys, "v": values}

    with jax.enable_x64(True):
        p, x, cache = double((ATTENTION, X, CACHE))
        first = ifjax.trace(prefill, p, array(2, 6, 3), state="outputs/*")
        graph = first & ifjax.trace(decode, p, x, cache, state="*/1/*")
        assert graph.verify(decode, p, x, cache).ok
        assert {g.size for g in graph.groups} == {2, 4, 5}
        spec = graph.spec(keep=1)
        spec = ifjax.FusionSpec.from_json(spec.to_json())
        small = ifjax.fuse_params(p, spec)
        cache = ifjax.shrink(prefill, spec)(small, jnp.ones((2, 6, 3)))
        out, _ = ifjax.shrink(decode, spec)(small, x, cache)
        assert out.shape == (2, 3)


def test_wrong_state():
    with pytest.raises(ValueError, match=r"names no array .* inputs/0, inputs/1/h"):
        ifjax.trace(cell, CELL, X, CARRY, state="cache/*")
    graph = ifjax.trace(cell, CELL, X, CARRY, state="*/h")
    spec = graph.spec(keep=3)
    small = ifjax.fuse_params(CELL, spec)
    with pytest.raises(ValueError, match=r"inputs/1/h, axis 1: expected 3 .* got shape \(2, 6\)"):
        ifjax.shrink(cell, spec)(small, X, CARRY)
