"""The same functions on numpy and on jax give the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax import namespace as ns

BOTH = pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
X = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)


def test_one_array_of_jax_decides():
    assert ns.namespace(X, X) is np
    assert ns.namespace(X, jnp.asarray(X)) is jnp


@BOTH
def test_sums_run_over_the_given_axes_in_the_dtype_of_the_array(array):
    for axes in (0, (0, 2), (1,)):
        got = ns.total(array(X), axes)
        np.testing.assert_allclose(got, X.astype(np.float64).sum(axes), rtol=1e-5, atol=1e-6)
        assert got.dtype == np.float32


def test_a_long_sum_in_numpy_keeps_its_digits():
    terms = np.full((200_000, 2), 0.1, np.float32)
    np.testing.assert_allclose(ns.total(terms, 0), 200_000 * float(np.float32(0.1)), rtol=1e-7)


@BOTH
def test_a_vector_lies_along_one_axis(array):
    got = ns.along(array(X[0, :, 0]), 1, 3) * array(X)
    np.testing.assert_allclose(got, np.einsum("b,abc->abc", X[0, :, 0], X), rtol=1e-6)


@BOTH
def test_of_equal_scores_the_first_come_first(array):
    scores = np.array([1.0, 3.0, 1.0, 3.0, 2.0], np.float32)
    expected = sorted(range(5), key=lambda i: (-scores[i], i))
    assert ns.descending(array(scores)).tolist() == expected


@BOTH
def test_some_rows_are_replaced_and_the_array_that_was_given_stays(array):
    x, index = array(X), array(np.array([3, 0]))
    got = ns.put(x, index, array(X[:2]))
    expected = X.copy()
    expected[[3, 0]] = X[:2]
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["bfloat16"], "float32"),
        (["float16", "float32"], "float32"),
        (["float8_e4m3fn"], "float32"),
        (["float64", "bfloat16"], "float64"),
    ],
)
def test_numbers_are_computed_in_float32_at_least(dtypes, expected):
    arrays = [np.zeros(2, jnp.dtype(name)) for name in dtypes]
    with jax.enable_x64(True):
        assert ns.wide(*arrays) == expected


def test_no_gradient_flows_through_what_is_fixed():
    got = jax.grad(lambda x: jnp.sum(ns.fixed(x) * x))(jnp.asarray(X))
    np.testing.assert_array_equal(got, X)
    assert ns.fixed(X) is X
