"""Complex leaves: fused like real ones, a number being two features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import ifjax
from tests.test_dtypes import complexes, fourier, w

X = w(5, 6)
LIFT = w(2, 8, 6)


def network(p, x):
    return jnp.abs(jnp.tanh(x @ p["a"] + p["c"]) @ p["b"])


def made():
    return {"a": complexes(6, 8), "c": complexes(8), "b": complexes(8, 3)}


def operator():
    p = {"lift": w(6, 8), "w0": complexes(3, 8, 7), "w1": complexes(3, 7, 9), "s0": w(8, 7)}
    return p | {"s1": w(7, 9), "f": w(9, 10), "o": w(10, 2)}


def loss(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def test_distances_are_those_of_real_and_imaginary_parts():
    p = made()
    spec = ifjax.trace(network, p, X).spec(0.5, solver="exact")
    found = ifjax.transport_maps(p, spec)["a"]
    rows = np.concatenate([np.asarray(p["a"]).T, np.asarray(p["b"])], 1).astype(np.complex128)
    rows = np.concatenate([rows.real, rows.imag], 1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    magnitude = sum(np.abs(np.asarray(k)).sum(i) for k, i in ((p["a"], 0), (p["b"], 1)))
    scores = ifjax.neuron_scores(p, spec)["a"]
    np.testing.assert_array_equal(found.targets, np.sort(np.argsort(-scores)[:4]))
    assert np.corrcoef(magnitude, scores)[0, 1] > 0.5
    cost = np.abs(rows[:, None] - rows[np.asarray(found.targets)][None]).sum(-1)
    i, j = linear_sum_assignment(np.repeat(cost, 2, 1))
    np.testing.assert_allclose(float(found.cost), cost[i, j // 2].mean(), rtol=1e-5)


@pytest.mark.parametrize("jitted", [False, True])
def test_duplicates_merge_without_change(jitted):
    """Every neuron twice: half of them says it all."""
    p = made()
    twice = {k: jnp.concatenate([p[k]] * 2, -1) for k in "ac"}
    twice["b"] = jnp.concatenate([p["b"], 2j * p["b"]])
    spec = ifjax.trace(network, twice, X).spec(0.5, merge="preserving", scores_on="raw")
    scores = {"a": jnp.arange(16.0) < 8}
    fuse = jax.jit(ifjax.fuse_params, static_argnames="spec") if jitted else ifjax.fuse_params
    plan = jnp.concatenate([jnp.eye(8), jnp.eye(8)]) / 16
    maps = ifjax.transport_maps(twice, spec, scores={"a": scores["a"].astype(jnp.float32)})
    small = ifjax.apply_maps(twice, spec, {"a": maps["a"]._replace(map=plan)})
    np.testing.assert_allclose(network(small, X), network(twice, X), rtol=1e-4, atol=1e-5)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), fuse(twice, spec=spec))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), small)


def test_the_map_of_a_group_is_one_for_complex_and_real_leaves():
    p = operator()
    graph = ifjax.trace(fourier, p, LIFT)
    spec = graph.spec(keep={"w0": 3}, merge="preserving", solver="exact")
    maps = ifjax.transport_maps(p, spec)
    small = ifjax.fuse_params(p, spec)
    plan = np.asarray(maps["w0"].map, np.float64)
    average, total = (plan / plan.sum(0)).T, (plan / plan.sum(1, keepdims=True)).T
    for path in ("w0", "s0"):
        np.testing.assert_allclose(small[path], np.asarray(p[path]) @ average.T, rtol=1e-4)
    for path, axis in (("w1", 1), ("s1", 0)):
        want = np.moveaxis(np.tensordot(total, np.asarray(p[path]), (1, axis)), 0, axis)
        np.testing.assert_allclose(small[path], want, rtol=1e-4, atol=1e-6)
    pruned = ifjax.fuse_params(p, graph.spec(keep={"w0": 3}, method="prune"))
    assert np.abs(small["s0"] - pruned["s0"]).max() > 0.1  # the real neighbours are fused too


METHODS = (
    {"merge": "preserving"},
    {"targets": "centroids"},
    {"cost_p": "cosine", "importance": "l2"},
    {"cost_p": 2.0, "importance": "lamp", "source_marginal": "importance"},
    {"importance": "linf", "solver": "sinkhorn_kernel", "order": "simultaneous"},
    {"importance": "random", "keep_shape": True},
)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_methods(method):
    method = dict(method)
    in_place, p = method.pop("keep_shape", False), made()
    spec = ifjax.trace(network, p, X).spec(0.5, **method)
    small = ifjax.fuse_params(p, spec, keep_shape=in_place)
    assert {x.dtype for x in small.values()} == {jnp.dtype("complex64")}
    f = network if in_place else ifjax.shrink(network, spec)
    assert np.isfinite(f(small, X)).all()


def test_the_importance_of_a_first_order_change():
    """Taylor: the change of the loss where a neuron goes is the real part of weight x gradient."""
    p = made()
    graph = ifjax.trace(network, p, X)
    spec = graph.spec(0.5, importance="taylor", reduction="sum", normalization="none")
    batches = [((X,), jnp.zeros((5, 3)))]
    stats = ifjax.collect_stats(network, p, spec, batches, loss_fn=loss)
    found = ifjax.neuron_scores(p, spec, stats)["a"]

    def removed(by, path, i):
        mask = jnp.ones(8).at[i].set(1 - by)
        x = p[path] * (mask if path == "a" else mask[:, None])
        return loss(network({**p, path: x}, X), 0.0)

    want = [sum(abs(jax.grad(removed)(0.0, path, i)) for path in "ab") for i in range(8)]
    np.testing.assert_allclose(found, np.multiply(want, len(X)), rtol=1e-3)  # a sum over them
    for importance in ("fisher", "chip"):
        spec = graph.spec(0.5, importance=importance)
        stats = ifjax.collect_stats(network, p, spec, batches, loss_fn=loss)
        scores = ifjax.neuron_scores(p, spec, stats)["a"]
        assert scores.dtype == jnp.float32
        assert np.ptp(scores) > 0
        ifjax.fuse_params(p, spec, stats=stats)


def test_sensitivity_to_a_real_mask():
    p = made()
    spec = ifjax.trace(network, p, X).spec(0.5, importance="fisher", normalization="none")
    batches = [((X,), jnp.zeros((5, 3)))]
    stats = ifjax.collect_stats(network, p, spec, batches, loss_fn=loss)

    def masked(mask, x):
        return loss(network({**p, "b": p["b"] * mask[:, None]}, x[None]), 0.0)

    want = sum(jax.grad(masked)(jnp.ones(8), x) ** 2 for x in X)
    np.testing.assert_allclose(stats.fisher["a"], want, rtol=1e-4)


@pytest.mark.parametrize("on", ["weights", "activations"])
def test_networks_that_differ_by_a_permutation(on):
    p, rng = operator(), np.random.default_rng(3)
    graph = ifjax.trace(fourier, p, LIFT)
    orders = {g.name: rng.permutation(g.size) for g in graph.groups}
    given = {"apply_fn": fourier, "batches": [(LIFT,)]} if on == "activations" else {}
    found = ifjax.fuse_models([p, ifjax.take(p, graph, orders)], graph, on=on, **given)
    for path, x in p.items():
        np.testing.assert_allclose(found[path], x, rtol=1e-5, atol=1e-6)


def test_a_complex_number_is_one_weight():
    graph = ifjax.trace(network, made(), X)
    assert graph.structure.weights() == 6 * 8 + 8 + 8 * 3


def test_specs_of_a_kind_of_their_own_load():
    spec = ifjax.trace(network, made(), X).spec(0.5)
    older = spec.to_json().replace('"neuron"', '"complex"')
    assert "complex" in older
    assert ifjax.FusionSpec.from_json(older) == spec
