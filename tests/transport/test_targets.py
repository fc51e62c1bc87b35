"""What neurons are fused into, as values and by their names."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ifjax.transport import GaussianMixture, KMeans, Top, targets


def test_names_are_values():
    assert targets.targets_of("top") == Top()
    assert targets.targets_of("centroids") == targets.targets_of("kmeans") == KMeans()
    assert targets.targets_of("centroids", "gaussian_mixture") == GaussianMixture()
    own = KMeans(starts=3)
    assert targets.targets_of(own) is own


def test_what_is_no_name_and_no_value_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'ward'; known: top, kmeans, gaussian_mixture"):
        targets.targets_of("centroids", "ward")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match="a name or targets as a value, got 3"):
        targets.targets_of(3)


def test_registered_neurons_and_centroids_are_names_of_different_options(monkeypatch):
    monkeypatch.setitem(targets.TARGETS, "first", Top)
    monkeypatch.setitem(targets.TARGETS, "ward", KMeans)
    assert targets.names() == ["top", "first", "centroids"]
    assert targets.centroid_names() == ["kmeans", "gaussian_mixture", "ward"]


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_top_are_those_of_a_stable_sort(k):
    scores = np.float32([1, 3, 1, 2, 3, 0])
    expected = np.argsort(-scores, kind="stable")[:k]
    np.testing.assert_array_equal(Top().first(jnp.asarray(scores), k), expected)


def test_more_starts_are_no_worse():
    x = jax.random.normal(jax.random.key(1), (24, 4))

    def inertia(starts):
        centres = KMeans(starts).clusters(x, 6, jax.random.key(2)).centroids
        return float(((x[:, None] - centres[None]) ** 2).sum(-1).min(1).sum())

    assert inertia(20) < inertia(1)
