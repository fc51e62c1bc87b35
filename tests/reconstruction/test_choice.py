"""Backward elimination and forward selection, against refitting for every candidate."""

import numpy as np
import pytest

from ifjax.reconstruction import choice
from ifjax.reconstruction.choice import RIDGE, backward_elimination, forward_selection

CHOICES = {"backward": backward_elimination, "forward": forward_selection}


def problem(rng, n, c=1, outputs=4, samples=60):
    x = rng.normal(size=(samples, n * c)) @ rng.normal(size=(n * c, n * c))
    return x.T @ x, rng.normal(size=(n * c, outputs))


def loss(gram, w, columns):
    """What is left of the squared error where these columns stay, everything refitted."""
    k = len(gram)
    r = gram + RIDGE * np.trace(gram) / k * np.eye(k)
    rest = w.copy()
    rest[columns] -= np.linalg.solve(r[np.ix_(columns, columns)], r[columns] @ w)
    return float(np.sum(rest * (r @ rest)))


def one_by_one(gram, w, units, kept, direction):
    """The choice by refitting for every candidate."""
    n = units.max() + 1
    state = set(range(n)) if direction == "backward" else set()
    while len(state) != kept:
        moves = state if direction == "backward" else set(range(n)) - state
        found = {u: np.flatnonzero(np.isin(units, [*state ^ {u}, -1])) for u in moves}
        state ^= {min(found, key=lambda u: loss(gram, w, found[u]))}
    return sorted(state)


@pytest.mark.parametrize("direction", CHOICES)
@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("other", [0, 2])
def test_each_is_the_next_best(c, other, direction):
    rng = np.random.default_rng(c + other)
    n = 7
    gram, w = problem(rng, n * c + other, 1)
    units = np.concatenate([np.repeat(np.arange(n), c), np.full(other, -1)])
    order = rng.permutation(len(units))  # columns of a neuron need not lie together
    gram, w, units = gram[np.ix_(order, order)], w[order], units[order]
    got = CHOICES[direction](gram[None], w[None], units[None], 1, 3)
    np.testing.assert_array_equal(got, [one_by_one(gram, w, units, 3, direction)])


@pytest.mark.parametrize("direction", CHOICES)
@pytest.mark.parametrize("c", [1, 2])
def test_blocks_choose_as_well_as_one_by_one(c, direction, monkeypatch):
    """With a few candidates at a time: among neurons that occur twice, too."""
    n, kept = 40, 15
    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, n // 4, c))
    x = np.concatenate([x, x, np.maximum(rng.normal(size=(300, n // 2, c)), 0)], 1)
    x = x.reshape(300, n * c) + 1e-3 * rng.normal(size=(300, n * c))
    gram, w, units = x.T @ x, rng.normal(size=(n * c, 5)), np.repeat(np.arange(n), c)
    best = one_by_one(gram, w, units, kept, direction)
    monkeypatch.setattr(choice, "CANDIDATES", 12 * c)
    [got] = CHOICES[direction](gram[None], w[None], units[None], 1, kept)
    assert len(set(got)) == kept
    losses = [loss(gram, w, np.flatnonzero(np.isin(units, x))) for x in (got, best)]
    assert losses[0] <= 1.02 * losses[1]
    many = np.stack([w, 2 * w])
    grams, both = np.stack([gram, gram]), np.stack([units, units])
    np.testing.assert_array_equal(CHOICES[direction](grams, many, both, 1, kept), [got])


@pytest.mark.parametrize("direction", CHOICES)
def test_every_entry_keeps_as_many(direction):
    rng = np.random.default_rng(0)
    gram, w = problem(rng, 12)
    got = CHOICES[direction](gram[None], w[None], np.arange(12)[None], 3, 2)
    assert got.shape == (3, 2)
    assert (np.diff(got, axis=1) > 0).all()


@pytest.mark.parametrize("direction", CHOICES)
def test_problems_of_the_same_neurons_add_up(direction):
    """Two problems side by side are one with twice the outputs where their rows are the same."""
    rng = np.random.default_rng(1)
    gram, w = problem(rng, 8, outputs=6)
    one = CHOICES[direction](gram[None], w[None], np.arange(8)[None], 1, 3)
    both = np.stack([w[:, :3], w[:, 3:]])
    two = CHOICES[direction](np.stack([gram] * 2), both, np.stack([np.arange(8)] * 2), 1, 3)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("direction", CHOICES)
def test_problems_of_other_neurons_stand_alone(direction):
    rng = np.random.default_rng(2)
    problems = [problem(rng, 5) for _ in range(3)]
    grams, weights = (np.stack(x) for x in zip(*problems, strict=True))
    units = np.arange(15).reshape(3, 5)
    got = CHOICES[direction](grams, weights, units, 3, 2)
    for i in range(3):
        alone = CHOICES[direction](grams[i : i + 1], weights[i : i + 1], units[:1], 1, 2)
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
