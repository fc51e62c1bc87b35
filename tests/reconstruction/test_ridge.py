"""Ridge regression on moments, against least squares on the rows themselves."""

import numpy as np
import pytest

from ifjax.activations.moments import Moments
from ifjax.reconstruction.ridge import SHRINKAGES, best_shrinkage, ridge, squared_error


def sums(x, t):
    return Moments(
        len(x),
        x.sum(0)[None],
        (x.T @ x)[None],
        (x.T @ t)[None],
        t.sum(0)[None],
        (t**2).sum(0)[None],
    )


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("shrinkage", [1e-3, 0.1, 10.0])
def test_is_the_minimum(intercept, shrinkage):
    """The rows of the penalty are further rows of an ordinary least-squares problem."""
    rng = np.random.default_rng(0)
    x, t, start = rng.normal(size=(30, 5)) + 1, rng.normal(size=(30, 3)), rng.normal(size=(5, 3))
    found, shift = ridge(sums(x, t), start[None], shrinkage, intercept)
    penalty = np.sqrt(shrinkage * (x**2).sum() / 5) * np.eye(5)
    rows, right = np.vstack([x, penalty]), np.vstack([t, penalty @ start])
    ones = np.concatenate([np.ones(30), np.zeros(5)])[:, None]
    rows = np.hstack([rows, ones]) if intercept else rows
    want = np.linalg.lstsq(rows, right, rcond=None)[0]
    np.testing.assert_allclose(found[0], want[:5], rtol=1e-9, atol=1e-10)
    if intercept:
        np.testing.assert_allclose(shift[0], want[5], rtol=1e-9, atol=1e-10)
    error = ((x @ found[0] + shift - t) ** 2).sum()
    np.testing.assert_allclose(squared_error(sums(x, t), found, shift), error, rtol=1e-9)


def test_what_never_fires_keeps_its_weights():
    x, t, start = np.zeros((4, 2)), np.ones((4, 1)), np.ones((1, 2, 1))
    found, shift = ridge(sums(x, t), start, 0.1, True)
    np.testing.assert_array_equal(found, start)
    np.testing.assert_array_equal(shift, [[1.0]])
    x = np.array([[1.0, 0], [2, 0], [3, 0], [5, 0]])  # one of two
    found, _ = ridge(sums(x, t), start, 0.1, True)
    assert found[0, 1, 0] == 1.0


@pytest.mark.parametrize("k", [5, 100])  # one after another, and side by side
def test_the_best_shrinkage_is_that_of_the_least_error_on_other_rows(k):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(k, 8))
    x = rng.normal(size=(3 * k, k))
    t = x @ truth + 5 * rng.normal(size=(3 * k, 8))
    start = truth[None] + rng.normal(size=(1, k, 8)) / 3
    training, test = sums(x[:k], t[:k]), sums(x[k:], t[k:])
    errors = []
    for shrinkage in SHRINKAGES:
        found, shift = ridge(training, start, shrinkage, True)
        errors.append(((x[k:] @ found[0] + shift - t[k:]) ** 2).sum())
    best, (before, after) = best_shrinkage(training, test, start, True)
    assert best == SHRINKAGES[int(np.argmin(errors))]
    np.testing.assert_allclose(after, min(errors), rtol=1e-9)
    np.testing.assert_allclose(before, ((x[k:] @ start[0] - t[k:]) ** 2).sum(), rtol=1e-9)
    assert np.isnan(best_shrinkage(training, None, start, True)[1]).all()
