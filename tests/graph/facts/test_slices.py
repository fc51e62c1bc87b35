"""Stacks that are read slice by slice: a choice of its own for every slice that meets no other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, hold

pytestmark = pytest.mark.promotes(ranks="its networks add vectors to matrices")

X = array(2, 5, 4)
P = arrays(up=(3, 4, 7), bias=(3, 7), down=(3, 7, 4))


def block(x, w):
    return x + jnp.tanh(x @ w["up"] + w["bias"]) @ w["down"]


def looped(read):
    """Layers that are read one by one."""

    def f(p, x):
        for w in read(p):
            x = block(x, w)
        return x.sum(1)

    return f


def each(take):
    return lambda p: [jax.tree.map(lambda w, i=i: take(w, i), p) for i in range(3)]


def columns(take):
    def read(p):
        taken = {k: take(w) for k, w in p.items()}
        return [{k: parts[i] for k, parts in taken.items()} for i in range(3)]

    return read


SPELLINGS = {
    "index": each(lambda w, i: w[i]),
    "from the end": each(lambda w, i: w[i - 3]),
    "take": each(lambda w, i: jnp.take(w, i, 0)),
    "an index array": each(lambda w, i: w[np.array([i])][0]),
    "dynamic index": each(lambda w, i: lax.dynamic_index_in_dim(w, i, 0, keepdims=False)),
    "unpacked": columns(list),
    "unstack": columns(jnp.unstack),
    "split": columns(lambda w: [part[0] for part in jnp.split(w, 3)]),
    "scaled and cast": each(lambda w, i: (2 * w).astype(jnp.float32)[i]),
    "one layer twice": lambda p: [jax.tree.map(lambda w, i=i: w[i], p) for i in (0, 1, 2, 0)],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling(name):
    f = looped(SPELLINGS[name])
    if name in ("index", "one layer twice"):
        graph = hold(f, P, X, groups={"up": 7})
    else:
        graph = ifjax.trace(f, P, X)
    assert [(g.size, g.batch, g.along) for g in graph.groups] == [(7, (3,), ("bias[0]",))]


def test_inside_of_calls():
    def f(p, x):
        inner = jax.jit(lambda x, p, i: block(x, jax.tree.map(lambda w: w[i], p)), static_argnums=2)
        for i in range(2):
            x = inner(x, p, i)
        return jax.checkpoint(lambda x, p: block(x, jax.tree.map(lambda w: w[2], p)))(x, p).sum(1)

    assert [g.batch for g in hold(f, P, X).groups] == [(3,)]


def test_slices_of_what_is_computed_from_a_whole_stack():
    def f(p, x):
        h = jnp.tanh(jnp.einsum("btc,lcf->btlf", x, p["up"]) + p["bias"])
        return sum(h[:, :, i] @ p["down"][i] for i in range(3)).sum(1)

    assert [g.batch for g in hold(f, P, X).groups] == [(3,)]


def test_layers_of_layers_and_heads():
    def f(p, x):
        for i in range(2):
            for j in range(3):
                x = x + jnp.tanh(x @ p["up"][i, j]) @ p["down"][i][j]
        for i in range(2):
            h = jnp.einsum("btc,chd->bthd", x, p["v"][i])
            x = x + jnp.einsum("bthd,hdc->btc", jnp.tanh(h), p["o"][i])
        return x.sum(1)

    p = arrays(up=(2, 3, 4, 6), down=(2, 3, 6, 4), v=(2, 4, 3, 5), o=(2, 3, 5, 4))
    graph = hold(f, p, X)
    assert {g.size: g.batch for g in graph.groups} == {6: (2, 3), 3: (2,), 5: (2, 3)}


def shared_scale(p, x):
    for i in range(3):
        x = x + jnp.tanh(x @ p["up"][i] * p["bias"][1]) @ p["down"][i]
    return x.sum(1) + p["bias"].sum()


def crossed(p, x):
    for i in range(3):
        x = x + jnp.tanh(x @ p["up"][i] + p["bias"][i]) @ p["down"][2 - i]
    return x.sum(1)


def rolled(p, x):
    return looped(SPELLINGS["index"])(p | {"down": jnp.roll(p["down"], 1, 0)}, x)


def reordered(p, x):
    return looped(SPELLINGS["index"])(p | {"up": p["up"][np.array([1, 0, 2])]}, x)


def cumulated(p, x):
    return looped(SPELLINGS["index"])(p | {"up": jnp.cumsum(p["up"], 0)}, x)


def mixed(p, x):
    up = jnp.einsum("lcf,lm->mcf", p["up"], jnp.arange(1.0, 10).reshape(3, 3) % 4)
    return looped(SPELLINGS["index"])(p | {"up": up}, x)


def summed(p, x):
    h = 0
    for i in range(3):
        h = h + jnp.tanh(x @ p["up"][i] + p["bias"][i])
        x = x + h @ p["down"][i]
    return x.sum(1)


def compared(p, x):
    h = [jnp.tanh(x @ p["up"][i] + p["bias"][i]) for i in range(3)]
    gram = jnp.einsum("btf,bsf->bts", h[0], h[1])
    return sum(h[i] @ p["down"][i] for i in range(3)).sum(1) + gram.sum()


def chosen(p, x):
    x = lax.fori_loop(0, 3, lambda i, x: block(x, jax.tree.map(lambda w: w[i], p)), x)
    return looped(SPELLINGS["index"])(p, x)


def scanned_too(p, x):
    x, _ = lax.scan(lambda x, w: (block(x, w), None), x, p)
    return looped(each(lambda w, i: w[(i + 1) % 3]))(p, x)


@pytest.mark.parametrize(
    "f", [shared_scale, rolled, reordered, cumulated, mixed, summed, chosen, scanned_too]
)
def test_slices_that_meet_are_tied(f):
    (group,) = (g for g in hold(f, P, X).groups if g.size == 7)
    assert group.batch == ()


@pytest.mark.parametrize(("f", "batch"), [(crossed, (3,)), (compared, (2,))])
def test_slices_of_which_some_meet(f, batch):
    """Other places in other stacks; two of three that are compared."""
    (group,) = (g for g in hold(f, P, X).groups if g.size == 7)
    assert group.batch == batch


def test_positions_that_are_values_tie():
    """Which neuron is largest in one layer says which one is read in another."""

    def f(p, x):
        best = jnp.argmax(x @ p["up"][0] + p["bias"][0], -1)
        h = jnp.tanh(x @ p["up"][1] + p["bias"][1])
        h = h + jnp.take_along_axis(h, best[..., None], -1)
        return (h @ p["down"][1] + jnp.tanh(x @ p["up"][0]) @ p["down"][0]).sum(1)

    p = arrays(up=(2, 4, 7), bias=(2, 7), down=(2, 7, 4))
    assert all(not g.batch for g in hold(f, p, X, power=False).groups)
