"""Neurons of every expert's own where one ragged product serves all experts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax

EXPERTS, TOKENS = 3, 7
SHAPES = {"up": (EXPERTS, 4, 6), "gate": (EXPERTS, 4, 6), "down": (EXPERTS, 6, 4), "out": (4, 2)}
SHAPES |= {"router": (4, EXPERTS), "scale": (6,), "bias": (EXPERTS, 6), "again": (EXPERTS, 6, 4)}
X = np.random.default_rng(1).normal(size=(TOKENS, 4))


def made(*names):
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=SHAPES[k])) for k in ("router", *names, "out")}


def dealt(p, x):
    """Tokens by expert, where every expert has how many, and how to get back."""
    choice = jnp.argmax(x @ p["router"], -1)
    order = jnp.argsort(choice)
    return x[order], jnp.bincount(choice, length=EXPERTS), jnp.argsort(order), choice[order]


def plain(p, x):
    x, count, back, _ = dealt(p, x)
    h = jnp.tanh(lax.ragged_dot(x, p["up"], count))
    return lax.ragged_dot(h, p["down"], count)[back] @ p["out"]


def gated(p, x):
    x, count, back, _ = dealt(p, x)
    h = jax.nn.silu(lax.ragged_dot(x, p["gate"], count)) * lax.ragged_dot(x, p["up"], count)
    return lax.ragged_dot(h, p["down"], count)[back] @ p["out"]


def twice(p, x):
    """Two such layers, of other weights and another routing."""
    for i in range(2):
        own = {k: p[k] if i == 0 or k == "router" else p[k] * 1.0 for k in p}
        y, count, back, _ = dealt(own, jnp.roll(x, i, 1))
        names = ("up", "down") if i == 0 else ("gate", "again")
        h = jax.nn.gelu(lax.ragged_dot(y, p[names[0]], count))
        x = x + lax.ragged_dot(h, p[names[1]], count)[back]
    return x @ p["out"]


def checkpointed(p, x):
    x, count, back, _ = dealt(p, x)

    @jax.checkpoint
    def layer(up, down, x, count):
        return lax.ragged_dot(jnp.tanh(lax.ragged_dot(x, up, count)), down, count)

    return layer(p["up"], p["down"], x, count)[back] @ p["out"]


def normed(p, x):
    """A layer norm over the neurons of every token."""
    x, count, back, _ = dealt(p, x)
    h = jax.nn.standardize(lax.ragged_dot(x, p["up"], count))
    return lax.ragged_dot(h, p["down"], count)[back] @ p["out"]


OWN = {
    "plain": (plain, ("up", "down")),
    "gated": (gated, ("up", "gate", "down")),
    "twice": (twice, ("up", "gate", "down", "again")),
    "checkpointed": (checkpointed, ("up", "down")),
    "normed": (normed, ("up", "down")),
}


@pytest.mark.parametrize("case", OWN)
def test_every_expert_has_neurons_of_its_own(case):
    f, names = OWN[case]
    with jax.enable_x64(True):
        p, x = made(*names), jnp.asarray(X)
        graph = ifjax.trace(f, p, x)
        groups = [g for g in graph.groups if g.size == 6]
        assert len(groups) == (2 if case == "twice" else 1)
        assert {g.batch for g in groups} == {(EXPERTS,)}
        assert graph.verify(f, p, x).ok
        rng = np.random.default_rng(2)
        orders = {g.name: np.stack([rng.permutation(6) for _ in range(3)]) for g in groups}
        np.testing.assert_allclose(f(ifjax.take(p, graph, orders), x), f(p, x), rtol=1e-10)
        kept = {name: np.sort(order[:, :3], 1) for name, order in orders.items()}
        spec = graph.spec(keep={g.name: 3 for g in groups}, method="prune")
        got = ifjax.shrink(f, spec)(ifjax.take(p, graph, kept), x)
        wide = dict(p)
        for group in groups:
            mask = np.zeros((EXPERTS, 6))
            np.put_along_axis(mask, kept[group.name], 1, 1)
            for m in group.members:
                if case == "normed":
                    continue
                along = mask[:, :, None] if m.axis == 1 else mask[:, None]
                wide[m.path] = wide[m.path] * along
        if case != "normed":
            np.testing.assert_allclose(got, f(wide, x), rtol=1e-10, atol=1e-12)
        small = ifjax.fuse_params(p, graph.spec(keep={g.name: 3 for g in groups}, solver="exact"))
        assert small["up"].shape == (EXPERTS, 4, 3)


def test_the_neurons_kept_are_those_of_every_expert_alone():
    """As if each expert were a network of two layers."""
    p, x = made("up", "down"), jnp.asarray(X)
    graph = ifjax.trace(plain, p, x)
    small = ifjax.fuse_params(p, graph.spec(keep={"up": 2}, solver="exact"))

    def alone(p, x):
        return jnp.tanh(x @ p["up"]) @ p["down"]

    for e in range(EXPERTS):
        own = {k: p[k][e] for k in ("up", "down")}
        spec = ifjax.trace(alone, own, x).spec(keep=2, solver="exact")
        for name, want in ifjax.fuse_params(own, spec).items():
            np.testing.assert_allclose(small[name][e], want, rtol=1e-5, atol=1e-6)


def scaled(p, x):
    """One vector for all experts."""
    x, count, back, _ = dealt(p, x)
    h = jnp.tanh(lax.ragged_dot(x, p["up"], count) * p["scale"][None])
    return lax.ragged_dot(h, p["down"], count)[back] @ p["out"]


def biased(p, x):
    """A vector of every expert's own, looked up: what index is used is not known."""
    x, count, back, choice = dealt(p, x)
    h = jnp.tanh(lax.ragged_dot(x, p["up"], count) + p["bias"][choice])
    return lax.ragged_dot(h, p["down"], count)[back] @ p["out"]


