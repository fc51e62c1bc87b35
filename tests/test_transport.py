import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings

from ifjax import transport

NORMS = [1, 1.5, 2, 7, math.inf]
seeds = st.integers(0, 2**32 - 1)


# Features ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_features_have_norm_one_at_any_scale(scale):
    rows = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    got = transport.features(jnp.asarray(rows * np.float32(scale)))
    np.testing.assert_allclose(got, rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=2e-6)


def test_zero_rows_have_zero_features_and_gradients():
    rows = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(transport.features(rows), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: transport.features(x)[:, 0].sum())(rows)
    # d(x / |x|) = (1 - f f^T) / |x|; its first row for f = (0.6, 0.8), |x| = 5.
    np.testing.assert_allclose(gradient[0], [0.64 / 5, -0.48 / 5], rtol=1e-5)
    assert np.all(np.isfinite(gradient))


def test_features_keep_the_dtype():
    assert transport.features(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


# Costs ------------------------------------------------------------------------------------------


def distances(x, y, p):
    """A loop in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.array([[np.linalg.norm(u - v, p) for v in y] for u in x])


@settings(max_examples=8, deadline=None)
@given(seed=seeds, d=st.sampled_from([1, 16, 37]))
@pytest.mark.parametrize("p", NORMS)
def test_cost_equals_a_float64_loop(p, d, seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(k, d)).astype(np.float32) for k in (6, 4))
    got = transport.cost_matrix(jnp.asarray(x), jnp.asarray(y), p)
    np.testing.assert_allclose(got, distances(x, y, p), rtol=5e-6)


@pytest.mark.parametrize("p", NORMS)
def test_equal_rows_cost_exactly_zero_and_have_finite_gradients(p):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 33)), jnp.float32)
    assert np.all(np.diag(transport.cost_matrix(x, x, p)) == 0)
    gradient = jax.grad(lambda x, y: transport.cost_matrix(x, y, p).sum())(x, x[:3])
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("p", NORMS)
def test_the_gradient_of_the_cost_equals_differences(p):
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        x, y = (jnp.asarray(rng.normal(size=(k, 17))) for k in (4, 3))
        weights = jnp.asarray(rng.normal(size=(4, 3)))
        direction = jnp.asarray(rng.normal(size=(4, 17)))
        got = jax.grad(lambda x: (weights * transport.cost_matrix(x, y, p)).sum())(x)
        ahead, behind = (distances(x + h * direction, y, p) for h in (1e-6, -1e-6))
        expected = (weights * (ahead - behind)).sum() / 2e-6
        np.testing.assert_allclose((got * direction).sum(), expected, rtol=1e-6)


def test_high_powers_do_not_vanish():
    x, y = jnp.full((1, 16), 1e-3), jnp.zeros((1, 16))
    got = transport.cost_matrix(x, y, 60)
    np.testing.assert_allclose(got, [[1e-3 * 16 ** (1 / 60)]], rtol=1e-5)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_memory_of_the_cost_is_that_of_its_inputs_and_output(p):
    n, m, d = 96, 64, 1024
    x, y = jnp.ones((n, d)), jnp.ones((m, d))
    plain = 4 * ((n + m) * d + n * m)  # against n m d = 25 MB

    def temporaries(function):
        return jax.jit(function).lower(x, y).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(lambda x, y: transport.cost_matrix(x, y, p)) < 1.5 * plain
    gradient = jax.grad(lambda x, y: transport.cost_matrix(x, y, p).sum(), (0, 1))
    # Reverse mode may keep an [n, m] matrix per chunk of 16 features (p = inf does).
    assert temporaries(gradient) < 3 * plain + 4 * n * m * d / 8


@pytest.mark.parametrize(
    ("dtype", "expected"), [(jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float64)]
)
def test_costs_are_float32_at_least(dtype, expected):
    with jax.enable_x64(True):
        assert transport.cost_matrix(jnp.ones((2, 3), dtype), jnp.ones((1, 3), dtype)).dtype == (
            expected
        )


@pytest.mark.parametrize("p", [0.5, 0, -1, math.nan])
def test_powers_that_are_no_norm_are_refused(p):
    with pytest.raises(ValueError, match="p >= 1"):
        transport.cost_matrix(jnp.ones((2, 3)), jnp.ones((2, 3)), p)


# Marginals and targets --------------------------------------------------------------------------


def test_marginals_sum_to_one_and_follow_the_scores():
    scores = jnp.asarray([1.0, 0.0, 3.0, 4.0])
    np.testing.assert_allclose(transport.marginal("uniform", scores), np.full(4, 0.25))
    mass = transport.marginal("importance", scores)
    np.testing.assert_allclose(mass, [1 / 8, 0, 3 / 8, 4 / 8], atol=3e-7)
    assert mass[1] > 0
    np.testing.assert_allclose(mass.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("scores", [np.zeros(3), -np.ones(3)])
def test_scores_that_are_nowhere_positive_give_the_uniform_marginal(scores):
    mass = transport.marginal("importance", jnp.asarray(scores, jnp.bfloat16))
    np.testing.assert_allclose(mass, np.full(3, 1 / 3), rtol=1e-6)
    assert mass.dtype == jnp.float32


def test_unknown_marginals_list_the_known():
    with pytest.raises(ValueError, match=r"'mass'.*known: uniform, importance"):
        transport.marginal("mass", jnp.ones(2))


@settings(max_examples=25, deadline=None)
@given(scores=st.lists(st.integers(-2, 2), min_size=7, max_size=7), m=st.sampled_from([1, 4, 7]))
def test_top_takes_the_highest_and_of_equals_the_first(scores, m):
    expected = np.sort(np.argsort(-np.asarray(scores), kind="stable")[:m])
    np.testing.assert_array_equal(transport.top(jnp.asarray(scores, jnp.float32), m), expected)


@pytest.mark.parametrize("m", [0, 4])
def test_top_refuses_more_or_less_than_there_are(m):
    with pytest.raises(ValueError, match=f"top {m} of 3"):
        transport.top(jnp.ones(3), m)


# Solving ----------------------------------------------------------------------------------------


def test_unknown_solvers_list_the_known():
    with pytest.raises(ValueError, match=r"'emd'.*known: exact, nearest, sinkhorn"):
        transport.solve(
            jnp.ones((4, 2)), jnp.full(4, 1 / 4), jnp.full(2, 1 / 2), jnp.arange(2), solver="emd"
        )


def test_shapes_that_disagree_are_refused(monkeypatch):
    # The annotations, which the tests execute, would find it first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    cost, a, b, targets = jnp.ones((12, 6)), jnp.ones(12), jnp.ones(6), jnp.arange(6)
    with pytest.raises(ValueError, match=r"\(12, 6\), \(6,\), \(12,\), \(6,\)"):
        transport.solve(cost, b, a, targets)
