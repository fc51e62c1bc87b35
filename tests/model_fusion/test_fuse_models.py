"""Fused networks: permuted copies are recovered, averages are those of a brute-force assignment."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import ifjax
from ifjax import models as networks
from ifjax.transport.solvers import Sinkhorn
from tests.graph.laws import array
from tests.zoo import model as zoo
from tests.zoo.checks import generic


def mlp(p, x):
    h = jax.nn.relu(x @ p["a"] + p["bias"])
    return jax.nn.relu(h @ p["b"]) @ p["c"]


def parameters(seed=0, a=4, b=5):
    shapes = {"a": (3, a), "bias": (a,), "b": (a, b), "c": (b, 2)}
    drawn = {k: array(*s, seed=seed + i) for i, (k, s) in enumerate(shapes.items())}
    return {k: jnp.asarray(x, jnp.float32) for k, x in drawn.items()}


X = jnp.asarray(array(6, 3), jnp.float32)
GRAPH = ifjax.trace(mlp, parameters(), X)


def permuted(params, graph, seed=0):
    """A permutation of every group, one of its own for every entry of its batch."""
    rng = np.random.default_rng(seed)
    order = {}
    for g in graph.groups:
        draws = [rng.permutation(g.size) for _ in range(int(np.prod(g.batch)))]
        order[g.name] = np.stack(draws).reshape(*g.batch, g.size)
    return ifjax.take(params, graph, order)


def assert_close(got, want, rtol=1e-6, atol=1e-7):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=atol
        )


@pytest.fixture(scope="module")
def models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield {m.name: m for m in zoo.models()[0]}


RECOVERED = (
    *("linen_vgg", "linen_cifar_resnet", "vision_transformer", "lstm", "llama_scanned"),
    *("experts_dense_gate", "graph_attention"),
)


@pytest.mark.parametrize("name", RECOVERED)
def test_permuted_copies_give_the_network_back(models, name):
    """In float32: without batch norms to a rounding of the average, with them to a few."""
    apply_fn, params, inputs = models[name].build(2)
    params = jax.tree.map(
        lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        generic(params),
    )
    graph = ifjax.trace(apply_fn, params, *inputs)
    copy = permuted(params, graph)
    apart = zip(jax.tree.leaves(copy), jax.tree.leaves(params), strict=True)
    assert any(np.abs(a - b).max() > 0.1 for a, b in apart)
    fused = ifjax.fuse_models([params, copy], graph)
    assert_close(fused, params, rtol=2e-5 if graph.structure.norms else 1e-6, atol=1e-6)


def test_three_copies_of_any_weight_by_every_way_to_align():
    p = parameters()
    three = [p, permuted(p, GRAPH, 1), permuted(p, GRAPH, 2)]
    assert_close(ifjax.fuse_models(three, GRAPH, weights=[3, 0, 1]), p)
    assert_close(ifjax.fuse_models(three, GRAPH, cost_p="cosine", sweeps=0), p)
    assert_close(ifjax.fuse_models(three[:1], GRAPH), p)
    soft = ifjax.fuse_models(three, GRAPH, solver="sinkhorn_kernel", epsilon=0.005)
    assert_close(soft, p, rtol=1e-2, atol=1e-3)
    data = {"apply_fn": mlp, "batches": [(X[:2],), (X[2:],)]}
    seen = ifjax.fuse_models(three, GRAPH, on="activations", **data)
    np.testing.assert_allclose(mlp(seen, X), mlp(p, X), rtol=1e-5, atol=1e-6)


def test_the_average_is_that_of_the_best_assignment():
    """One hidden layer, all of its members pinned across: brute force over 4! assignments."""

    def f(p, x):
        return jnp.tanh(x @ p["w"] + p["b"]) @ p["v"]

    pair = [
        {
            k: jnp.asarray(array(*s, seed=i), jnp.float32)
            for k, s in {"w": (3, 4), "b": (4,), "v": (4, 2)}.items()
        }
        for i in (1, 2)
    ]
    graph = ifjax.trace(f, pair[0], X)
    one, two = (np.concatenate([p["w"].T, p["b"][:, None], p["v"]], 1) for p in pair)

    def cost(order):
        return np.linalg.norm(one - two[list(order)], axis=1).sum()

    best = list(min(itertools.permutations(range(4)), key=cost))
    assert best != [0, 1, 2, 3]
    got = ifjax.fuse_models(pair, graph, weights=[0.25, 0.75])
    want = {
        k: 0.25 * pair[0][k] + 0.75 * jnp.take(pair[1][k], np.array(best), axis)
        for k, axis in (("w", 1), ("b", 0), ("v", 0))
    }
    assert_close(got, want)
    (maps,) = ifjax.align_models(pair, graph)
    assert maps["w"].targets.tolist() == best
    assert float(maps["w"].cost) == pytest.approx(cost(best) / 4, rel=1e-5)
    assert_close(ifjax.fuse_models(pair, graph, weights=[0.25, 0.75], maps=[maps]), got)


def test_sweeps_go_on_to_a_better_assignment():
    """No sweep makes the sum of all distances larger, and here the first ones make it smaller."""
    pair = [parameters(1, 8, 8), parameters(9, 8, 8)]
    totals = []
    for sweeps in (0, 1, 5):
        (maps,) = ifjax.align_models(pair, GRAPH_8, sweeps=sweeps)
        a, b = (maps[name].targets for name in "ab")
        moved = ifjax.take(pair[1], GRAPH_8, {"a": a, "b": b})
        rows = [np.concatenate([p["a"].T, p["bias"][:, None], p["b"]], 1) for p in (pair[0], moved)]
        totals.append(np.linalg.norm(rows[0] - rows[1], axis=1).sum())
    assert totals[1] < totals[0] - 1e-3
    assert totals[2] <= totals[1] + 1e-5


GRAPH_8 = ifjax.trace(mlp, parameters(0, 8, 8), X)


def test_duplicates_merge_without_change_into_fewer_neurons():
    """A network whose neurons all came twice, with halved consumers, is the smaller one."""
    small, wide = parameters(0, 3, 4), {}
    double = jnp.repeat(jnp.eye(3), 2, axis=1), jnp.repeat(jnp.eye(4), 2, axis=1)
    wide["a"], wide["bias"] = small["a"] @ double[0], small["bias"] @ double[0]
    wide["b"] = (double[0].T / 2) @ small["b"] @ double[1]
    wide["c"] = (double[1].T / 2) @ small["c"]
    graph = ifjax.trace(mlp, wide, X)
    spec = graph.spec(0.5)
    wide = permuted(wide, graph)
    got = ifjax.fuse_models([small, wide], graph, specs=[spec, None])
    np.testing.assert_allclose(mlp(got, X), mlp(small, X), rtol=1e-5, atol=1e-6)
    assert_close(got, small, rtol=1e-5, atol=1e-6)
    data = {"apply_fn": mlp, "batches": [(X,)]}
    seen = ifjax.fuse_models([small, wide], graph, specs=[spec, None], on="activations", **data)
    np.testing.assert_allclose(mlp(seen, X), mlp(small, X), rtol=1e-5, atol=1e-6)


def attention(p, x):
    q, k, v = (jnp.einsum("tc,chd->thd", x, p[name]) for name in "qkv")
    weight = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))
    return jnp.einsum("hts,shd,hdc->tc", weight, v, p["o"])


def of_attention(seed=0):
    shapes = {"q": (3, 3, 4), "k": (3, 3, 4), "v": (3, 3, 4), "o": (3, 4, 3)}
    drawn = {k: array(*s, seed=seed + i) for i, (k, s) in enumerate(shapes.items())}
    return {k: jnp.asarray(x, jnp.float32) for k, x in drawn.items()}


def test_heads_of_another_number_keep_the_ones_that_fit():
    p = of_attention()
    graph = ifjax.trace(attention, p, X)
    (heads,) = (g.name for g in graph.groups if g.kind == "head")
    spec = graph.spec(keep={heads: 2})
    small = ifjax.take(p, graph, {heads: [0, 2]})
    got = ifjax.fuse_models([small, permuted(p, graph)], graph, specs=[spec, None])
    assert_close(got, small)
    again = ifjax.fuse_models([p, small], graph, specs=[None, spec])
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, p)


def test_under_jit_and_in_half_precision():
    one, two = parameters(1), parameters(2)
    for solver in ("sinkhorn_kernel", "exact"):
        want = ifjax.fuse_models([one, two], GRAPH, solver=solver)

        def fuse(a, b, weights, solver=solver):
            return ifjax.fuse_models([a, b], GRAPH, solver=solver, weights=weights)

        got = jax.jit(fuse)(one, two, jnp.array([2.0, 2.0]))
        assert_close(got, want, rtol=1e-4, atol=1e-5)
        closed = jax.jit(lambda weights, fuse=fuse: fuse(one, two, weights))(jnp.array([2.0, 2.0]))
        assert_close(closed, want, rtol=1e-4, atol=1e-5)
        kept = jax.jit(lambda fuse=fuse: fuse(one, two, [2, 2]))()
        assert_close(kept, want, rtol=1e-6, atol=1e-6)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), one)
    assert_close(ifjax.fuse_models([half, permuted(half, GRAPH)], GRAPH), half)


@pytest.mark.parametrize(
    ("solver", "cost_p"), [("exact", 1), ("sinkhorn_kernel", 2.0), ("exact", "cosine")]
)
def test_the_host_does_what_a_traced_program_does(normed, solver, cost_p):
    heads = [of_attention(seed) for seed in (0, 9)]
    for pair, graph in (normed[1:3], (heads, ifjax.trace(attention, heads[0], X))):
        fuse = functools.partial(ifjax.fuse_models, graph=graph, solver=solver, cost_p=cost_p)
        assert_close(fuse(pair), jax.jit(fuse)(pair), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def normed():
    module = networks.SmallCNN(widths=(3, 4), hidden=(), num_classes=2)
    x = np.random.default_rng(0).normal(size=(16, 4, 4, 1)).astype(np.float32)
    seen = [module.init(jax.random.key(i), x) for i in range(2)]
    for v in seen:  # running statistics and affine parameters in general position
        _, new = module.apply(v, x, train=True, mutable=["batch_stats"])
        v["batch_stats"] = new["batch_stats"]
        for i in "12":
            scale = jnp.asarray(array(*v["params"]["bn" + i]["scale"].shape), jnp.float32)
            v["params"]["bn" + i]["scale"] = scale
    return module, seen, ifjax.trace(module.apply, seen[0], x), x


def test_the_scale_of_a_kernel_before_a_norm_does_not_weigh(normed):
    """The function of a network is its function whatever the kernels' units are."""
    module, (one, _), graph, x = normed
    same = jax.tree.map(lambda v: v, one)
    for i in "12":
        statistics = same["batch_stats"]["bn" + i]
        same["params"]["conv" + i]["kernel"] *= 7
        statistics["mean"] *= 7
        statistics["var"] = 49 * (statistics["var"] + 1e-5) - 1e-5
    fused = ifjax.fuse_models([one, permuted(same, graph)], graph)
    np.testing.assert_allclose(module.apply(fused, x), module.apply(one, x), rtol=1e-3, atol=1e-4)


