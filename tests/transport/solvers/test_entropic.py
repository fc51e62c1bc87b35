"""Both Sinkhorn solvers: in the log domain and on the kernel."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ifjax.transport import transport
from ifjax.transport.solvers import SOLVERS, solver_of
from tests.transport.solvers.problems import SINKHORNS, THRESHOLD, problem, sinkhorn_loop

pytestmark = pytest.mark.parametrize("solver", SINKHORNS)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_sinkhorn_equals_a_float64_loop_whatever_the_unit_of_cost(solver, scale):
    cost, a, b, targets = problem(1, kind="importance")
    got = transport.solve(scale * cost, a, b, targets, epsilon=0.05, solver=solver)
    assert np.abs(got.map - sinkhorn_loop(cost, a, b, 0.05)).sum() < 2 * THRESHOLD


@pytest.mark.parametrize(("n", "m"), [(16, 8), (48, 12)])
@pytest.mark.parametrize("kind", transport.MARGINALS)
def test_sinkhorn_converges_at_the_default_epsilon(solver, n, m, kind):
    for seed in range(3):
        got = transport.solve(*problem(seed, n, m, d=8, kind=kind), solver=solver)
        assert got.converged, (seed, got.iterations, got.marginal_error)
        assert got.iterations <= 2000


def test_sinkhorn_tends_to_the_exact_plan_as_epsilon_falls(solver):
    cost, a, b, targets = problem(3)
    exact = transport.solve(cost, a, b, targets, solver="exact")
    gaps, costs = [], []
    for epsilon in (0.3, 0.1, 0.03, 0.01, 0.003, 0.001):
        got = transport.solve(cost, a, b, targets, epsilon=epsilon, solver=solver)
        assert got.converged
        gaps.append(float(np.abs(got.map - exact.map).sum()))
        costs.append(float(got.cost))
    assert all(later <= earlier + THRESHOLD for earlier, later in itertools.pairwise(gaps))
    assert gaps[0] > 0.2
    assert gaps[-1] < 2 * THRESHOLD
    np.testing.assert_allclose(costs[-1], exact.cost, rtol=THRESHOLD)


def test_equal_neurons_send_their_mass_alike(solver):
    cost, a, b, targets = problem(5)
    cost = cost.at[1].set(cost[0])
    got = transport.solve(cost, a, b, targets, solver=solver)
    np.testing.assert_array_equal(got.map[0], got.map[1])


def test_a_cost_of_zero_gives_the_product_plan(solver):
    _, a, b, targets = problem(0, kind="importance")
    got = transport.solve(jnp.zeros((12, 6)), a, b, targets, solver=solver)
    np.testing.assert_allclose(got.map, np.outer(a, b), rtol=1e-4)
    assert got.converged
    assert got.cost == 0


@pytest.mark.parametrize("form", ["transport", "potential"])
def test_a_warm_start_ends_at_the_same_plan_sooner(solver, form):
    cost, a, b, targets = problem(6, n=24, m=12)
    cold = transport.solve(cost, a, b, targets, epsilon=0.01, solver=solver)
    init = cold if form == "transport" else cold.potential
    warm = transport.solve(cost, a, b, targets, epsilon=0.01, init=init, solver=solver)
    assert warm.converged
    assert warm.iterations <= cold.iterations // 4
    assert np.abs(warm.map - cold.map).sum() < 2 * THRESHOLD


def test_too_few_iterations_are_flagged(solver):
    few = dataclasses.replace(solver_of(solver, 0.0123), max_iterations=10)
    got = transport.solve(*problem(0, n=13), solver=few)
    assert not got.converged
    assert got.iterations == 10
    assert got.marginal_error > THRESHOLD


def test_sinkhorn_has_the_gradient_of_differences(solver):
    cost, a, b, targets = problem(7, n=6, m=3)
    rng = np.random.default_rng(0)
    weights, direction = (rng.normal(size=(6, 3)) for _ in range(2))

    def objective(cost):
        return (
            weights * transport.solve(cost, a, b, targets, epsilon=0.3, solver=solver).map
        ).sum()

    ahead, behind = (
        (weights * sinkhorn_loop(np.float64(cost) + h * direction, a, b, 0.3)).sum()
        for h in (1e-5, -1e-5)
    )
    expected = (ahead - behind) / 2e-5
    gradient = jax.jit(jax.grad(objective))(cost)
    np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=5e-3)
    forward = jax.jvp(objective, (cost,), (jnp.asarray(direction, jnp.float32),))[1]
    np.testing.assert_allclose(forward, expected, rtol=5e-3)
    equal = jax.grad(objective)(jnp.zeros_like(cost))
    assert np.all(np.isfinite(equal))


@pytest.mark.parametrize("epsilon", [0, -0.1, math.nan])
def test_epsilon_must_be_positive(solver, epsilon):
    with pytest.raises(ValueError, match="epsilon must be positive and finite"):
        transport.solve(*problem(0), epsilon=epsilon, solver=solver)


@pytest.mark.parametrize("epsilon", ["a", None])
def test_epsilon_must_be_a_number(monkeypatch, solver, epsilon):
    """Without the type checks of the tests, which would be first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"epsilon must be positive and finite; got {epsilon!r}"):
        SOLVERS[solver](epsilon=epsilon)
    with pytest.raises(ValueError, match="epsilon must be positive and finite; got 'a'"):
        solver_of(solver, "a")


@pytest.mark.parametrize(("noise", "share"), [(0.0, 0.4), (1e-3, 0.5), (1e-2, 0.9)])
def test_a_warm_start_saves_iterations_on_slightly_changed_costs(solver, noise, share):
    cost, a, b, targets = problem(6, n=48, m=24)
    first = transport.solve(cost, a, b, targets, solver=solver)
    changed = cost * (1 + noise * np.random.default_rng(0).normal(size=cost.shape))
    changed = changed.astype(jnp.float32)
    cold = transport.solve(changed, a, b, targets, solver=solver)
    warm = transport.solve(changed, a, b, targets, solver=solver, init=first)
    assert warm.converged
    assert int(warm.iterations) <= share * int(cold.iterations)
    assert np.abs(warm.map - cold.map).sum() < 2 * THRESHOLD


def test_a_batch_may_hold_problems_with_a_start_and_without(solver):
    cost, a, b, targets = problem(6, n=24, m=12)
    cold = transport.solve(cost, a, b, targets, solver=solver)
    starts = jnp.stack([cold.potential, jnp.full(24, jnp.nan)])
    got = jax.vmap(lambda start: transport.solve(cost, a, b, targets, solver=solver, init=start))(
        starts
    )
    # Rounding may stop one look at the error, ten iterations, sooner or later.
    assert got.iterations[0] < got.iterations[1]
    assert abs(got.iterations[1] - cold.iterations) <= 10
    assert np.abs(got.map[1] - cold.map).sum() < THRESHOLD
    assert np.all(got.converged)
