"""Padding changes nothing: groups solved together are what each is alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

import ifjax
from ifjax.fusion.execution import program as waves
from ifjax.fusion.execution.buckets import Bucket, Inputs, Unit, read, stacked
from ifjax.structure import axis as ex
from ifjax.structure.layout import SELF, Held, Place
from tests.graph.laws import arrays

# Solvers agree with themselves to this part of the mass of a neuron, whatever the padding.
TOLERANCES = {"nearest": 1e-6, "exact": 1e-6, "sinkhorn": 2e-3, "sinkhorn_kernel": 2e-3}


@pytest.fixture(autouse=True)
def _forget_schedules():
    waves.schedule.cache_clear()
    yield
    waves.schedule.cache_clear()


@functools.cache
def network(seed):
    """A chain of layers of random widths, then stacked layers (a group with a batch axis)."""
    rng = np.random.default_rng(seed)
    widths = [3, *rng.integers(4, 18, 3).tolist(), 4]
    p = {f"w{i}": rng.normal(size=shape) for i, shape in enumerate(itertools.pairwise(widths))}
    inner = int(rng.integers(5, 14))
    p |= {"up": rng.normal(size=(3, 4, inner)), "down": rng.normal(size=(3, inner, 4))}
    p = {k: jnp.asarray(v, jnp.float32) for k, v in p.items()}

    def apply(p, x):
        for i in range(4):
            x = jnp.tanh(x @ p[f"w{i}"])
        layer = lambda h, q: (h + jnp.tanh(h @ q["up"]) @ q["down"], None)  # noqa: E731
        return jax.lax.scan(layer, x, {k: p[k] for k in ("up", "down")})[0].sum(1)

    return p, ifjax.trace(apply, p, jnp.ones((2, 3)))


CASES = [
    (0, {"solver": "nearest", "cost_p": 2.0, "target_marginal": "importance"}),
    (1, {"solver": "exact", "source_marginal": "importance", "target_marginal": "importance"}),
    (2, {"solver": "exact", "cost_p": 3.0, "source_marginal": "importance"}),
    (3, {"solver": "exact", "order": "simultaneous"}),
    (4, {"solver": "sinkhorn_kernel", "epsilon": 0.1, "target_marginal": "importance"}),
    (5, {"solver": "sinkhorn", "epsilon": 0.1, "cost_p": np.inf, "order": "simultaneous"}),
    (6, {"targets": "centroids", "solver": "nearest", "order": "simultaneous"}),
    (7, {"method": "prune", "importance": "random", "order": "simultaneous"}),
]


@pytest.mark.parametrize(("seed", "choice"), CASES)
def test_whatever_shares_a_bucket_is_what_it_is_alone(monkeypatch, seed, choice):
    p, graph = network(seed)
    sparsity = float(np.random.default_rng(seed).uniform(0.2, 0.7))
    spec = graph.spec(sparsity, **choice)
    monkeypatch.setattr(waves, "BYTES", 0)
    alone = ifjax.transport_maps(p, spec)
    assert {len(b.units) for w in schedule(spec) for b in w.buckets} == {1}
    waves.schedule.cache_clear()
    monkeypatch.setattr(waves, "BYTES", 2**40)
    monkeypatch.setattr(waves, "CPU_BYTES", 2**40)
    monkeypatch.setattr(waves, "padded", lambda n: 1)
    found = ifjax.transport_maps(p, spec)
    assert all(len(w.buckets) == 1 for w in schedule(spec))
    assert list(found) == list(alone)
    for name, want in alone.items():
        got, tolerance = found[name], TOLERANCES[spec.method.solver]
        np.testing.assert_array_equal(got.targets, want.targets)
        n = want.map.shape[-2]
        np.testing.assert_allclose(got.map, want.map, atol=tolerance / n, err_msg=name)
        np.testing.assert_allclose(got.cost, want.cost, rtol=tolerance, atol=1e-6)
        np.testing.assert_allclose(got.marginal_error, want.marginal_error, atol=tolerance)
        assert got.converged.all()
        assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)


def schedule(spec):
    limit = waves.bucket_bytes("cpu")
    return waves.schedule(spec.structure, spec.method, frozenset(), "cpu", limit)


def test_a_warm_and_a_cold_start_share_a_bucket(monkeypatch):
    monkeypatch.setattr(waves, "padded", lambda n: 1)
    p, graph = network(0)
    spec = graph.spec(0.5, solver="sinkhorn_kernel", epsilon=0.05, order="simultaneous")
    cold = ifjax.transport_maps(p, spec)
    half = dict(list(cold.items())[::2])
    warm = ifjax.transport_maps(p, spec, init=half)
    for name, found in warm.items():
        assert found.converged.all()
        if name in half:
            assert np.all(found.iterations < cold[name].iterations), name
        else:
            np.testing.assert_array_equal(found.iterations, cold[name].iterations, name)
        np.testing.assert_allclose(found.map, cold[name].map, atol=2e-3 / found.map.shape[-2])


def problem(moved, sizes=((7, 3), (5, 2)), d=4):
    """A bucket of groups whose features are the rows of one matrix each, and what is read."""
    rng = np.random.default_rng(0)
    units, inputs, weights = [], [], []
    for i, (n, m) in enumerate(sizes):
        held = Held(((n, d + i),), (Place(0, 0, "producer", ex.Atom(SELF, n)),))
        units.append(Unit(n, m, (), held, None, False))
        weights.append(rng.normal(size=(n, d + i)))
        inputs.append(Inputs([jnp.asarray(weights[-1], jnp.float32)], None, None, i))
    return weights, read(inputs, Bucket(tuple(units), ifjax.Method(), moved))


@pytest.mark.parametrize("moved", [False, True])
def test_scores_targets_marginals_and_costs_are_those_of_each_group(moved):
    weights, found = problem(moved)
    for i, (w, (n, m)) in enumerate(zip(weights, ((7, 3), (5, 2)), strict=True)):
        scores = np.abs(w).sum(1)
        np.testing.assert_allclose(found.scores[i, :n], scores / scores.mean(), rtol=1e-5)
        targets = np.sort(np.argsort(-scores)[:m])
        np.testing.assert_array_equal(found.targets[i], [*targets, *[7] * (3 - m)])
        np.testing.assert_allclose(found.a[i], [*[1 / n] * n, *[0] * (7 - n)], rtol=1e-6)
        np.testing.assert_allclose(found.b[i], [*[1 / m] * m, *[0] * (3 - m)], rtol=1e-6)
        rows = w / np.linalg.norm(w, axis=1, keepdims=True)
        sources = np.setdiff1d(np.arange(n), targets) if moved else np.arange(n)
        cost = cdist(rows[sources], rows[targets], "cityblock")
        np.testing.assert_allclose(found.cost[i, : len(sources), :m], cost, atol=1e-6)
        if moved:
            rest = [7] * (4 - len(sources))
            np.testing.assert_array_equal(found.sources[i], [*sources, *rest])
        else:
            assert found.sources is None


def test_arrays_of_any_sizes_are_stacked():
    x, y = jnp.ones((2, 3, 1)), jnp.ones((1, 2, 2))
    got = stacked([x, y], value=7)
    assert got.shape == (3, 3, 2)
    np.testing.assert_array_equal(got[2], [[1, 1], [1, 1], [7, 7]])
    np.testing.assert_array_equal(got[0], [[1, 7]] * 3)
    assert stacked([x], (4, 2)).shape == (2, 4, 2)


def test_the_width_of_a_group_is_that_of_its_rows():
    """Products and sums count every occurrence: against the rows themselves."""
    from ifjax.structure.layout import rows

    atom = ex.Atom(SELF, 3)
    where = ex.Sum((ex.Pinned(2), ex.Product((ex.Pinned(4), atom)), atom))
    p = arrays(a=(17, 2, 5), b=(3,))
    places = (Place(0, 0, "producer", where), Place(1, 0, "consumer", atom))
    held = Held(((17, 2, 5), (3,)), places)
    matrices = rows([jnp.asarray(x) for x in p.values()], places)
    assert held.width == sum(x.shape[1] for x in matrices) == 4 * 10 + 10 + 1
