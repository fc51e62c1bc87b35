"""Values in one array with queries and keys are treated as those in an array of their own."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ifjax
from tests.graph.laws import array, arrays

pytestmark = pytest.mark.promotes(ranks="its networks add vectors to matrices")

C, N, D = 5, 2, 6
X = jnp.asarray(array(4, C), jnp.float32)
JOINED, ALONE = "qkv (head_dim)", ("q (head_dim)", "v")  # one group with two entries; two groups


def attend(q, k, v, out):
    weight = jax.nn.softmax(jnp.einsum("tnd,snd->nts", q, k))
    return jnp.einsum("nts,snd,ndo->to", weight, v, out)


def fused(p, x):
    return attend(*(jnp.einsum("tc,cknd->ktnd", x, p["qkv"]) + p["bias"][:, None]), p["out"])


def separate(p, x):
    return attend(*(jnp.einsum("tc,cnd->tnd", x, w) + b for w, b in p["qkv"]), p["out"])


def parameters(**shapes):
    shapes = shapes or {"qkv": (C, 3, N, D), "bias": (3, N, D), "out": (N, D, C)}
    return {k: jnp.asarray(v / 2, jnp.float32) for k, v in arrays(**shapes).items()}


def split(p):
    pairs = [{"w": p["qkv"][:, i], "b": p["bias"][i]} for i in range(3)]
    return {"q": pairs[0], "k": pairs[1], "v": pairs[2], "out": p["out"]}


def apart(p, x):
    return separate({"qkv": [(p[n]["w"], p[n]["b"]) for n in "qkv"], "out": p["out"]}, x)


P = parameters()
GRAPH = ifjax.trace(fused, P, X)
SEPARATE = ifjax.trace(apart, split(P), X)
WANTED = {g.name: 0.5 for g in SEPARATE.groups if g.size == D}


def close(got, want, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want)


METHODS = {
    "exact": {"solver": "exact", "heads": "fuse"},
    "nearest, preserving": {"solver": "nearest", "heads": "fuse", "merge": "preserving"},
    "pruned": {"method": "prune"},
}


@pytest.mark.parametrize("name", METHODS)
def test_they_are_fused_like_separate_ones(name):
    spec, other = GRAPH.spec({JOINED: 0.5}, **METHODS[name]), SEPARATE.spec(WANTED, **METHODS[name])
    found = ifjax.transport_maps(P, spec)[JOINED]
    want = ifjax.transport_maps(split(P), other)
    assert found.map.shape == (2, N, D, D // 2)
    assert not np.array_equal(found.targets[0], found.targets[1])
    close([found.map[i] for i in range(2)], [want[g].map for g in WANTED], 1e-5)
    got = ifjax.fuse_params(P, spec)
    close(split(got), ifjax.fuse_params(split(P), other), 1e-5)
    close(ifjax.shrink(fused, spec)(got, X), ifjax.shrink(apart, other)(split(got), X), 1e-5)


@pytest.mark.parametrize("metric", ["taylor", "fisher"])
def test_statistics_of_values(metric):
    """Those of queries and keys are of one leaf here, of two there."""
    inputs = ((X,), jnp.ones((4, C)))
    found = []
    for f, p, graph, groups in (
        (fused, P, GRAPH, [JOINED]),
        (apart, split(P), SEPARATE, [*WANTED]),
    ):
        loss = lambda out, y: jnp.square(out - y).mean()  # noqa: E731
        stats = ifjax.collect_stats(f, p, graph, [inputs], loss_fn=loss, metrics=[metric])
        spec = graph.spec(dict.fromkeys(groups, 0.5), importance=metric)
        maps = ifjax.transport_maps(p, spec, stats=stats)
        found.append(maps[groups[-1]].targets)
    joined, values = found
    assert joined.shape == (2, N, D // 2)
    np.testing.assert_array_equal(joined[1], values)


def test_duplicates_merge_without_change():
    """Of queries and keys others than of values: every second neuron is the one before it."""

    def doubled(w):
        w = jnp.repeat(w[..., : D // 2], 2, -1)
        return w.at[:, 2].set(w[:, 2, :, np.array([0, 1, 2, 0, 1, 2])].transpose(1, 2, 0))

    p = P | {"qkv": doubled(P["qkv"]), "bias": doubled(P["bias"][None])[0]}
    spec = GRAPH.spec({JOINED: 0.5}, heads="fuse", merge="preserving", solver="nearest")
    first = np.array([[[1, 0] * 3] * N, [[1, 1, 1, 0, 0, 0]] * N], np.float32)
    small = ifjax.fuse_params(p, spec, scores={JOINED: jnp.asarray(first)})

    def values_alone(p, x):  # the merged queries and keys count twice in their products
        q, k, v = jnp.einsum("tc,cknd->ktnd", x, p["qkv"]) + p["bias"][:, None]
        return attend(q * (D / q.shape[-1]) ** 0.5, k * (D / k.shape[-1]) ** 0.5, v, p["out"])

    close(values_alone(small, X), fused(p, X), 1e-5)


def test_in_place_state_and_saved():
    spec = GRAPH.spec({JOINED: 0.5}, heads="fuse")
    small, maps = ifjax.fuse_params(P, spec), ifjax.transport_maps(P, spec)
    close(
        fused(ifjax.fuse_params(P, spec, keep_shape=True), X), ifjax.shrink(fused, spec)(small, X)
    )
    state = ifjax.fuse_tree(optax.adam(1e-3).init(P), spec, maps)
    assert jax.tree.map(jnp.shape, state[0].mu) == jax.tree.map(jnp.shape, small)
    assert ifjax.FusionSpec.from_json(json.dumps(json.loads(spec.to_json()))) == spec


def test_cuts_after_cuts():
    first = GRAPH.spec({JOINED: 0.5})
    small = ifjax.fuse_params(P, first)
    then = ifjax.onward(GRAPH, first).spec({JOINED: 1 / 3})
    smaller = ifjax.fuse_params(small, then)
    both = ifjax.shrink(fused, ifjax.compose(then, first))(smaller, X)
    close(both, ifjax.shrink(ifjax.shrink(fused, first), then)(smaller, X))
    assert smaller["qkv"].shape == (C, 3, N, 2)


def test_two_functions():
    """What both leave apart stays so; where one ties values to keys they are tied."""

    def tied(p, x):
        q, k, v = jnp.einsum("tc,cknd->ktnd", x, p["qkv"]) + p["bias"][:, None]
        return attend(q, k, v + k, p["out"])

    other = ifjax.trace(tied, P, X)
    assert [g.batch for g in (GRAPH & GRAPH).groups] == [(), (2, N)]
    assert (GRAPH & GRAPH).structure.leaves == GRAPH.structure.leaves
    for both in (GRAPH & other, other & GRAPH):
        assert [g.batch for g in both.groups] == [(), (N,)]


def test_a_permuted_copy_is_recovered():
    rng = np.random.default_rng(0)
    order = np.array([[rng.permutation(D) for _ in range(N)] for _ in range(2)])
    other = ifjax.take(P, GRAPH, {JOINED: order, "qkv": np.array([1, 0])})
    assert not np.allclose(other["qkv"], P["qkv"])
    close(fused(other, X), fused(P, X))
    close(ifjax.fuse_models([P, other], GRAPH), P)


@pytest.mark.parametrize("scan", [False, True])
def test_compress_solves_as_for_separate_ones(scan):
    """In the layers of a scan too."""

    def steps(f, layer):
        def g(p, x):
            if isinstance(p, list):
                for w in p:
                    x = x + f(w, x)
                return x
            return lax.scan(lambda x, w: (x + f(w, x), None), x, p)[0]

        return g if layer else f

    shapes = {"qkv": (2, C, 3, N, D), "bias": (2, 3, N, D), "out": (2, N, D, C)}
    p = parameters(**shapes) if scan else P
    layers = [jax.tree.map(lambda w, i=i: w[i], p) for i in range(2)] if scan else [p]
    q = [split(w) for w in layers] if scan else split(p)
    inputs = [jnp.asarray(array(24, C, seed=i), jnp.float32) for i in range(4)]
    found = []
    for f, tree in ((steps(fused, scan), p), (steps(apart, scan), q)):
        graph = ifjax.trace(f, tree, inputs[0])
        dims = {g.name: 0.5 for g in graph.groups if g.size == D}
        spec = graph.spec(dims, method="prune", importance="reconstruction")
        small, report = ifjax.compress(f, tree, spec, inputs)
        found.append((small, [report.kept[name] for name in dims]))
    (got, [kept]), (want, each) = found
    assert kept.shape == ((2, 2, N, D // 2) if scan else (2, N, D // 2))
    np.testing.assert_array_equal(kept.reshape(-1, N, D // 2), np.stack(each))
    small = [jax.tree.map(lambda w, i=i: w[i], got) for i in range(2)] if scan else [got]
    close([split(w) for w in small], want if scan else [want], 1e-5)


def test_compress_where_data_moves_along_other_axes():
    """Of all three at once: sums over time, and a convolution of every channel by itself."""

    def moved(z, w):
        numbers = ("NWC", "WIO", "NWC")
        z = lax.conv_general_dilated(
            z[None], w, (1,), "SAME", dimension_numbers=numbers, feature_group_count=z.shape[-1]
        )
        return jnp.cumsum(z[0], 0) / 8

    def together(p, x):
        z = moved(jnp.einsum("tc,cknd->tknd", x, p["qkv"]).reshape(len(x), -1), p["conv"])
        z = z.reshape(-1, 3, N, D)
        return attend(z[:, 0], z[:, 1], z[:, 2], p["out"])

    def alone(p, x):
        z = (moved((x @ p[n]["w"].reshape(C, -1)), p[n]["b"]) for n in "qkv")
        return attend(*(y.reshape(-1, N, D) for y in z), p["out"])

    p = parameters(qkv=(C, 3, N, D), conv=(3, 1, 3 * N * D), out=(N, D, C))
    q = split(p | {"bias": jnp.moveaxis(p["conv"].reshape(3, 1, 3, N * D), 2, 0)[:, None]})
    q = {k: v if k == "out" else {"w": v["w"], "b": v["b"][0]} for k, v in q.items()}
    inputs = [jnp.asarray(array(24, C, seed=i), jnp.float32) for i in range(3)]
    found = []
    for f, tree in ((together, p), (alone, q)):
        graph = ifjax.trace(f, tree, inputs[0])
        dims = [g.name for g in graph.groups if g.size == D]
        spec = graph.spec(dict.fromkeys(dims, 0.5), method="prune", importance="l1")
        small, _ = ifjax.compress(f, tree, spec, inputs)
        found.append((small, ifjax.shrink(f, spec)(small, X)))
    (got, outputs), (want, each) = found
    close(jnp.split(got["qkv"], 3, 1), [want[n]["w"][:, None] for n in "qkv"], 1e-4)
    close(outputs, each, 1e-4)


def test_neurons_are_taken_on_an_explicit_mesh():
    """Two batch axes become one, the second of which may lie spread over devices."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
    specs = {"qkv": PartitionSpec(None, None, "d"), "bias": PartitionSpec(None, "d")}
    specs |= {"out": PartitionSpec("d")}
    spread = {k: jax.device_put(P[k], NamedSharding(mesh, s)) for k, s in specs.items()}
    kept = {JOINED: np.array([[[0, 1]] * N, [[2, 3]] * N])}
    close(ifjax.take(spread, GRAPH, kept), ifjax.take(P, GRAPH, kept))
