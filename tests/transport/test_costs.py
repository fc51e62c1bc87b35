import functools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from ifjax.transport import costs, transport

COSTS = [1, 1.5, 2, 7, math.inf, "cosine"]
seeds = st.integers(0, 2**32 - 1)


# Features ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 1e37])
def test_features_have_norm_one_at_any_scale(scale):
    rows = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    got = costs.features(jnp.asarray(rows * np.float32(scale)))
    np.testing.assert_allclose(got, rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=2e-6)


def test_zero_rows_have_zero_features_and_gradients():
    rows = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(costs.features(rows), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: costs.features(x)[:, 0].sum())(rows)
    # d(x / |x|) = (1 - f f^T) / |x|; its first row for f = (0.6, 0.8), |x| = 5.
    np.testing.assert_allclose(gradient[0], [0.64 / 5, -0.48 / 5], rtol=1e-5)
    assert np.all(np.isfinite(gradient))


def test_features_keep_the_dtype():
    assert costs.features(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


# Costs ------------------------------------------------------------------------------------------


def distances(x, y, p):
    """A loop in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if p == "cosine":
        x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
        return np.array([[np.sum((u - v) ** 2) / 2 for v in y] for u in x])
    return np.array([[np.linalg.norm(u - v, p) for v in y] for u in x])


def temporaries(function, *shapes):
    """Bytes that a function takes besides its arguments and results."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@settings(max_examples=8, deadline=None)
@given(seed=seeds, d=st.sampled_from([1, 16, 37]))
@pytest.mark.parametrize("p", COSTS)
def test_cost_equals_a_float64_loop(p, d, seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(k, d)).astype(np.float32) for k in (6, 4))
    got = costs.cost_matrix(jnp.asarray(x), jnp.asarray(y), p)
    # Parallel rows (all, for d = 1): normalising rounds by 1e-7, of which the cosine is the square.
    np.testing.assert_allclose(got, distances(x, y, p), rtol=5e-6, atol=1e-13)


