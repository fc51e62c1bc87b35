"""What all solvers share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.transport import transport
from tests.transport.solvers.problems import SINKHORNS, SOLVERS, THRESHOLD, padded, problem


@pytest.mark.parametrize("kind", transport.MARGINALS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_plan_leaves_each_source_with_its_mass(solver, kind):
    cost, a, b, targets = problem(0, kind=kind)
    got = transport.solve(cost, a, b, targets, solver=solver)
    assert np.all(got.map >= 0)
    np.testing.assert_allclose(got.map.sum(1), a, rtol=1e-5)
    np.testing.assert_array_equal(got.targets, targets)
    np.testing.assert_allclose(got.cost, (got.map * cost).sum(), rtol=1e-6)
    error = np.abs(got.map.sum(1) - a).sum() + np.abs(got.map.sum(0) - b).sum()
    np.testing.assert_allclose(got.marginal_error, error, atol=1e-6)
    assert got.converged
    if solver != "nearest":
        assert got.marginal_error <= THRESHOLD


@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_is_solved_in_float32(solver):
    cost, a, b, targets = problem(0)
    half = cost.astype(jnp.bfloat16)
    got = transport.solve(half, a, b, targets, solver=solver)
    expected = transport.solve(half.astype(jnp.float32), a, b, targets, solver=solver)
    assert got.map.dtype == jnp.float32
    np.testing.assert_array_equal(got.map, expected.map)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float64_stays(solver):
    with jax.enable_x64(True):
        cost, a, b, targets = (
            jnp.asarray(np.asarray(x), jnp.float64 if x.dtype == jnp.float32 else None)
            for x in problem(0)
        )
        assert transport.solve(cost, a, b, targets, solver=solver).map.dtype == jnp.float64


@pytest.mark.parametrize("solver", SOLVERS)
def test_jit_compiles_once_and_vmap_solves_each(solver):
    traces = []

    @jax.jit
    @jax.vmap
    def batched(cost, a, b, targets):
        traces.append(solver)
        return transport.solve(cost, a, b, targets, solver=solver)

    for first in (0, 2):
        problems = [problem(first + k) for k in range(2)]
        got = batched(*(jnp.stack(parts) for parts in zip(*problems, strict=True)))
        for k, one in enumerate(problems):
            expected = transport.solve(*one, solver=solver)
            # Rounding may stop Sinkhorn one look at its error, ten iterations, sooner or later.
            assert np.abs(got.map[k] - expected.map).sum() < THRESHOLD
            np.testing.assert_array_equal(got.converged[k], expected.converged)
            assert abs(got.iterations[k] - expected.iterations) <= 10
    assert len(traces) == 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_plan_follows_permutations(solver):
    cost, a, b, targets = problem(4, kind="importance")
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(12), rng.permutation(6)
    base = transport.solve(cost, a, b, targets, solver=solver)
    got = transport.solve(
        cost[rows][:, columns], a[rows], b[columns], targets[columns], solver=solver
    )
    np.testing.assert_allclose(got.map, base.map[rows][:, columns], atol=2e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_costs_that_are_not_finite_are_flagged(solver):
    cost, a, b, targets = problem(0)
    got = transport.solve(cost.at[3, 2].set(jnp.nan), a, b, targets, solver=solver)
    assert not got.converged


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_single_target_takes_everything(solver):
    cost, a, b, targets = problem(0, m=1)
    got = transport.solve(cost, a, b, targets, solver=solver)
    np.testing.assert_allclose(got.map[:, 0], a, rtol=1e-6)
    assert got.converged


# Absent sources and targets ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", transport.MARGINALS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_mass_of_zero_is_as_if_it_were_not_there(solver, kind):
    for seed, (n, m), fill in ((0, (17, 9), 1e3), (1, (12, 11), np.nan), (2, (15, 6), 0.0)):
        one = problem(seed, kind=kind)
        many, rows, columns = padded(one, seed, n, m, fill)
        expected = transport.solve(*one, solver=solver)
        got = transport.solve(*many, solver=solver)
        here = np.ix_(rows, columns)
        np.testing.assert_allclose(got.map[here], expected.map, atol=2e-6)
        assert np.count_nonzero(got.map) == np.count_nonzero(np.asarray(got.map)[here])
        np.testing.assert_allclose(got.potential[rows], expected.potential, rtol=1e-5)
        assert np.all(np.delete(got.potential, rows) == 0)
        assert got.converged
        assert got.iterations == expected.iterations
        np.testing.assert_allclose(got.cost, expected.cost, rtol=1e-6)
        np.testing.assert_allclose(got.marginal_error, expected.marginal_error, atol=2e-6)


@pytest.mark.parametrize("solver", SINKHORNS)
def test_derivatives_do_not_see_what_is_absent(solver):
    one = problem(3, n=6, m=3)
    many, rows, columns = padded(one, 0, 8, 5, 0.0)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)

    def gradient(weights, cost, a, b, targets):
        def objective(cost, a, b):
            return jnp.sum(
                weights * transport.solve(cost, a, b, targets, solver=solver, epsilon=0.3).map
            )

        return jax.jit(jax.grad(objective, (0, 1, 2)))(cost, a, b)

    here = np.ix_(rows, columns)
    expected = gradient(weights[here], *one)
    cost, a, b = gradient(weights, *many)
    for x, y in zip((cost[here], a[rows], b[columns]), expected, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)
    assert all(np.all(np.isfinite(x)) for x in (cost, a, b))
    assert np.count_nonzero(cost) == np.count_nonzero(np.asarray(cost)[here])
