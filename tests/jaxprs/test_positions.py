"""Experts that tokens are routed to by their scores, and codes that are looked up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax

EXPERTS = 5
SHAPES = {"in": (4, 6), "router": (6, EXPERTS), "up": (EXPERTS, 6, 7), "down": (EXPERTS, 7, 6)}
SHAPES |= {"bias": (EXPERTS,), "out": (6, 2), "codes": (EXPERTS, 6), "own": (EXPERTS, 7)}
X = np.random.default_rng(1).normal(size=(9, 4))


def made():
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=s)) for k, s in SHAPES.items()}


def experts(p, x):
    """Every expert on every token, ``[tokens, experts, width]``."""
    h = jnp.tanh(jnp.einsum("td,edn->ten", x, p["up"]) + p["own"][None])
    return jnp.einsum("ten,end->ted", h, p["down"])


def combined(p, x, route):
    x = x @ p["in"]
    logits = x @ p["router"] + p["bias"][None]
    return jnp.einsum("te,ted->td", route(logits), experts(p, x)) @ p["out"]


def top_k(logits):
    weights, chosen = lax.top_k(jax.nn.softmax(logits), 2)
    mask = jax.nn.one_hot(chosen, EXPERTS, dtype=logits.dtype)
    return jnp.einsum("tk,tke->te", weights / weights.sum(-1, keepdims=True), mask)


def after_top_k(logits):
    values, chosen = lax.top_k(logits, 3)
    mask = (chosen[..., None] == jnp.arange(EXPERTS, dtype=chosen.dtype)[None, None]).astype(
        logits.dtype
    )
    return jnp.einsum("tk,tke->te", jax.nn.softmax(values), mask)


def switch(logits):
    """One expert for a token, weighted by its probability."""
    probabilities = jax.nn.softmax(logits)
    return jax.nn.one_hot(jnp.argmax(logits, -1), EXPERTS, dtype=logits.dtype) * probabilities


def negated(logits):
    """All experts but the last of all."""
    return jnp.where(jnp.argmin(logits, -1)[:, None] != jnp.arange(EXPERTS)[None], logits, 0.0)


def twice(logits):
    """The best one, and the best of the rest."""
    first = jax.nn.one_hot(jnp.argmax(logits, -1), EXPERTS, dtype=logits.dtype)
    rest = jnp.where(first > 0, -jnp.inf, logits)
    return first + jax.nn.one_hot(jnp.argmax(rest, -1), EXPERTS, dtype=logits.dtype)


def without_repeats(logits):
    """Where two rankings agree, half of it."""
    a, b = jnp.argmax(logits, -1), jnp.argmax(jnp.tanh(logits), -1)
    mask = jax.nn.one_hot(a, EXPERTS, dtype=logits.dtype)
    return mask * jnp.where(a == b, 0.5, 1.0)[:, None].astype(logits.dtype)


def masked(f):
    return lambda p, x: combined(p, x, f)


def gathered(p, x):
    """The weights of the chosen experts alone."""
    x = x @ p["in"]
    weights, chosen = lax.top_k(jax.nn.softmax(x @ p["router"] + p["bias"][None]), 2)
    h = jnp.tanh(jnp.einsum("td,tkdn->tkn", x, p["up"][chosen]) + p["own"][chosen])
    return jnp.einsum("tk,tkn,tknd->td", weights, h, p["down"][chosen]) @ p["out"]


def taken(p, x):
    """By `jnp.take`, after a call that chooses."""
    x = x @ p["in"]
    choose = jax.jit(lambda scores: jnp.argmax(scores, axis=-1))
    return jnp.tanh(jnp.take(p["codes"], choose(x @ p["router"]), axis=0)) @ p["out"]


def nearest_code(p, x):
    """Vector quantisation."""
    x = x @ p["in"]
    distance = (x**2).sum(-1, keepdims=True) - 2 * x @ p["codes"].T
    distance = distance + (p["codes"] ** 2).sum(-1)[None]
    return p["codes"][jnp.argmin(distance, -1)] @ p["out"]


CHOOSING = {
    **{f.__name__: masked(f) for f in (top_k, after_top_k, switch, negated, twice)},
    "without repeats": masked(without_repeats),
    "gathered": gathered,
    "taken": taken,
    "nearest code": nearest_code,
    "checkpointed": jax.checkpoint(masked(top_k)),
}


@pytest.mark.parametrize("case", CHOOSING)
def test_experts_are_cut_by_name(case):
    """As if the others had never been there; and their order says nothing."""
    f = CHOOSING[case]
    with jax.enable_x64(True):
        p, x = made(), jnp.asarray(X)
        graph = ifjax.trace(f, p, x)
        (group,) = (g for g in graph.groups if g.size == EXPERTS)
        assert (group.kind, group.exact) == ("free", False)
        assert graph.verify(f, p, x).ok
        assert group.name not in graph.spec(0.5).structure.widths
        order = np.random.default_rng(2).permutation(EXPERTS)
        np.testing.assert_allclose(f(ifjax.take(p, graph, {group.name: order}), x), f(p, x))
        kept = np.array([0, 2, 3])
        small = ifjax.take(p, graph, {group.name: kept})
        got = ifjax.shrink(f, graph.spec(keep={group.name: 3}, method="prune"))(small, x)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "EXPERTS", 3)
            want = f(small, x)
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_at_least_as_many_experts_stay_as_a_token_goes_to():
    p, x = made(), jnp.asarray(X)
    graph = ifjax.trace(CHOOSING["after_top_k"], p, x)
    (group,) = (g for g in graph.groups if g.size == EXPERTS)
    spec = graph.spec(keep={group.name: 2}, method="prune")
    with pytest.raises(ValueError, match=r"takes the 3 largest .* cuts to 2: keep at least 3"):
        ifjax.shrink(CHOOSING["after_top_k"], spec)(ifjax.fuse_params(p, spec), x)


def ordered_by(p, x):
    """The number of an expert is a number."""
    return combined(p, x, lambda s: s * jnp.argmax(s, -1)[:, None].astype(s.dtype))


def next_to(p, x):
    return combined(p, x, lambda s: jax.nn.one_hot((jnp.argmax(s, -1) + 1) % EXPERTS, EXPERTS))


def compared(p, x):
    """The first two experts are others."""
    return combined(p, x, lambda s: jnp.where(jnp.argmax(s, -1)[:, None] < 2, s, -s))


def up_to(p, x):
    return combined(
        p, x, lambda s: jnp.where(jnp.arange(EXPERTS)[None] <= jnp.argmax(s, -1)[:, None], s, 0.0)
    )


def third(p, x):
    return combined(p, x, lambda s: jnp.where(jnp.argmax(s, -1)[:, None] == 2, s, 0.0))


def told(p, x):
    scores = x @ p["in"] @ p["router"]
    return jnp.argmax(scores, -1), experts(p, x @ p["in"]).sum(1) @ p["out"] * scores.sum()


def scanned(p, x):
    def step(total, s):
        return total + jax.nn.one_hot(s, EXPERTS, dtype=x.dtype), None

    scores = x @ p["in"] @ p["router"]
    zero = jnp.zeros(EXPERTS, x.dtype)
    total, _ = lax.scan(step, zero, jnp.argmax(scores, -1))
    return combined(p, x, lambda s: s * total[None])


def negative(p, x):
    """From the end."""
    x = x @ p["in"]
    return p["codes"][-1 - jnp.argmax(x @ p["router"], -1)] @ p["out"]


def ranked(p, x):
    """The two largest scores, whosever they are."""
    x = x @ p["in"]
    return lax.top_k(x @ p["router"], 2)[0] @ p["out"][:2] + x.sum()


def more_classes(p, x):
    """Two classes that nobody is ever of."""
    return combined(p, x, lambda s: s + jax.nn.one_hot(jnp.argmax(s, -1), EXPERTS + 2)[:, :EXPERTS])


def larger_table(p, x):
    """A table of which only the first rows are looked up."""
    x = x @ p["in"]
    return jnp.concatenate([p["codes"], p["in"]])[jnp.argmax(x @ p["router"], -1)] @ p["out"]


NUMBERS = (
    more_classes,
    larger_table,
    ranked,
    ordered_by,
    next_to,
    compared,
    up_to,
    third,
    told,
    scanned,
    negative,
)


@pytest.mark.parametrize("f", NUMBERS)
def test_numbers_of_experts_that_are_read_pin_them(f):
    p, x = made(), jnp.asarray(X, jnp.float32)
    graph = ifjax.trace(f, p, x)
    assert all(g.size != EXPERTS or g.members[0].path != "router" for g in graph.groups)
    reasons = {a.reason for a in graph.pinned if (a.path, a.axis) == ("router", 1)}
    assert any("searched" in r or "counted" in r or "largest" in r for r in reasons), reasons
    assert graph.verify(f, p, x).ok