def test_channels_keep_the_mean_of_their_spreads(normed):
    """The scale is the mean of the aligned scales, however little the kernels agree."""
    _, pair, graph, _ = normed
    (maps,) = ifjax.align_models(pair, graph)
    fused = ifjax.fuse_models(pair, graph, maps=[maps])
    first, second = (v["params"]["bn1"]["scale"] for v in pair)
    order = maps[next(n for n in maps if "conv1" in n)].targets
    want = (jnp.abs(first) + jnp.abs(second[order])) / 2 * jnp.sign(first)
    np.testing.assert_allclose(fused["params"]["bn1"]["scale"], want, rtol=1e-5)
    rows = [v["params"]["conv1"]["kernel"].reshape(9, 3) for v in (pair[0], pair[1])]
    rows = [r / jnp.linalg.norm(r, axis=0) for r in (rows[0], rows[1][:, order])]
    scales = jnp.abs(first), jnp.abs(second[order])
    signs = jnp.sign(first), jnp.sign(second[order])
    blend = sum(r * g * s for r, g, s in zip(rows, scales, signs, strict=True)) / 2
    slopes = [
        g / jnp.sqrt(v["batch_stats"]["bn1"]["var"][o] + 1e-5)
        for g, v, o in zip(scales, pair, (slice(None), order), strict=True)
    ]
    variance = (jnp.linalg.norm(blend, axis=0) / (sum(slopes) / 2)) ** 2 - 1e-5
    np.testing.assert_allclose(fused["batch_stats"]["bn1"]["var"], variance, rtol=1e-4)


