"""Moments of functions of Gaussian numbers, against closed forms and two-dimensional quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from numpy.polynomial.hermite_e import hermegauss

from ifjax.activations.gaussian import (
    covariance_of,
    covariance_of_largest,
    extremes_of,
    nodes,
    series_of,
)

CORRELATIONS = np.array([-0.99, -0.6, 0.0, 0.3, 0.9, 1.0])


def covariances(f, g, correlations=CORRELATIONS):
    """Of f(u) and g(v), for every correlation."""
    series = series_of(np.stack([f(nodes()), g(nodes())], 1))
    return [
        covariance_of(series, np.array([[1.0, c], [c, 1.0]]))[0, 1] for c in correlations.tolist()
    ]


def test_rectified_numbers_have_the_arc_cosine_kernel():
    """Cho and Saul, 2009."""
    relu = lambda t: np.maximum(t, 0)  # noqa: E731
    c = CORRELATIONS
    product = (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / (2 * np.pi)
    np.testing.assert_allclose(covariances(relu, relu), product - 1 / (2 * np.pi), atol=1e-4)
    series = series_of(relu(nodes())[:, None])
    np.testing.assert_allclose(series.mean, 1 / np.sqrt(2 * np.pi), rtol=1e-4)
    np.testing.assert_allclose(series.coefficients[0], 0.5, rtol=1e-4)


SMOOTH = {
    "gelu": lambda t: t * scipy.special.ndtr(t),
    "tanh": np.tanh,
    "square": np.square,
    "affine": lambda t: 3 * t - 1,
}


@pytest.mark.parametrize("f", SMOOTH)
@pytest.mark.parametrize("g", SMOOTH)
def test_smooth_functions(f, g):
    t, w = hermegauss(120)
    w = w / w.sum()
    want = []
    for c in CORRELATIONS[:-1]:
        u, v = t[:, None], c * t[:, None] + np.sqrt(1 - c**2) * t
        products = w[:, None] * w * SMOOTH[f](u) * SMOOTH[g](v)
        want.append(products.sum() - (w @ SMOOTH[f](t)) * (w @ SMOOTH[g](t)))
    found = covariances(SMOOTH[f], SMOOTH[g], CORRELATIONS[:-1])
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_matrices_are_positive_semidefinite():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 20))
    x /= np.sqrt((x**2).sum(0))
    values = np.abs(nodes()[:, None] * rng.normal(size=20) + rng.normal(size=20))
    assert np.linalg.eigvalsh(covariance_of(series_of(values), x.T @ x)).min() > -1e-9


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_the_largest_of_several(k):
    rng = np.random.default_rng(k)
    draws = rng.normal(size=(200_000, k))
    mean, variance, smallest = extremes_of(k)
    np.testing.assert_allclose(mean, draws.max(1).mean(), atol=0.01)
    np.testing.assert_allclose(variance, draws.max(1).var(), rtol=0.02)
    np.testing.assert_allclose(smallest, np.cov(draws.max(1), draws.min(1))[0, 1], atol=0.01)
    for c in (-0.9, -0.5, 0.5, 0.9):
        others = c * draws + np.sqrt(1 - c**2) * rng.normal(size=draws.shape)
        want = np.cov(draws.max(1), others.max(1))[0, 1]
        np.testing.assert_allclose(covariance_of_largest(k, np.array([c])), want, atol=0.015)
