"""Metrics of what a network does on data."""

import jax.numpy as jnp
import numpy as np
import pytest

from ifjax import importance


def test_what_comes_with_signs_is_scored_without():
    rows = jnp.asarray([[1.0, -3.0], [-2.0, -1.0]])
    for name, expected in (("taylor", [2, 3]), ("bn_scale", [2, 1.5])):
        got = importance.score(name, [rows], normalization="none")
        np.testing.assert_allclose(got, expected, err_msg=name)


@pytest.mark.parametrize("name", ["fisher", "chip"])
def test_statistics_are_scores_as_they_are(name):
    found = importance.score(name, [jnp.asarray([0.5, 2.0])[:, None]], normalization="none")
    np.testing.assert_array_equal(found, [0.5, 2.0])
    along = importance.score(name, [jnp.asarray([[0.5, 2.0]])], normalization="none", axes=[1])
    np.testing.assert_array_equal(along, found)


def test_what_they_read_is_a_field_of_the_statistics():
    reads = {name: importance.statistic_of(name) for name in importance.names()}
    assert {k: v for k, v in reads.items() if v} == {
        "taylor": "gradients",
        "fisher": "fisher",
        "chip": "chip",
    }
