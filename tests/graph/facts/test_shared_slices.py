"""Queries, keys and values in one array: the values' dimensions are cut by themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, hold

pytestmark = pytest.mark.promotes(ranks="its networks add vectors to matrices")

C, N, D = 5, 2, 4
X = array(3, C)
SHAPES = {"qkv": (C, 3, N, D), "out": (N, D, C)}
DIMS = "qkv (head_dim)"


def attend(q, k, v, out):
    weight = jax.nn.softmax(jnp.einsum("tnd,snd->nts", q, k))
    return jnp.einsum("nts,snd,ndo->to", weight, v, out)


def projected(p, x):
    return jnp.einsum("tc,cknd->tknd", x, p["qkv"])


def attention(read, project=projected):
    return lambda p, x: attend(*read(project(p, x)), p["out"])


def index(z):
    return z[:, 0], z[:, 1], z[:, 2]


def merged(p, x):
    """A flat kernel, split into axes before queries, keys and values are."""
    return (x @ p["qkv"]).reshape(-1, 3, N, D)


def interleaved(p, x):
    return jnp.moveaxis((x @ p["qkv"]).reshape(-1, N, 3, D), 2, 1)


def leading(p, x):
    return jnp.stack([jnp.einsum("tc,cnd->tnd", x, w) for w in p["qkv"]], 1)


def each_alone(p, x):
    q, k, v = (jnp.einsum("tc,cnd->tnd", x, p["qkv"][i]) for i in range(3))
    return attend(q, k, v, p["out"])


def with_bias(p, x):
    return projected(p, x) + p["bias"]


SPELLINGS = {
    "index": attention(index),
    "moved": attention(lambda z: jnp.moveaxis(z, 1, 0)),
    "split": attention(lambda z: [y[:, 0] for y in jnp.split(z, 3, 1)]),
    "unstack": attention(lambda z: jnp.unstack(z, axis=1)),
    "slices": attention(lambda z: [jnp.squeeze(z[:, i : i + 1], 1) for i in range(3)]),
    "take": attention(lambda z: [jnp.take(z, i, 1) for i in range(3)]),
    "the kernel": attention(
        tuple, lambda p, x: jnp.einsum("tc,kcnd->ktnd", x, jnp.moveaxis(p["qkv"], 1, 0))
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling(name):
    trace = hold if name in ("index", "split") else ifjax.trace
    graph = trace(SPELLINGS[name], arrays(**SHAPES), X)
    group = graph.structure.group[DIMS]
    assert (group.batch, group.along) == ((2, N), ("qkv[1]", "qkv"))
    assert graph.structure.group["qkv"].batch == ()  # heads are shared by all three


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (attention(index, with_bias), SHAPES | {"bias": (3, N, D)}),
        (attention(index, merged), {"qkv": (C, 3 * N * D), "out": (N, D, C)}),
        (attention(index, interleaved), {"qkv": (C, 3 * N * D), "out": (N, D, C)}),
        (each_alone, {"qkv": (3, C, N, D), "out": (N, D, C)}),
    ],
)
def test_every_layout(f, shapes):
    graph = hold(f, arrays(**shapes), X)
    assert [g.batch for g in graph.groups if g.size == D] == [(2, N)]


def test_keys_and_values_beside_queries():
    def f(p, x):
        k, v = jnp.einsum("tc,cknd->ktnd", x, p["kv"])
        return attend(jnp.einsum("tc,cnd->tnd", x, p["q"]), k, v, p["out"])

    graph = hold(f, arrays(q=(C, N, D), kv=(C, 2, N, D), out=(N, D, C)), X)
    assert [g.batch for g in graph.groups] == [(), (2, N)]


def test_norms_and_rotary_pairs_of_queries_and_keys():
    """A leaf of queries and keys alone holds their entry; pairs are pairs of the values' too."""

    def turned(x, frequency):
        a, b = jnp.split(x, 2, -1)
        angle = jnp.arange(3.0)[:, None, None] * frequency
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def f(p, x):
        q, k, v = index(projected(p, x))
        q = q * lax.rsqrt(jnp.square(q).mean(-1, keepdims=True) + 0.1)
        return attend(turned(q, p["f"]), turned(k, p["f"]), v, p["out"])

    graph = hold(f, arrays(f=(D // 2,), **SHAPES), X)
    assert {g.size * 10 + len(g.members): g.batch for g in graph.groups} == {22: (), 23: (2,)}


@pytest.mark.parametrize("scan", [False, True])
def test_layers_of_it(scan):
    def f(p, x):
        def step(x, w):
            return x + SPELLINGS["index"](w, x), None

        if scan:
            return lax.scan(step, x, p)[0]
        for i in range(4):
            x, _ = step(x, jax.tree.map(lambda w, i=i: w[i], p))
        return x

    graph = hold(f, arrays(**{k: (4, *s) for k, s in SHAPES.items()}), X)
    assert [g.batch for g in graph.groups] == [(4,), (2, 4, N)]


def added(p, x):
    q, k, v = index(projected(p, x))
    return attend(q, k, v + k, p["out"])


def scaled(p, x):
    q, k, v = index(projected(p, x) * p["scale"])
    return attend(q, k, v, p["out"])


def averaged(p, x):
    z = projected(p, x)
    return attention(index, lambda p, x: z + z.mean(1, keepdims=True))(p, x)


def rolled(p, x):
    return attention(index, lambda p, x: z[:, ::-1] + z if (z := projected(p, x)).size else z)(p, x)


def mixed(p, x):
    turn = np.arange(9.0).reshape(3, 3) % 4
    return attention(index, lambda p, x: jnp.einsum("tknd,kl->tlnd", projected(p, x), turn))(p, x)


def related(p, x):
    """Values are compared with queries as keys are."""
    q, k, v = index(projected(p, x))
    return attend(q, k, v, p["out"]) + jnp.einsum("tnd,snd->ts", q, v) @ x


@pytest.mark.parametrize("f", [added, scaled, averaged, rolled, mixed, related])
def test_values_that_meet_queries_or_keys_are_tied(f):
    p = arrays(scale=(D,), **SHAPES) if f is scaled else arrays(**SHAPES)
    assert [g.batch for g in hold(f, p, X).groups if g.size == D] in ([(N,)], [()])


def test_a_state_ties():
    """A cache of keys and values may come back in the other's place."""

    def f(p, x, cache):
        q, k, v = index(projected(p, x))
        k, v = (jnp.concatenate(pair) for pair in zip(cache, (k, v), strict=True))
        return attend(q, k, v, p["out"]), (k, v)

    cache = tuple(jnp.zeros((2, N, D)) for _ in range(2))
    graph = ifjax.trace(f, arrays(**SHAPES), X, cache, state="*1/*")
    assert {g.size: g.batch for g in graph.groups} == {N: (), D: (N,)}


def test_where_padding_would_be_large():
    """Every layer has an output of its own: each would be copied for every layer."""

    def f(p, x):
        for up, down in zip(p["up"], p["down"], strict=True):
            x = x + jnp.tanh(x @ up) @ down
        return x

    for n, batch in ((3, (3,)), (12, ())):
        p = {"up": array(n, C, 4), "down": [array(4, C, seed=i) for i in range(n)]}
        assert [g.batch for g in ifjax.trace(f, p, X).groups] == [batch]


def attention_by_hand(qkv, out, x):
    """Of one head after the other, in numpy."""
    result = 0
    for n in range(N):
        q, k, v = (x @ qkv[i][:, n] for i in range(3))
        weight = np.exp(q @ k.T)
        result = result + weight / weight.sum(1, keepdims=True) @ v @ out[n]
    return result


def test_a_cut_network_is_the_one_that_is_cut_by_hand():
    rng = np.random.default_rng(0)
    p = arrays(**SHAPES)
    with jax.enable_x64(True):
        graph = ifjax.trace(SPELLINGS["index"], p, X)
        spec = graph.spec(keep={DIMS: 3})
        shrunk = jax.jit(ifjax.shrink(SPELLINGS["index"], spec))
        for _ in range(3):
            kept = np.array([[rng.permutation(D)[:3] for _ in range(N)] for _ in range(2)])
            got = shrunk(ifjax.take(p, graph, {DIMS: kept}), X)
            qkv = [
                np.stack([p["qkv"][:, i, n, kept[i // 2, n]] for n in range(N)], 1)
                for i in range(3)
            ]
            out = [p["out"][n, kept[1, n]] for n in range(N)]
            np.testing.assert_allclose(got, attention_by_hand(qkv, out, X), atol=1e-12)


def test_heads_are_cut_in_all_three():
    p = arrays(**SHAPES)
    with jax.enable_x64(True):
        graph = ifjax.trace(SPELLINGS["index"], p, X)
        kept = np.array([[[2, 3], [0, 1]], [[0, 1], [2, 3]]])
        small = ifjax.take(p, graph, {"qkv": np.array([1]), DIMS: kept})
    np.testing.assert_array_equal(small["qkv"][:, :2, 0], p["qkv"][:, :2, 1, :2])
    np.testing.assert_array_equal(small["qkv"][:, 2, 0], p["qkv"][:, 2, 1, 2:])
    np.testing.assert_array_equal(small["out"], p["out"][1:, 2:])