def shifted(p, x):
    """Tokens that came from another expert."""
    x, count, back, _ = dealt(p, x)
    h = jnp.tanh(lax.ragged_dot(x, p["up"], count))[::-1]
    return lax.ragged_dot(h, p["down"], count)[back] @ p["out"]


def rolled(p, x):
    x, count, back, _ = dealt(p, x)
    h = jnp.roll(jnp.tanh(lax.ragged_dot(x, p["up"], count)), 1, 0)
    return lax.ragged_dot(h, p["down"], count)[back] @ p["out"]


def resorted(p, x):
    x, count, back, _ = dealt(p, x)
    h = jnp.tanh(lax.ragged_dot(x, p["up"], count))[back]
    return lax.ragged_dot(h, p["down"], count) @ p["out"]


def summed(p, x):
    x, count, back, _ = dealt(p, x)
    h = jnp.cumsum(jnp.tanh(lax.ragged_dot(x, p["up"], count)), 0)
    return lax.ragged_dot(h, p["down"], count)[back] @ p["out"]


def other_sizes(p, x):
    x, count, back, _ = dealt(p, x)
    h = jnp.tanh(lax.ragged_dot(x, p["up"], count))
    return lax.ragged_dot(h, p["down"], count[::-1])[back] @ p["out"]


def mixed(p, x):
    """Attention of tokens with each other."""
    x, count, back, _ = dealt(p, x)
    h = lax.ragged_dot(x, p["up"], count)
    h = jax.nn.softmax(h @ h.T) @ h
    return lax.ragged_dot(h, p["down"], count)[back] @ p["out"]


def dense_after(p, x):
    x, count, back, _ = dealt(p, x)
    h = jnp.tanh(lax.ragged_dot(x, p["up"], count))
    return h[back] @ p["down"][0] @ p["out"]


SHARED = {
    "scaled": (scaled, ("up", "down", "scale")),
    "biased": (biased, ("up", "down", "bias")),
    **{f.__name__: (f, ("up", "down")) for f in (shifted, rolled, resorted, summed, other_sizes)},
    **{f.__name__: (f, ("up", "down")) for f in (mixed, dense_after)},
}


@pytest.mark.parametrize("case", SHARED)
def test_one_choice_for_all_experts_where_tokens_meet_others(case):
    f, names = SHARED[case]
    with jax.enable_x64(True):
        p, x = made(*names), jnp.asarray(X)
        graph = ifjax.trace(f, p, x)
        (group,) = (g for g in graph.groups if g.size == 6)
        assert group.batch == ()
        assert graph.verify(f, p, x).ok