def test_statistics_are_reset_where_there_is_data(normed):
    module, pair, graph, x = normed
    fused = ifjax.fuse_models(pair, graph, apply_fn=module.apply, batches=[(x,)])
    want, _ = module.apply(fused, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(module.apply(fused, x), want, rtol=1e-4, atol=1e-5)
    rough = ifjax.fuse_models(pair, graph)
    assert_close(fused["params"], rough["params"])
    assert np.abs(module.apply(rough, x) - want).max() > 1e-3
    plain = ifjax.fuse_models([parameters(1), parameters(2)], GRAPH, apply_fn=mlp, batches=[(X,)])
    assert_close(plain, ifjax.fuse_models([parameters(1), parameters(2)], GRAPH))


P = parameters()
BAD = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), P)


@pytest.mark.parametrize(
    ("models_", "options", "error", "match"),
    [
        ([], {}, ValueError, "at least one network"),
        (P, {}, TypeError, "sequence of parameter trees, got dict"),
        ([P, parameters(0, 3)], {}, ValueError, r"models\[1\]: a: expected shape \(3, 4\), got"),
        ([P, {"a": P["a"]}], {}, ValueError, r"models\[1\]: b: expected a leaf"),
        ([P, BAD], {}, ValueError, r"models\[1\]: a: expected finite"),
        ([P, P], {"weights": [1, -1]}, ValueError, "not negative"),
        ([P, P], {"weights": [0.0, 0.0]}, ValueError, "not all zero"),
        ([P, P], {"weights": [1.0]}, ValueError, "2 weights"),
        ([P, P], {"on": "neurons"}, ValueError, "on must be one of weights, activations"),
        ([P, P], {"on": "activations"}, ValueError, "goes with apply_fn and batches"),
        ([P, P], {"apply_fn": mlp}, ValueError, "together, got apply_fn alone"),
        ([P, P], {"apply_fn": mlp, "batches": []}, ValueError, "at least one batch"),
        ([P, P], {"solver": "nearest"}, ValueError, "'nearest' leaves targets"),
        ([P, P], {"solver": "best"}, ValueError, "unknown solver 'best'"),
        ([P, P], {"sweeps": -1}, ValueError, "sweeps must be"),
        ([P, P], {"cost_p": 0.5}, ValueError, "cost_p must be"),
        ([P, P], {"maps": []}, ValueError, "maps for the 1 networks"),
        ([P, P], {"maps": [{}]}, ValueError, r"models\[1\], group a: expected a map .* got none"),
        ([P, P], {"maps": [{}], "sweeps": 2}, ValueError, "sweeps would not be used"),
        ([P, P], {"specs": [None]}, ValueError, "for each of 2 networks, got 1"),
        ([P, P], {"specs": [None, 3]}, TypeError, r"specs\[1\]: expected a FusionSpec"),
        ([P, P], {"specs": [None, GRAPH_8.spec(0.5)]}, ValueError, "another graph"),
    ],
)
def test_errors(models_, options, error, match, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error, match=match):
        ifjax.fuse_models(models_, GRAPH, **options)


def test_a_spec_is_no_graph_and_sinkhorn_says_that_it_failed(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match="expected a graph"):
        ifjax.fuse_models([P, P], GRAPH.spec(0.5))  # type: ignore[arg-type]
    once = Sinkhorn(max_iterations=1)
    with pytest.raises(RuntimeError, match=r"models\[1\], group .*solver Sinkhorn\(.* did not"):
        ifjax.align_models([P, parameters(3)], GRAPH, solver=once)
