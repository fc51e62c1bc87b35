"""A static index that rearranges an axis is a reshape, a repeat or a concatenation in disguise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.jaxprs.rules.rearranged import Blocks, Permutation, Repeated, Shuffled, rearrangement
from tests.graph.laws import array, arrays, between, distance, hold, kept, reasons

FOUND = {
    "repeat": ([0, 0, 1, 1, 2, 2], 3, Repeated(2, whole=False)),
    "tile": ([0, 1, 2, 0, 1, 2], 3, Repeated(2, whole=True)),
    "shuffle": ([0, 4, 1, 5, 2, 6, 3, 7], 8, Shuffled(2)),
    "shuffle back": ([0, 2, 4, 6, 1, 3, 5, 7], 8, Shuffled(4)),
    "halves": ([4, 5, 6, 7, 0, 1, 2, 3], 8, Blocks(((4, 8), (0, 4)))),
    "part": ([0, 1, 4, 5], 8, Blocks(((0, 2), (4, 6)))),
    "twice a part": ([0, 1, 2, 0, 1], 8, Blocks(((0, 3), (0, 2)))),
    "a permutation": ([3, 1, 0, 2], 4, Permutation((3, 1, 0, 2))),
    "reversed": ([3, 2, 1, 0], 4, Permutation((3, 2, 1, 0))),
    "not all of them": ([3, 1, 0], 4, None),
    "one of them twice": ([3, 1, 1, 0], 4, None),
    "a hole": ([0, 0, 1, 1, 1, 1], 3, None),
    "outside": ([0, 1, 8, 9], 8, None),
    "from the end": ([-2, -1, 0, 1], 8, None),
}


@pytest.mark.parametrize("case", FOUND)
def test_how_an_index_rearranges_an_axis(case):
    index, n, want = FOUND[case]
    assert rearrangement(np.array(index), n) == want


def attention(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 3)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


INDEX = {
    "a constant": lambda: np.arange(6) // 2,
    "computed": lambda: jnp.arange(6) // 2,
    "repeated": lambda: np.repeat(np.arange(3), 2),
    "tiled": lambda: np.arange(6) % 3,
}


@pytest.mark.parametrize("take", ["index", "take"])
@pytest.mark.parametrize("case", INDEX)
def test_key_heads_that_are_shared_by_an_index_drag_their_queries(case, take):
    def f(p, x):
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        heads = INDEX[case]()
        pick = (lambda z: z[:, :, heads]) if take == "index" else lambda z: jnp.take(z, heads, 2)
        return jnp.einsum("bthd,hdc->btc", attention(q, pick(k), pick(v)), p["o"])

    p = arrays(q=(4, 6, 9), k=(4, 3, 9), v=(4, 3, 5), o=(6, 5, 2))
    graph = hold(f, p, array(2, 5, 4))
    found = {g.size: [m.path for m in g.members] for g in graph.groups}
    assert found[3] == ["k", "o", "q", "v"]  # key heads
    assert found[2] == ["o", "q"]  # the queries of each


MIDDLE = {
    "swapped halves": (lambda h: h[:, np.roll(np.arange(8), 4)], 8),
    "channel shuffle": (lambda h: h[:, np.arange(8).reshape(2, 4).T.ravel()], 8),
    "every channel twice": (lambda h: h[:, np.repeat(np.arange(8), 2)], 16),
    "all channels twice": (lambda h: h[:, np.arange(16) % 8], 16),
    "two parts": (lambda h: h[:, [0, 1, 2, 6, 7]], 5),
    "parameters too": (lambda h: jnp.tanh(h)[:, np.roll(np.arange(8), 3)], 8),
}


@pytest.mark.parametrize("case", MIDDLE)
def test_layers_that_are_rearranged_are_groups(case):
    middle, out = MIDDLE[case]
    f, p, x = between(lambda h: jnp.tanh(middle(h)), 8, out)
    graph = hold(f, p, x, inert=("a (3:6)",))  # what two parts leave out
    assert graph.groups
    assert not any("indexed" in reason for reason in reasons(graph).values())
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (p, x))
        selection = {g.name: kept(g.size) for g in graph.groups}
        spec = graph.spec(keep={n: len(k) for n, k in selection.items()})
        small = ifjax.take(p, graph, selection)
        gradient = jax.grad(lambda p: (ifjax.shrink(f, spec)(p, x) ** 2).sum())(small)
        assert distance(gradient, jax.tree.map(jnp.zeros_like, gradient)) > 1e-4
