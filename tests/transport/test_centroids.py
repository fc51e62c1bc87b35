"""Centroids against scikit-learn's, and their representatives against scipy's assignment."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from ifjax.transport import centroids

N, M, D = 24, 8, 60
KEY = jax.random.key(0)


def features(seed=0, n=N, noise=0.5):
    """Unit vectors around ten directions, more features than neurons."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(10, D))[np.arange(n) % 10] + noise * rng.normal(size=(n, D))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


KINDS = {"kmeans": centroids.KMeans(), "gaussian_mixture": centroids.GaussianMixture()}


@functools.partial(jax.jit, static_argnums=(1, 2))
def clusters(x, m, kind, key, scores=None):
    return KINDS[kind].clusters(x, m, key, scores)


def inertia(x, centres):
    x, centres = np.asarray(x, np.float64), np.asarray(centres, np.float64)
    return ((x[:, None] - centres) ** 2).sum(-1).min(1).sum()


@pytest.mark.parametrize("seed", range(3))
def test_k_means_is_as_good_as_scikit_learn_s(seed):
    x = features(seed)
    found = clusters(x, M, "kmeans", jax.random.key(seed))
    theirs = KMeans(M, n_init=10, random_state=seed).fit(np.asarray(x))
    assert inertia(x, found.centroids) <= 1.03 * theirs.inertia_
    # Centroids are the means of their clusters, and every neuron is in the nearest.
    means = np.asarray(found.shares).T @ np.asarray(x) / np.asarray(found.shares).sum(0)[:, None]
    np.testing.assert_allclose(found.centroids, means, atol=1e-6)
    distance = ((np.asarray(x)[:, None] - np.asarray(found.centroids)) ** 2).sum(-1)
    np.testing.assert_array_equal(np.argmax(found.shares, 1), np.argmin(distance, 1))


def likelihood(x, shares, floor):
    """One step of expectation maximisation in float64: mean log-likelihood, and the new shares."""
    n, d = x.shape
    total = shares.sum(0)
    means = shares.T @ x / total[:, None]
    square = ((x[:, None] - means) ** 2).sum(-1)
    variance = (shares * square).sum(0) / total / d + floor
    log = np.log(total / n) - d / 2 * np.log(2 * np.pi * variance) - square / 2 / variance
    return logsumexp(log, axis=1).mean(), np.exp(log - logsumexp(log, axis=1, keepdims=True))


def test_a_mixture_is_a_fixed_point_and_as_likely_as_scikit_learn_s():
    n = 60  # six to a direction: single neurons would make any likelihood
    x = np.asarray(features(3, n, 0.3), np.float64)
    found = clusters(jnp.asarray(x, jnp.float32), 10, "gaussian_mixture", KEY)
    shares = np.asarray(found.shares, np.float64)
    np.testing.assert_allclose(shares.sum(1), np.ones(n), atol=1e-5)
    np.testing.assert_allclose(found.centroids, shares.T @ x / shares.sum(0)[:, None], atol=1e-6)
    floor = 1e-3 * x.var(0).mean()
    mean, again = likelihood(x, shares, floor)
    np.testing.assert_allclose(again, shares, atol=1e-3)
    theirs = GaussianMixture(
        10, covariance_type="spherical", reg_covar=floor, n_init=5, random_state=0
    ).fit(x)
    assert mean >= theirs.score(x) - 0.01 * abs(theirs.score(x))


@pytest.mark.parametrize("kind", KINDS)
def test_representatives_are_the_distinct_neurons_nearest_to_the_centroids(kind):
    x = features(4)
    result = clusters(x, M, kind, KEY)
    targets = np.asarray(result.targets)
    distance = ((np.asarray(result.centroids)[:, None] - np.asarray(x)) ** 2).sum(-1)
    each, nearest = linear_sum_assignment(distance)
    assert np.all(np.diff(targets) > 0)
    # Of two neurons equally near to their mean either may stand for it: distances are compared.
    found, expected = distance[each, targets], distance[each, nearest]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_of_two_equally_near_neurons_the_more_important_represents_them():
    """Each pair is as far from its centroid; without scores rounding would decide."""
    x = jnp.repeat(jnp.eye(4, D), 2, axis=0) + 0.1 * jnp.eye(8, D, 10)
    scores = jnp.asarray([2.0, 1, 1, 2, 2, 1, 1, 2])
    found = clusters(x, 4, "kmeans", KEY, scores)
    np.testing.assert_array_equal(found.targets, [0, 3, 4, 7])


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_of_one_direction_are_one_cluster(kind):
    """Ten exact directions, ten centroids: nothing else is as good."""
    x = features(5, noise=0.0)
    found = clusters(x, 10, kind, KEY)
    assert sorted((np.asarray(found.targets) % 10).tolist()) == [*range(10)]
    labels = np.argmax(found.shares, 1)
    np.testing.assert_array_equal(labels, labels[np.arange(N) % 10])
    assert len(set(labels.tolist())) == 10
    np.testing.assert_allclose(found.centroids, x[found.targets], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_equal_and_dead_neurons_have_finite_centroids(kind, value):
    found = clusters(jnp.full((N, D), value), M, kind, KEY)
    assert len(set(np.asarray(found.targets).tolist())) == M
    np.testing.assert_allclose(found.centroids, np.full((M, D), value), atol=1e-6)
    np.testing.assert_allclose(found.shares.sum(1), np.ones(N), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_all_neurons_may_be_targets(kind):
    x = features(6, n=6)
    found = clusters(x, 6, kind, KEY)
    np.testing.assert_array_equal(found.targets, np.arange(6))
    np.testing.assert_allclose(found.centroids, x, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_double_precision_stays(kind):
    with jax.enable_x64(True):
        x = jnp.asarray(features(7), jnp.float64)
        found = clusters(x, M, kind, KEY)
        assert found.centroids.dtype == found.shares.dtype == jnp.float64
        means = (
            np.asarray(found.shares).T @ np.asarray(x) / np.asarray(found.shares).sum(0)[:, None]
        )
        np.testing.assert_allclose(found.centroids, means, atol=1e-13)


def test_more_centroids_than_neurons_and_no_starts_are_refused():
    with pytest.raises(ValueError, match="9 centroids of 8 neurons"):
        centroids.KMeans().clusters(jnp.ones((8, 3)), 9, KEY)
    with pytest.raises(ValueError, match="starts must be at least 1; got 0"):
        centroids.KMeans(starts=0)


def test_a_mixture_without_scikit_learn_says_how(monkeypatch):
    centroids._mixture.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(ImportError, match=r"pip install 'ifjax\[centroids\]'.*'kmeans'"):
        centroids.GaussianMixture().require()
    centroids.KMeans().require()
