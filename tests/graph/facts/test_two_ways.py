"""One function written in two ways has one set of facts, whichever primitives it is made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import ifjax
from tests.graph.laws import array, arrays

ONE = np.array([4], np.int32)


def named(h):
    return checkpoint_name(h, "h")


def barrier(h):
    return lax.optimization_barrier((1.0, h))[1]


def placed(h):
    return jax.device_put(h)


def sharded(h):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec()
    return lax.with_sharding_constraint(h, jax.sharding.NamedSharding(mesh, spec))


def precise(h):
    return lax.reduce_precision(h, 11, 52)


SAME = [named, barrier, placed, sharded, precise]


def mean(p, x, same=lambda h: h):
    h = x @ p["a"]
    return (h - same(h.sum(-1, keepdims=True)) / 8) @ p["b"]


def batch_norm(p, x, same=lambda h: h):
    h = same(x @ p["a"])
    slope = p["scale"] / jnp.sqrt(p["var"] + 1e-5)
    return ((h - p["mean"]) * slope + p["offset"]) @ p["b"]


def stacked(p, x, same=lambda h: h):
    h = same(jnp.einsum("td,ldh->lth", x, p["a"]))
    return jnp.einsum("lth,lhk->ltk", jnp.tanh(h), p["b"])


def indexed(p, x, same=lambda i: i):
    h = jnp.tanh(x @ p["a"])
    return lax.dynamic_slice(h, (0, same(jnp.int32(2))), (4, 6)) @ p["c"]


VECTORS = dict.fromkeys(("mean", "var", "scale", "offset"), (8,))
DENSE = {"a": (3, 8), "b": (8, 2), "c": (6, 2)}
STACKED = {"a": (5, 3, 8), "b": (5, 8, 2)}


def facts(f, shapes):
    """All that a graph says of a function."""
    graph = ifjax.trace(f, arrays(**shapes), array(4, 3, seed=9))
    groups = {(g.name, g.size, g.kind, g.batch, g.exact, g.members) for g in graph.groups}
    return groups, graph.structure.norms, graph.literals


@pytest.mark.parametrize("same", SAME)
@pytest.mark.parametrize(
    ("f", "shapes"),
    [(mean, DENSE), (batch_norm, DENSE | VECTORS), (stacked, STACKED), (indexed, DENSE)],
    ids=["mean", "batch norm", "stacked", "indexed"],
)
def test_what_leaves_an_array_as_it_is_says_nothing(f, shapes, same):
    if f is indexed and same is precise:
        pytest.skip("not of integers")
    plain = facts(f, shapes)
    assert plain[0], "some groups"
    assert facts(lambda p, x: f(p, x, same), shapes) == plain


def through(call):
    @call
    def part(h, i):
        return lax.dynamic_slice(h, (0, i), (4, 6))

    if call is jax.custom_vjp:
        part.defvjp(lambda h, i: (part(h, i), None), lambda _, g: (g, None))
    if call is jax.custom_jvp:
        part.defjvp(lambda primals, tangents: (part(*primals), part(tangents[0], primals[1])))
    return lambda p, x: part(jnp.tanh(x @ p["a"]), 2) @ p["c"]


@pytest.mark.parametrize("call", [jax.jit, jax.custom_jvp, jax.custom_vjp, jax.checkpoint])
def test_a_static_index_is_known_inside_of_every_call(call):
    assert facts(through(call), DENSE) == facts(indexed, DENSE)


def ragged(x, w):
    return lax.ragged_dot(x, w[None], ONE)


def window(x, w):
    """A convolution over one position."""
    k, h = w[None], x[:, None]
    return lax.conv_general_dilated(h, k, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))[
        :, 0
    ]


def transposed(x, w):
    return x @ w.T.T


PRODUCTS = {
    "layers": lambda dot: lambda p, x: dot(jnp.tanh(dot(x, p["a"])), p["b"]),
    "batch norm": lambda dot: lambda p, x: batch_norm_of(dot(x, p["a"]), p) @ p["b"],
    "queries and keys": lambda dot: lambda p, x: dot(x, p["a"]) @ dot(x, p["b"].T).T,
    "depthwise": lambda dot: lambda p, x: x @ p["a"] @ p["b"] + dot(x[:, :1], p["a"][:1]) @ p["b"],
}


def batch_norm_of(h, p):
    return (h - p["mean"]) * (p["scale"] / jnp.sqrt(p["var"] + 1e-5)) + p["offset"]


@pytest.mark.parametrize("dot", [ragged, window, transposed])
@pytest.mark.parametrize("name", PRODUCTS)
def test_contractions_are_products(name, dot):
    if name == "batch norm" and dot is window:
        pytest.skip("a norm of another shape than the convolution is not folded")
    shapes = {"a": (3, 8), "b": (8, 3)} | VECTORS
    plain = facts(PRODUCTS[name](jnp.matmul), shapes)
    assert plain[0]
    assert facts(PRODUCTS[name](dot), shapes) == plain


def product_of_activations(p, x):
    return (x @ p["a"]) @ jnp.tanh(x.sum(0) @ p["a"])[:, None]


def product_by_a_window(p, x):
    return window(x @ p["a"], jnp.tanh(x.sum(0) @ p["a"])[:, None])


def pooled(p, x):
    h = lax.reduce_window(jnp.tanh(x @ p["a"]), 0.0, lax.add, (2, 1), (2, 1), "VALID")
    return h.sum(-1)


def summed(p, x):
    return jnp.tanh(x @ p["a"]).reshape(2, 2, 8).sum(1).sum(-1)


def maximal(scan):
    def f(p, x):
        q, k = (scan(x @ w) for w in (p["a"], p["b"].T))
        return q @ k.T

    return f


def subtracted(p, x):
    return ((x @ p["a"]).at[0].subtract(p["s"])) @ p["b"]


def added(p, x):
    return ((x @ p["a"]).at[0].add(p["s"])) @ p["b"]


@pytest.mark.parametrize(
    ("f", "g", "shapes"),
    [
        (product_by_a_window, product_of_activations, {"a": (3, 8)}),
        (pooled, summed, {"a": (3, 8)}),
        (maximal(lax.cummax), maximal(lax.cumsum), {"a": (3, 8), "b": (8, 3)}),
        (maximal(lambda h: lax.sort(h, 0)), maximal(lax.cumsum), {"a": (3, 8), "b": (8, 3)}),
        (subtracted, added, {"a": (3, 8), "b": (8, 2), "s": (8,)}),
    ],
    ids=["dynamic kernel", "pool", "maxima", "sorted", "subtracted"],
)
def test_others_alike(f, g, shapes):
    plain = facts(g, shapes)
    assert plain[0]
    assert facts(f, shapes) == plain


def test_a_norm_after_experts_is_folded_into_each_of_them():
    """Two experts of the same weights: neurons are as far from each other as in one kernel."""
    sizes = np.array([1, 3], np.int32)

    def experts(p, x):
        h = batch_norm_of(lax.ragged_dot(x, p["a"], sizes), p)
        return lax.ragged_dot(h, p["b"], sizes)

    def dense(p, x):
        return batch_norm_of(x @ p["a"], p) @ p["b"]

    x, p = array(4, 3), arrays(a=(3, 8), b=(8, 2), **VECTORS)
    p["var"] = abs(p["var"])
    twice = p | {k: np.stack([p[k], p[k]]) for k in "ab"}

    def maps(f, p):
        return ifjax.transport_maps(p, ifjax.trace(f, p, x).spec(0.5))["a"].map

    np.testing.assert_allclose(maps(experts, twice), maps(dense, p), atol=1e-5)
    other = {"scale": p["scale"][::-1].copy()}
    assert np.abs(maps(dense, p | other) - maps(dense, p)).max() > 0.1
    np.testing.assert_allclose(maps(experts, twice | other), maps(dense, p | other), atol=1e-5)
