"""Metrics of weights alone, against loops in float64."""

import itertools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from ifjax import importance
from tests.importance.members import members

POWER = {"l1": 1, "l2": 2, "linf": math.inf}


def oracle(matrices, p):
    """A loop in float64."""
    scores = np.zeros(len(matrices[0]))
    for matrix in matrices:
        for i, row in enumerate(matrix.astype(np.float64)):
            powers = [abs(w) if math.isinf(p) else abs(w) ** p for w in row]
            scores[i] += (max(powers) if math.isinf(p) else sum(powers)) / len(matrices)
    return scores / scores.mean()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("name", POWER)
def test_magnitudes_equal_a_float64_loop(name, seed):
    matrices = members(seed)
    got = importance.score(name, [jnp.asarray(x) for x in matrices])
    np.testing.assert_allclose(got, oracle(matrices, POWER[name]), rtol=2e-6)


@pytest.mark.parametrize("name", POWER)
def test_scores_follow_a_permutation_and_ignore_the_scale(name):
    matrices = [jnp.asarray(x) for x in members(0)]
    order = np.random.default_rng(1).permutation(6)
    base = importance.score(name, matrices)
    np.testing.assert_allclose(
        importance.score(name, [3 * x[order] for x in matrices]), base[order], rtol=1e-6
    )


@pytest.mark.parametrize("name", POWER)
def test_members_of_different_widths_count_alike(name):
    # The mean is over members, not over weights: zero columns change nothing, a zero member halves.
    x, y = (jnp.asarray(m) for m in members(3))
    wide = jnp.pad(x, ((0, 0), (0, 100)))
    np.testing.assert_allclose(
        importance.score(name, [wide, y]), importance.score(name, [x, y]), rtol=1e-6
    )


@pytest.mark.parametrize("name", POWER)
def test_weights_that_are_all_zero_score_zero(name):
    got = importance.score(name, [jnp.zeros((3, 2)), jnp.zeros((3, 4))])
    np.testing.assert_array_equal(got, np.zeros(3))


# Layer-adaptive ---------------------------------------------------------------------------------


def lamp_oracle(matrix):
    """The paper's score, on squared norms sorted in ascending order: a loop in float64."""
    squares = (matrix.astype(np.float64) ** 2).sum(1)
    order, scores = np.argsort(squares), np.zeros(len(squares))
    for rank, i in enumerate(order):
        scores[i] = squares[i] / sum(squares[k] for k in order[rank:])
    return scores


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_lamp_equals_a_float64_loop(seed):
    matrices = members(seed)
    expected = [lamp_oracle(x) for x in matrices]
    for matrix, scores in zip(matrices, expected, strict=True):
        np.testing.assert_allclose(importance.lamp(jnp.asarray(matrix)), scores, rtol=3e-6)
        assert scores.max() == 1
    got = importance.score("lamp", [jnp.asarray(x) for x in matrices], normalization="none")
    np.testing.assert_allclose(got, np.mean(expected, 0), rtol=3e-6)


def test_lamp_scores_equal_neurons_equally_and_dead_ones_zero():
    got = importance.lamp(jnp.asarray([[1.0], [0.0], [-1.0], [2.0]]))
    np.testing.assert_allclose(got, [1 / 6, 0, 1 / 6, 1], rtol=1e-6)
    np.testing.assert_array_equal(importance.lamp(jnp.zeros((3, 2))), np.zeros(3))


# Chance -----------------------------------------------------------------------------------------


def test_random_depends_on_the_key_alone():
    x, y = [jnp.asarray(m) for m in members(0)], [jnp.asarray(m) for m in members(1)]
    one = importance.score("random", x, jax.random.key(1))
    np.testing.assert_array_equal(one, importance.score("random", y, jax.random.key(1)))
    assert np.any(one != importance.score("random", x, jax.random.key(2)))
    assert one.shape == (6,)
    assert np.all((one >= 0) & (one < 1))


def test_other_seeds_draw_other_scores_from_the_same_key():
    key, x = jax.random.key(0), [jnp.ones((64, 2))]
    drawn = [importance.score(importance.Random(seed), x, key) for seed in (None, 0, 1)]
    for one, two in itertools.combinations(drawn, 2):
        assert np.all(one != two)
    np.testing.assert_array_equal(drawn[0], importance.score("random", x, key))


def test_random_without_a_key_says_how():
    with pytest.raises(ValueError, match=r"pass key=jax\.random\.key"):
        importance.score("random", [jnp.ones((2, 2))])
