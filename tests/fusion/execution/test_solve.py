"""Solved together, without the mass that stays where it is: against POT's whole problem."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

import ifjax
from ifjax.fusion.execution import program as waves

SIZES = {"w1": 12, "w2": 9}


def network(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (5, 12), "w2": (12, 9), "w3": (9, 4)}
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


GRAPH = ifjax.trace(
    lambda p, x: jnp.tanh(jnp.tanh(x @ p["w1"]) @ p["w2"]) @ p["w3"], network(), jnp.ones((1, 5))
)


def full(p, name, targets, order, kind):
    """Cost and marginals of the whole problem, in float64."""
    after = {"w1": "w2", "w2": "w3"}[name]
    rows = np.concatenate([np.asarray(p[name], float).T, np.asarray(p[after], float)], 1)
    scores = np.abs(np.asarray(p[name], float)).sum(0) + np.abs(np.asarray(p[after], float)).sum(1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    mass = scores if kind == "importance" else np.ones(len(scores))
    cost = np.linalg.norm(rows[:, None] - rows[None, targets], ord=order, axis=2)
    return cost, mass / mass.sum(), mass[targets] / mass[targets].sum()


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("kind", ["uniform", "importance"])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_mass_that_stays_leaves_the_optimum_what_it_is(p, kind, sparsity):
    params = network(1)
    method = {"source_marginal": kind, "target_marginal": kind, "cost_p": p, "solver": "exact"}
    spec = GRAPH.spec(sparsity, order="simultaneous", **method)
    (wave,) = waves.schedule(spec.structure, spec.method, frozenset(), "cpu")
    assert all(bucket.moved for bucket in wave.buckets)
    for name, found in ifjax.transport_maps(params, spec).items():
        targets = np.asarray(found.targets)
        cost, a, b = full(params, name, targets, p, kind)
        best = ot.emd2(a, b, cost)
        np.testing.assert_allclose(found.cost, best, rtol=1e-5)
        np.testing.assert_allclose((found.map * cost).sum(), best, rtol=1e-5)
        np.testing.assert_allclose(found.map.sum(1), a, atol=1e-6)
        np.testing.assert_allclose(found.map.sum(0), b, atol=1e-6)
        np.testing.assert_allclose(found.marginal_error, 0, atol=1e-5)
        stays = np.asarray(found.map)[targets, np.arange(len(targets))]
        np.testing.assert_allclose(stays, a[targets], rtol=1e-5)
        np.testing.assert_allclose(found.potential, cost.min(1), atol=1e-6)
        assert found.converged
        assert np.all(np.asarray(found.map) >= 0)


@pytest.mark.parametrize(
    "choice",
    [{"source_marginal": "importance"}, {"targets": "centroids"}, {"cost_p": "cosine"}],
)
def test_where_it_need_not_stay_the_whole_problem_is_solved(choice):
    """Other marginals, targets that are no sources, and costs that are no metric."""
    spec = GRAPH.spec(0.5, solver="exact", order="simultaneous", **choice)
    (wave,) = waves.schedule(spec.structure, spec.method, frozenset(), "cpu")
    assert not any(bucket.moved for bucket in wave.buckets)
    for name, found in ifjax.transport_maps(network(), spec).items():
        n, m = SIZES[name], SIZES[name] // 2
        assert found.converged
        assert found.map.shape == (n, m)
        np.testing.assert_allclose(found.map.sum(0).sum(), 1, rtol=1e-5)
        if "source_marginal" in choice:
            cost, _, b = full(network(), name, np.asarray(found.targets), 1, "uniform")
            _, a, _ = full(network(), name, np.asarray(found.targets), 1, "importance")
            np.testing.assert_allclose(found.cost, ot.emd2(a, b, cost), rtol=1e-5)


def test_one_call_to_the_host_solves_a_wave(monkeypatch):
    calls = []
    inner = jax.pure_callback
    monkeypatch.setattr(jax, "pure_callback", lambda *a, **k: (calls.append(a), inner(*a, **k))[1])
    jax.clear_caches()
    spec = GRAPH.spec(0.5, solver="exact", order="simultaneous")
    small = ifjax.fuse_params(network(), spec)
    jitted = jax.jit(ifjax.fuse_params, static_argnames="spec")(network(), spec=spec)
    ((_, shapes, *_),) = calls  # traced once, with a problem of either size
    assert len(shapes) == 2
    for path in small:
        np.testing.assert_allclose(small[path], jitted[path], atol=1e-6)


def test_pruned_groups_beside_fused_ones_receive_themselves():
    """What is only selected needs no solver."""
    spec = GRAPH.spec(0.5, method="prune", order="simultaneous")
    for name, found in ifjax.transport_maps(network(), spec).items():
        n, m = SIZES[name], SIZES[name] // 2
        expected = np.zeros((n, m))
        expected[found.targets, np.arange(m)] = 1 / m
        np.testing.assert_allclose(found.map, expected, rtol=1e-6)


def test_maps_can_be_mapped_over_networks():
    spec = GRAPH.spec(0.5, solver="exact", order="simultaneous")
    many = [network(seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *many)
    got = jax.vmap(lambda p: ifjax.fuse_params(p, spec))(stacked)
    for i, p in enumerate(many):
        want = ifjax.fuse_params(p, spec)
        for path in want:
            np.testing.assert_allclose(got[path][i], want[path], atol=1e-6)
