"""Costs against loops, assignments against brute force, correlations against numpy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.model_fusion import matching
from tests.graph.laws import array


def test_distance_of_sets_is_chamfers():
    x, y = array(1, 2, 3, 4), array(1, 3, 5, 4, seed=1)
    got = matching._set_distance(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), 2.0)
    for i, j in itertools.product(range(2), range(3)):
        d = np.linalg.norm(x[0, i][:, None] - y[0, j][None], axis=-1)
        assert got[0, i, j] == pytest.approx(d.min(0).mean() + d.min(1).mean(), rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_every_target_has_one_source(shape):
    n, m = shape
    cost = np.abs(array(1, n, m))
    found = matching._assigned(jnp.asarray(cost, jnp.float32))
    plan, sources = np.asarray(found.map[0]), np.asarray(found.targets[0])
    np.testing.assert_allclose(plan, np.eye(n)[:, sources] / m)
    if n >= m:
        best = min(cost[0, list(p), range(m)].sum() for p in itertools.permutations(range(n), m))
        assert cost[0, sources, range(m)].sum() == pytest.approx(best)
        assert float(found.cost[0]) == pytest.approx(best / m, rel=1e-6)
    else:
        assert set(sources) == set(range(n))


def mlp(p, x):
    return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]


def parameters(seed, a=4, b=5):
    shapes = {"a": (3, a), "b": (a, b), "c": (b, 2)}
    return {k: jnp.asarray(array(*s, seed=seed), jnp.float32) for k, s in shapes.items()}


def test_correlations_over_batches_are_those_of_all_data():
    one, two = parameters(1), parameters(2, b=6)
    plans = [ifjax.trace(mlp, p, jnp.ones((1, 3))).structure for p in (one, two)]
    x = np.random.default_rng(0).normal(5.0, 1.0, (40, 3)).astype(np.float32)
    batches = [(x[:7],), (x[7:30],), (x[30:],)]
    got = matching.activation_costs((mlp, two, plans[1]), (mlp, one, plans[0]), batches)
    assert set(got) == {"a", "b"}
    hidden = []
    for p in (two, one):
        w = {k: np.asarray(v, np.float64) for k, v in p.items()}
        h = np.maximum(x @ w["a"], 0)
        hidden.append({"a": h, "b": np.maximum(h @ w["b"], 0)})
    for name in "ab":
        h, k = hidden[0][name], hidden[1][name]
        h, k = h - h.mean(0), k - k.mean(0)
        spread = np.sqrt(np.outer((h * h).sum(0), (k * k).sum(0)))
        want = 1 - np.where(spread > 1e-9, h.T @ k / np.where(spread > 1e-9, spread, 1), 0)
        np.testing.assert_allclose(got[name][0], want, atol=2e-4)
