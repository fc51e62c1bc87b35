"""Ridge regression on moments, against least squares on the rows themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.activations.moments import Moments
from ifjax.reconstruction.ridge import (
    SHRINKAGES,
    WIDE,
    _by_spectrum,
    best_gain,
    fit,
    held_out,
    ridge,
    squared_error,
)


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


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("k", [5, 40])
def test_the_best_shrinkage_is_that_of_the_least_error_on_other_rows(k, intercept):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(k, 8))
    x = rng.normal(size=(3 * k, k)) + 1
    t = x @ truth + 2 * rng.normal(size=(3 * k, 8)) + 2
    start = truth[None] + rng.normal(size=(1, k, 8))
    training, test, whole = sums(x[:k], t[:k]), sums(x[k:], t[k:]), sums(x, t)
    errors = []
    for shrinkage in SHRINKAGES:
        weights, shift = ridge(training, start, shrinkage, intercept)
        errors.append(((x[k:] @ weights[0] + shift - t[k:]) ** 2).sum())
    found = fit(training, test, start, intercept)
    assert found.shrinkage == SHRINKAGES[int(np.argmin(errors))]
    np.testing.assert_allclose(found.held_after, min(errors), rtol=1e-9)
    before = [((rows @ start[0] - y) ** 2).sum() for rows, y in ((x[k:], t[k:]), (x, t))]
    np.testing.assert_allclose([found.held_before, found.before], before, rtol=1e-9)
    weights, shift = ridge(whole, start, found.shrinkage, intercept)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-9, atol=1e-12)
    assert (found.offsets is None) == (not intercept)
    after = ((x @ weights[0] + shift - t) ** 2).sum()
    np.testing.assert_allclose(found.after, after, rtol=1e-9)
    alone = fit(training, None, start, intercept)
    assert alone.shrinkage == 0.01
    assert np.isnan([alone.held_before, alone.held_after]).all()


@pytest.mark.parametrize("device", [False, True])
def test_of_few_noisy_rows_the_weights_stay(device):
    """The weights are the truth: what eight rows of noise say of them is wrong at any shrinkage."""
    rng = np.random.default_rng(0)
    truth, x = rng.normal(size=(40, 6)), rng.normal(size=(108, 40)) / 4
    t = x @ truth + 5 * rng.normal(size=(108, 6))

    def fitted(shift, intercept):
        parts = sums(x[:8], t[:8] + shift), sums(x[8:], t[8:] + shift)
        parts = jax.tree.map(jnp.asarray, parts) if device else parts
        return fit(*parts, truth[None], intercept)

    found = fitted(0, False)
    assert (found.shrinkage, found.offsets) == (np.inf, None)
    np.testing.assert_array_equal(found.weights, truth[None])
    assert (found.before, found.held_before) == (found.after, found.held_after)
    np.testing.assert_allclose(found.held_before, ((x[8:] @ truth - t[8:]) ** 2).sum(), rtol=1e-4)
    means = fitted(100, True)  # a bias takes up what is large enough to be seen
    assert means.shrinkage == np.inf
    np.testing.assert_allclose(means.weights, truth[None], rtol=1e-6)
    mean = (t + 100 - x @ truth).mean(0)
    np.testing.assert_allclose(means.offsets[0], mean, rtol=1e-4)
    assert means.held_after < means.held_before / 10


def test_what_several_read_is_factored_once(monkeypatch):
    """Results do not depend on whether others that read the same came before."""
    rng = np.random.default_rng(0)
    x, t, start = rng.normal(size=(60, 5)), rng.normal(size=(60, 6)), np.zeros((1, 5, 6))
    calls = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: (calls.append(len(a)), eigh(a))[1])
    known = {}
    for of in (slice(0, 2), slice(2, 6)):
        parts = sums(x[:40], x[:40] @ t[:5, of]), sums(x[40:], x[40:] @ t[:5, of])
        found = fit(*parts, start[..., of], True, known)
        alone = fit(*parts, start[..., of], True)
        np.testing.assert_array_equal(found.weights, alone.weights)
    assert len(calls) == 3


@pytest.mark.parametrize("intercept", [False, True])
def test_errors_of_held_out_rows_are_the_same_both_ways(intercept):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(60, 12)) + 1, rng.normal(size=(60, 3))
    parts = sums(x[:40], t[:40]), sums(x[40:], t[40:])
    assert WIDE * 12 > 3
    solved = held_out(*parts, intercept, {})
    known = {}
    by_spectrum = _by_spectrum(*parts, intercept, known)
    np.testing.assert_allclose(solved, by_spectrum, rtol=1e-9)
    assert held_out(*parts, intercept, known) == by_spectrum, "where it is diagonal already"


@pytest.mark.parametrize("intercept", [True, False])
def test_the_gain_is_that_of_the_least_error_if_it_holds_on_other_rows(intercept):
    rng = np.random.default_rng(0)
    x, v = rng.normal(2, 1, (40, 3)), rng.normal(size=(3, 2))
    t, start = 0.7 * x @ v + rng.normal(0, 0.1, (40, 2)) + 5 * intercept, v[None]

    def error(rows, gain):
        left = t[rows] - gain * x[rows] @ v
        mean = (t[:30] - gain * x[:30] @ v).mean(0) if intercept else 0
        return np.square(left - mean).sum()

    found = best_gain(sums(x[:30], t[:30]), sums(x[30:], t[30:]), start, intercept)
    tried = np.linspace(0.1, 4, 391)
    assert abs(found - min(tried, key=lambda gain: error(slice(30), gain))) <= 0.01
    assert error(slice(30, 40), found) < error(slice(30, 40), 1)
    for held in (x[30:] @ v, 1.2 * x[30:] @ v):  # that one is better there
        assert best_gain(sums(x[:30], t[:30]), sums(x[30:], held), start, True) == 1


def test_the_gain_of_rows_that_hardly_vary_is_one():
    rng = np.random.default_rng(0)
    x, t = 1 + rng.normal(0, 1e-7, (8, 3)), rng.normal(size=(8, 2))
    assert best_gain(sums(x, t), None, np.ones((1, 3, 2)), True) == 1