@pytest.mark.promotes(ranks="within public functions", dtypes="within public functions")
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("p", COSTS)
def test_sums_over_many_features_at_once_are_the_same(p, axis, monkeypatch):
    """As an accelerator takes them: two whole steps of features, and a rest."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(costs, "_LONG", 8)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(k, 21)).astype(np.float32) for k in (7, 5))
    given = (jnp.asarray(z.T if axis else z) for z in (x, y))
    got = costs.cost_matrix.__wrapped__(*given, p, axis)  # what is compiled for a CPU is not asked
    np.testing.assert_allclose(got, distances(x, y, p), rtol=5e-6)


@pytest.mark.parametrize("p", [2, "cosine"])
def test_a_product_of_matrices_loses_no_digits_of_small_distances(p):
    # Nearer and nearer to every target, in more rows than are computed again at a time.
    rng = np.random.default_rng(0)
    y = rng.normal(size=(9, 40)).astype(np.float32)
    steps = rng.normal(size=(16, 9, 40)) * 2.0 ** -np.arange(16)[:, None, None]
    x = np.concatenate([y, *(y + steps), y]).astype(np.float32)
    single = np.asarray(costs.cost_matrix(jnp.asarray(x), jnp.asarray(y), p))
    expected = distances(x, y, p)
    if p == "cosine":
        # It is half the square of a distance between rows that normalising rounds by 1e-7.
        np.testing.assert_allclose(np.sqrt(single), np.sqrt(expected), rtol=5e-6, atol=3e-7)
    else:
        np.testing.assert_allclose(single, expected, rtol=5e-6)
    assert np.all(single[np.arange(9), np.arange(9)] == 0)
    assert np.all(single[-9:][np.arange(9), np.arange(9)] == 0)


def test_costs_in_a_batch_are_those_of_its_problems():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(3, 70, 18)), jnp.float32)
    # The near pairs of the last problem are none of the others'.
    y = jnp.concatenate([x[:2, 5:10] + 1, x[2:, 5:10] * 1.001])
    for p in COSTS:
        function = functools.partial(costs.cost_matrix, p=p)
        alone = np.stack([function(u, v) for u, v in zip(x, y, strict=True)])
        np.testing.assert_allclose(jax.vmap(function)(x, y), alone, rtol=5e-6)


@pytest.mark.parametrize("p", COSTS)
def test_equal_rows_cost_exactly_zero_and_have_finite_gradients(p):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(70, 33)), jnp.float32)
    x = x.at[7].set(x[3]).at[9].set(0).at[10].set(-0.0)
    got = np.asarray(costs.cost_matrix(x, x, p))
    assert np.all(np.diag(got) == 0)
    assert got[7, 3] == got[3, 7] == got[9, 10] == got[10, 9] == 0
    gradient = jax.grad(lambda x, y: costs.cost_matrix(x, y, p).sum())(x, x[:12])
    assert np.all(np.isfinite(gradient))


def test_the_cosine_of_zero_and_opposite_rows():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(costs.cost_matrix(x, -2 * x, "cosine"), [[2, 1], [1, 0]], rtol=1e-6)


def test_the_gradient_between_rows_that_differ_by_rounding_is_no_larger_than_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)), jnp.float32)
    y = x.at[:, 0].multiply(1 + 2**-23).at[0, 1].add(1e-6)
    gradient = jax.grad(lambda x: jnp.trace(costs.cost_matrix(x, y, 2)))(x)
    assert np.all(np.linalg.norm(gradient, axis=1) < 2)


@pytest.mark.parametrize("p", COSTS)
def test_the_gradient_of_the_cost_equals_differences(p):
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        x, y = (jnp.asarray(rng.normal(size=(k, 17))) for k in (4, 19))
        weights = jnp.asarray(rng.normal(size=(4, 19)))
        got = jax.grad(lambda *xy: (weights * costs.cost_matrix(*xy, p)).sum(), (0, 1))(x, y)
        for at in (0, 1):
            step = [np.zeros_like(x), np.zeros_like(y)]
            step[at] = 1e-6 * rng.normal(size=step[at].shape)
            ahead, behind = (distances(x + h * step[0], y + h * step[1], p) for h in (1, -1))
            expected = (weights * (ahead - behind)).sum() / 2
            np.testing.assert_allclose((got[at] * step[at]).sum(), expected, rtol=1e-6)


def test_high_powers_do_not_vanish():
    x, y = jnp.full((1, 16), 1e-3), jnp.zeros((1, 16))
    got = costs.cost_matrix(x, y, 60)
    np.testing.assert_allclose(got, [[1e-3 * 16 ** (1 / 60)]], rtol=1e-5)


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="a GPU splits long reductions, and tunes its products"
)
@pytest.mark.parametrize("p", [1, 2, 3, math.inf, "cosine"])
@pytest.mark.parametrize("batch", [1, 3])
def test_memory_of_the_cost_is_within_half_again_of_its_inputs_and_output(p, batch):
    n, m, d = 96, 64, 1024
    shapes = (batch, n, d), (batch, m, d)
    least = 4 * batch * ((n + m) * d + 2 * n * m)  # features, cost and map; n m d is 37 times more
    function = jax.vmap(functools.partial(costs.cost_matrix, p=p))
    assert temporaries(function, *shapes) < 1.5 * least
    gradient = jax.grad(lambda x, y: function(x, y).sum(), (0, 1))
    assert temporaries(gradient, *shapes) < 1.5 * least


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="a GPU splits long reductions, and tunes its products"
)
@pytest.mark.parametrize("solver", ["sinkhorn", "sinkhorn_kernel", "nearest"])
def test_memory_of_costs_and_solution_is_within_half_again_of_features_cost_and_map(solver):
    n, m, d = 128, 64, 512

    def solved(x, y):
        cost = costs.cost_matrix(x, y)
        a, b = jnp.full(n, 1 / n), jnp.full(m, 1 / m)
        return transport.solve(cost, a, b, jnp.arange(m), solver=solver).map

    least = 4 * ((n + m) * d + 2 * n * m)
    assert temporaries(solved, (n, d), (m, d)) < 1.5 * least
    assert temporaries(jax.vmap(solved), (3, n, d), (3, m, d)) < 1.5 * 3 * least


@pytest.mark.parametrize(
    ("dtype", "expected"), [(jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float64)]
)
def test_costs_are_float32_at_least(dtype, expected):
    with jax.enable_x64(True):
        assert costs.cost_matrix(jnp.ones((2, 3), dtype), jnp.ones((1, 3), dtype)).dtype == (
            expected
        )


@pytest.mark.parametrize("p", [0.5, 0, -1, math.nan, "euclidean"])
def test_powers_that_are_no_norm_are_refused(p):
    with pytest.raises(ValueError, match="p >= 1"):
        costs.cost_matrix(jnp.ones((2, 3)), jnp.ones((2, 3)), p)
