"""Backward elimination, against refitting without every candidate."""

import numpy as np
import pytest

from ifjax.reconstruction.choice import RIDGE, backward_elimination


def problem(rng, n, c=1, outputs=4, samples=60):
    x = rng.normal(size=(samples, n * c)) @ rng.normal(size=(n * c, n * c))
    return x.T @ x, rng.normal(size=(n * c, outputs))


def losses(gram, w, alive, units):
    """What is added to the squared error by leaving each unit out, everything refitted."""
    k = len(gram)
    r = gram + RIDGE * np.trace(gram) / k * np.eye(k)
    left = np.isin(units, alive) | (units < 0)
    found = {}
    for u in alive:
        keep = np.flatnonzero(left & (units != u))
        fit = np.linalg.solve(r[np.ix_(keep, keep)], r[keep] @ w)
        rest = w.copy()
        rest[keep] -= fit
        gone = np.setdiff1d(np.arange(k), keep)
        full = np.zeros_like(w)
        full[keep] = fit
        difference = w - full
        found[u] = float(np.sum(difference * (r @ difference)))
        assert len(gone) == k - len(keep)
    return found


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("other", [0, 2])
def test_the_least_loss_goes_at_every_step(c, other):
    rng = np.random.default_rng(c + other)
    n = 7
    gram, w = problem(rng, n * c + other, 1)
    units = np.concatenate([np.repeat(np.arange(n), c), np.full(other, -1)])
    order = rng.permutation(len(units))  # columns of a neuron need not lie together
    gram, w, units = gram[np.ix_(order, order)], w[order], units[order]
    alive = list(range(n))
    while len(alive) > 3:
        found = losses(gram, w, alive, units)
        alive.remove(min(found, key=found.__getitem__))
    got = backward_elimination(gram[None], w[None], units[None], 1, 3)
    np.testing.assert_array_equal(got, [alive])


def test_every_entry_keeps_as_many():
    rng = np.random.default_rng(0)
    gram, w = problem(rng, 12)
    got = backward_elimination(gram[None], w[None], np.arange(12)[None], 3, 2)
    assert got.shape == (3, 2)
    assert (np.diff(got, axis=1) > 0).all()


def test_problems_of_the_same_neurons_add_up():
    """Two problems side by side are one with twice the outputs where their rows are the same."""
    rng = np.random.default_rng(1)
    gram, w = problem(rng, 8, outputs=6)
    one = backward_elimination(gram[None], w[None], np.arange(8)[None], 1, 3)
    both = np.stack([w[:, :3], w[:, 3:]])
    two = backward_elimination(np.stack([gram] * 2), both, np.stack([np.arange(8)] * 2), 1, 3)
    np.testing.assert_array_equal(one, two)


def test_problems_of_other_neurons_stand_alone():
    rng = np.random.default_rng(2)
    problems = [problem(rng, 5) for _ in range(3)]
    grams, weights = (np.stack(x) for x in zip(*problems, strict=True))
    units = np.arange(15).reshape(3, 5)
    got = backward_elimination(grams, weights, units, 3, 2)
    for i in range(3):
        alone = backward_elimination(grams[i : i + 1], weights[i : i + 1], units[:1], 1, 2)
        np.testing.assert_array_equal(got[i : i + 1], alone)


def test_a_copy_goes_before_what_stands_alone():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(100, 4))
    x = np.concatenate([x, x[:, :1]], 1)  # the last is the first once more
    w = np.ones((5, 2))
    [kept] = backward_elimination((x.T @ x)[None], w[None], np.arange(5)[None], 1, 4)
    assert set(kept) >= {1, 2, 3}


def test_uneven_columns_are_refused():
    with pytest.raises(ValueError, match="as many columns"):
        backward_elimination(np.eye(3)[None], np.ones((1, 3, 1)), np.array([[0, 0, 1]]), 1, 1)
    shared = np.array([[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="none in common"):
        backward_elimination(np.stack([np.eye(2)] * 2), np.ones((2, 2, 1)), shared, 2, 1)
