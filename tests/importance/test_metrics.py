import dataclasses
import itertools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings

from ifjax import importance

SCORES = [name for name in importance.names() if name != "reconstruction"]  # which has none

POWER = {"l1": 1, "l2": 2, "linf": math.inf}


def members(seed, n=6, widths=(4, 7)):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, k)).astype(np.float32) for k in widths]


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


# Reduction and normalisation --------------------------------------------------------------------

REDUCE = {"mean": np.mean, "sum": np.sum, "max": np.max, "first": lambda x, axis: x[0]}
NORMALISE = {"mean": np.mean, "sum": np.sum, "max": np.max, "none": lambda x: 1.0}


@pytest.mark.parametrize("normalization", NORMALISE)
@pytest.mark.parametrize("reduction", REDUCE)
def test_members_are_reduced_and_normalised(reduction, normalization):
    assert set(REDUCE) == {*importance.REDUCTIONS}
    assert set(NORMALISE) == {*importance.NORMALIZATIONS}
    matrices = members(4, widths=(4, 7, 2))
    each = np.stack([np.abs(x.astype(np.float64)).sum(1) for x in matrices])
    expected = REDUCE[reduction](each, axis=0)
    expected = expected / NORMALISE[normalization](expected)
    arrays = [jnp.asarray(x) for x in matrices]
    got = importance.score("l1", arrays, reduction=reduction, normalization=normalization)
    np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize("normalization", NORMALISE)
def test_scores_that_are_all_zero_stay_so(normalization):
    got = importance.normalise(jnp.zeros(3), normalization)
    np.testing.assert_array_equal(got, np.zeros(3))


def test_unknown_reductions_and_normalisations_list_the_known():
    with pytest.raises(ValueError, match=r"one of mean, sum, max, first; got 'prod'"):
        importance.reduce([jnp.ones(2)], "prod")
    with pytest.raises(ValueError, match=r"one of mean, max, sum, none; got 'std'"):
        importance.normalise(jnp.ones(2), "std")


def test_what_comes_with_signs_is_scored_without():
    rows = jnp.asarray([[1.0, -3.0], [-2.0, -1.0]])
    for name, expected in (("taylor", [2, 3]), ("bn_scale", [2, 1.5])):
        got = importance.score(name, [rows], normalization="none")
        np.testing.assert_allclose(got, expected, err_msg=name)


# Dtypes, keys, errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
def test_half_precision_is_scored_in_float32_and_float64_stays(name):
    key = jax.random.key(0)
    half = [jnp.asarray(x, jnp.bfloat16) for x in members(0)]
    assert importance.score(name, half, key).dtype == jnp.float32
    with jax.enable_x64(True):
        double = [jnp.asarray(x, jnp.float64) for x in members(0)]
        assert importance.score(name, double, key).dtype == jnp.float64


def test_random_depends_on_the_key_alone():
    x, y = [jnp.asarray(m) for m in members(0)], [jnp.asarray(m) for m in members(1)]
    one = importance.score("random", x, jax.random.key(1))
    np.testing.assert_array_equal(one, importance.score("random", y, jax.random.key(1)))
    assert np.any(one != importance.score("random", x, jax.random.key(2)))
    assert one.shape == (6,)
    assert np.all((one >= 0) & (one < 1))


@pytest.mark.parametrize("name", SCORES)
def test_compiles_once(name):
    traces = []

    @jax.jit
    def scored(matrices, key):
        traces.append(name)
        return importance.score(name, matrices, key)

    for seed in range(2):
        scored([jnp.asarray(x) for x in members(seed)], jax.random.key(seed))
    assert len(traces) == 1


@dataclasses.dataclass(frozen=True)
class Last(importance.Metric):
    """The last weight of a neuron."""

    times: float = 1.0

    def member(self, x, axis):
        return self.times * x.take(-1, 1 - axis)


def test_a_further_metric_is_a_class_and_registers_by_an_entry(monkeypatch):
    np.testing.assert_array_equal(importance.score(Last(), [jnp.eye(3)]), [0, 0, 3])
    monkeypatch.setitem(importance.IMPORTANCES, "last", Last)
    np.testing.assert_array_equal(importance.score("last", [jnp.eye(3)]), [0, 0, 3])
    got = importance.score(Last(times=2), [jnp.eye(3)], normalization="none")
    np.testing.assert_array_equal(got, [0, 0, 2])


def test_scores_of_another_shape_are_refused():
    class Whole(importance.Metric):
        def member(self, x, axis):
            return jnp.abs(x)

    class Two(importance.GroupMetric):
        def score(self, members, axes, key, reduction, normalization):
            return jnp.ones(2)

    for metric in (Whole(), Two()):
        with pytest.raises(ValueError, match=r"one score for each of 3 neurons, got .* shape"):
            importance.score(metric, [jnp.ones((3, 2))])


def test_what_is_no_metric_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"a name or an ifjax\.importance\.Metric, got 3"):
        importance.metric_of(3)


def test_other_seeds_draw_other_scores_from_the_same_key():
    key, x = jax.random.key(0), [jnp.ones((64, 2))]
    drawn = [importance.score(importance.Random(seed), x, key) for seed in (None, 0, 1)]
    for one, two in itertools.combinations(drawn, 2):
        assert np.all(one != two)
    np.testing.assert_array_equal(drawn[0], importance.score("random", x, key))


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"'l3'.*known: bn_scale, chip, .*, taylor"):
        importance.score("l3", [jnp.ones((2, 2))])


def test_random_without_a_key_says_how():
    with pytest.raises(ValueError, match=r"pass key=jax\.random\.key"):
        importance.score("random", [jnp.ones((2, 2))])


@pytest.mark.parametrize("name", SCORES)
def test_groups_without_or_with_unequal_members_are_refused(name):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="at least one member"):
        importance.score(name, [], key)
    with pytest.raises(ValueError, match=r"\(3, 2\), \(4, 2\)"):
        importance.score(name, [jnp.ones((3, 2)), jnp.ones((4, 2))], key)


@pytest.mark.parametrize("p", [0, -1, math.nan])
def test_powers_that_are_not_positive_are_refused(p):
    with pytest.raises(ValueError, match="p > 0"):
        importance.magnitude([jnp.ones((2, 2))], p)
