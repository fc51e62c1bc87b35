"""Scores of members as one, and metrics of one's own."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ifjax import importance
from tests.importance.members import members

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
