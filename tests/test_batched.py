"""Groups with batch axes: every layer, expert and head is fused as if it stood alone."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays

X = array(2, 5, 4).astype(np.float32)


def layer(p, h):
    return h + jnp.tanh(h @ p["up"] + p["bias"]) @ p["down"]


def scanned(p, x):
    return lax.scan(lambda h, q: (layer(q, h), None), x, p)[0].sum(1)


def looped(p, x):
    for i in range(3):
        x = layer(jax.tree.map(lambda w, i=i: w[i], p), x)
    return x.sum(1)


def unrolled(p, x):
    for i in range(len(p)):
        x = layer(p[f"{i}"], x)
    return x.sum(1)


def parameters(layers=3):
    p = arrays(up=(layers, 4, 6), bias=(layers, 6), down=(layers, 6, 4))
    return {k: jnp.asarray(v, jnp.float32) for k, v in p.items()}


def split(stacked):
    n = len(jax.tree.leaves(stacked)[0])
    return {f"{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(n)}


METHODS = {
    "exact": {"solver": "exact"},
    "sinkhorn, simultaneous": {"order": "simultaneous", "epsilon": 0.1},
    "nearest, preserving": {"solver": "nearest", "merge": "preserving"},
    "centroids": {"targets": "centroids", "solver": "nearest"},
    "pruned": {"method": "prune"},
    "lamp": {"importance": "lamp", "source_marginal": "importance", "solver": "exact"},
}


@pytest.mark.parametrize("name", METHODS)
def test_stacked_layers_are_fused_like_separate_ones(name):
    """A layer of its own has the same neurons, scores and costs as its slice of the stack."""
    method = METHODS[name] | ({"importance": "l2"} if name == "centroids" else {})
    p = parameters()
    spec = ifjax.trace(scanned, p, X).spec(0.5, **method)
    each = ifjax.trace(unrolled, split(p), X).spec(0.5, **method)
    maps = ifjax.transport_maps(p, spec)
    assert maps["up"].map.shape == (3, 6, 3)
    assert maps["up"].targets.shape == (3, 3)
    assert maps["up"].converged.all()
    got = split(ifjax.fuse_params(p, spec))
    if name == "centroids":  # k-means starts from other random numbers
        assert got["1"]["down"].shape == (3, 4)
        return
    want = ifjax.fuse_params(split(p), each)
    for path in ("up", "bias", "down"):
        for i in got:
            np.testing.assert_allclose(got[i][path], want[i][path], rtol=2e-5, atol=2e-6)
    small = ifjax.shrink(scanned, spec)(ifjax.fuse_params(p, spec), X)
    np.testing.assert_allclose(small, unrolled(want, X), rtol=1e-4, atol=1e-5)


def test_layers_that_are_read_one_by_one_are_those_of_a_scan():
    p, q = parameters(), jax.tree.map(jnp.cos, parameters())
    scan, loop = (ifjax.trace(f, p, X) for f in (scanned, looped))
    assert [(g.name, g.batch) for g in loop.groups] == [(g.name, g.batch) for g in scan.groups]
    specs = [graph.spec(0.5, importance="fisher", solver="nearest") for graph in (scan, loop)]
    batches = [((X,), jnp.ones((2, 4)))]
    loss = lambda out, y: ((out - y) ** 2).mean()  # noqa: E731
    want, got = (
        ifjax.collect_stats(f, p, spec, batches, loss_fn=loss)
        for f, spec in zip((scanned, looped), specs, strict=True)
    )
    np.testing.assert_allclose(got.fisher["up"], want.fisher["up"], rtol=1e-6)
    small = [ifjax.fuse_params(p, spec, stats=want) for spec in specs]
    jax.tree.map(np.testing.assert_array_equal, *small)
    cut = ifjax.shrink(looped, ifjax.FusionSpec.from_json(specs[1].to_json()))(small[1], X)
    np.testing.assert_allclose(cut, ifjax.shrink(scanned, specs[0])(small[0], X), rtol=1e-5)
    met = [ifjax.fuse_models([p, q], graph) for graph in (scan, loop)]
    jax.tree.map(np.testing.assert_array_equal, *met)


def test_keep_shape_compaction_gradients_and_moments():
    p = parameters()
    spec = ifjax.trace(scanned, p, X).spec(0.5, solver="nearest", merge="preserving")
    maps = ifjax.transport_maps(p, spec)
    small = ifjax.apply_maps(p, spec, maps)
    wide = ifjax.apply_maps(p, spec, maps, keep_shape=True)
    np.testing.assert_allclose(scanned(wide, X), ifjax.shrink(scanned, spec)(small, X), rtol=1e-5)
    again = ifjax.compact(wide, spec, maps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, small)
    state = ifjax.fuse_tree(optax.adam(0.1).init(p), spec, maps)
    assert state[0].mu["down"].shape == (3, 3, 4)
    mask = ifjax.kept_mask(p, spec, maps)
    assert mask["up"].sum((1, 2)).tolist() == [12, 12, 12]
    for i in range(3):
        assert mask["bias"][i].nonzero()[0].tolist() == maps["up"].targets[i].tolist()
    gradient = ifjax.apply_maps(p, spec, maps, kind="gradients")
    assert gradient["up"].shape == (3, 4, 3)


def test_fused_heads_whose_dimensions_are_cut_cannot_stay_in_place():
    """Every head keeps dimensions of its own, in places of its own, which do not align."""
    p = {k: jnp.asarray(v, jnp.float32) for k, v in arrays(v=(4, 3, 6), o=(3, 6, 2)).items()}

    def heads(p, x):
        h = jnp.tanh(jnp.einsum("btc,chd->bthd", x, p["v"]))
        return jnp.einsum("bthd,hdc->btc", h, p["o"])

    graph = ifjax.trace(heads, p, X)
    outer, inner = (g.name for g in sorted(graph.groups, key=lambda g: len(g.batch)))
    options = {"include": [outer, inner], "solver": "nearest", "heads": "fuse"}
    message = f"group {re.escape(inner)}: every entry along {re.escape(outer)} .* in place"
    with pytest.raises(ValueError, match=message):
        ifjax.fuse_params(p, graph.spec(0.5, **options), keep_shape=True)
    for name in (outer, inner):
        spec = graph.spec(0.5, **(options | {"include": name}))
        maps = ifjax.transport_maps(p, spec)
        wide = ifjax.apply_maps(p, spec, maps, keep_shape=True)
        small = ifjax.apply_maps(p, spec, maps)
        np.testing.assert_allclose(
            heads(wide, X), ifjax.shrink(heads, spec)(small, X), rtol=1e-5, atol=1e-6
        )


def test_warm_starts_scores_and_one_compilation():
    p = parameters()
    spec = ifjax.trace(scanned, p, X).spec(0.5, epsilon=0.1)
    maps = ifjax.transport_maps(p, spec)
    again = ifjax.transport_maps(p, spec, init=maps)
    assert (again["up"].iterations <= maps["up"].iterations).all()
    scores = np.array([[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [0, 9, 0, 9, 0, 9.0]])
    chosen = ifjax.transport_maps(p, spec, scores={"up": scores})["up"].targets
    assert chosen.tolist() == [[0, 1, 2], [3, 4, 5], [1, 3, 5]]
    shared = ifjax.transport_maps(p, spec, scores={"up": scores[1]})["up"].targets
    assert shared.tolist() == [[3, 4, 5]] * 3
    with pytest.raises(ValueError, match=r"scores of group up: expected shape \(3, 6\)"):
        ifjax.transport_maps(p, spec, scores={"up": scores[:2]})
    fuse = jax.jit(ifjax.fuse_params, static_argnames="spec")
    fuse(p, spec=spec), fuse(jax.tree.map(jnp.sin, p), spec=spec)
    assert fuse._cache_size() == 1


def test_statistics_of_every_entry():
    p = parameters()
    graph = ifjax.trace(scanned, p, X)
    spec = graph.spec(0.5, importance="fisher", solver="nearest")
    batches = [((X,), jnp.ones((2, 4)))]
    loss = lambda out, y: ((out - y) ** 2).mean()  # noqa: E731
    stats = ifjax.collect_stats(scanned, p, spec, batches, loss_fn=loss)
    each = ifjax.trace(unrolled, split(p), X).spec(0.5, importance="fisher", solver="nearest")
    alone = ifjax.collect_stats(unrolled, split(p), each, batches, loss_fn=loss)
    assert stats.fisher["up"].shape == (3, 6)
    for i in range(3):
        np.testing.assert_allclose(stats.fisher["up"][i], alone.fisher[f"{i}/up"], rtol=1e-4)
    assert ifjax.fuse_params(p, spec, stats=stats)["up"].shape == (3, 4, 3)


def attention(p, x):
    q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bthd,hdc->btc", jnp.einsum("bhqk,bkhd->bqhd", weights, v), p["o"])


ATTENTION = arrays(q=(4, 3, 6), k=(4, 3, 6), v=(4, 3, 5), o=(3, 5, 2))


@pytest.mark.parametrize("order", ["sequential", "simultaneous"])
@pytest.mark.parametrize("heads", ["prune", "fuse"])
def test_heads_and_their_dimensions_together(order, heads):
    """Dimensions are chosen per head while all heads are there, then heads go."""
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (ATTENTION, X.astype(np.float64)))
        graph = ifjax.trace(attention, p, x)
        spec = graph.spec(0.5, order=order, heads=heads, solver="nearest")
        maps = ifjax.transport_maps(p, spec)
        small = ifjax.apply_maps(p, spec, maps)
        assert {k: v.shape for k, v in small.items()} == {
            "q": (4, 1, 3),
            "k": (4, 1, 3),
            "v": (4, 1, 2),
            "o": (1, 2, 2),
        }
        out = ifjax.shrink(attention, spec)(small, x)
        assert np.isfinite(out).all()
        if heads == "prune":
            cut = ifjax.take(p, graph, {n: m.targets for n, m in maps.items()})
            jax.tree.map(np.testing.assert_array_equal, cut, small)


def test_indices_of_a_wrong_batch():
    p = parameters()
    graph = ifjax.trace(scanned, p, X)
    with pytest.raises(ValueError, match=r"or \(3, 'k'\) of them, got int64 of shape \(2, 3\)"):
        ifjax.take(p, graph, {"up": np.zeros((2, 3), int)})
