import itertools
import math
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from hypothesis import given, settings
from scipy.optimize import linear_sum_assignment, linprog
from scipy.special import logsumexp

from ifjax import solvers, transport

SOLVERS = list(solvers.SOLVERS)
seeds = st.integers(0, 2**32 - 1)
# The L1 error of both marginals at which Sinkhorn stops.
THRESHOLD = 1e-3


def problem(seed, n=12, m=6, d=20, kind="uniform"):
    """Random features, the top m of them as targets, and marginals."""
    rng = np.random.default_rng(seed)
    rows = jnp.asarray(rng.normal(size=(n, d)) * rng.uniform(0.2, 2, (n, 1)), jnp.float32)
    scores = jnp.abs(rows).sum(1)
    targets = transport.top(scores, m)
    x = transport.features(rows)
    cost = transport.cost_matrix(x, x[targets])
    return (
        cost,
        transport.marginal(kind, scores),
        transport.marginal(kind, scores[targets]),
        targets,
    )


# All solvers ------------------------------------------------------------------------------------


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


# Sinkhorn ---------------------------------------------------------------------------------------


def sinkhorn_loop(cost, a, b, epsilon, iterations=4000):
    """Plain Sinkhorn in the log domain, in float64."""
    cost, a, b = (np.asarray(x, np.float64) for x in (cost, a, b))
    scale = epsilon * cost.mean()
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(iterations):
        g = scale * (np.log(b) - logsumexp((f[:, None] - cost) / scale, axis=0))
        f = scale * (np.log(a) - logsumexp((g[None] - cost) / scale, axis=1))
    return np.exp((f[:, None] + g[None] - cost) / scale)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_sinkhorn_equals_a_float64_loop_whatever_the_unit_of_cost(scale):
    cost, a, b, targets = problem(1, kind="importance")
    got = transport.solve(scale * cost, a, b, targets, epsilon=0.05)
    assert np.abs(got.map - sinkhorn_loop(cost, a, b, 0.05)).sum() < 2 * THRESHOLD


@pytest.mark.parametrize(("n", "m"), [(16, 8), (48, 12)])
@pytest.mark.parametrize("kind", transport.MARGINALS)
def test_sinkhorn_converges_at_the_default_epsilon(n, m, kind):
    for seed in range(3):
        got = transport.solve(*problem(seed, n, m, d=8, kind=kind))
        assert got.converged, (seed, got.iterations, got.marginal_error)
        assert got.iterations <= 2000


def test_sinkhorn_tends_to_the_exact_plan_as_epsilon_falls():
    cost, a, b, targets = problem(3)
    exact = transport.solve(cost, a, b, targets, solver="exact")
    gaps, costs = [], []
    for epsilon in (0.3, 0.1, 0.03, 0.01, 0.003, 0.001):
        got = transport.solve(cost, a, b, targets, epsilon=epsilon)
        assert got.converged
        gaps.append(float(np.abs(got.map - exact.map).sum()))
        costs.append(float(got.cost))
    assert all(later <= earlier + THRESHOLD for earlier, later in itertools.pairwise(gaps))
    assert gaps[0] > 0.2
    assert gaps[-1] < 2 * THRESHOLD
    np.testing.assert_allclose(costs[-1], exact.cost, rtol=THRESHOLD)


def test_equal_neurons_send_their_mass_alike():
    cost, a, b, targets = problem(5)
    cost = cost.at[1].set(cost[0])
    got = transport.solve(cost, a, b, targets)
    np.testing.assert_array_equal(got.map[0], got.map[1])


def test_a_cost_of_zero_gives_the_product_plan():
    _, a, b, targets = problem(0, kind="importance")
    got = transport.solve(jnp.zeros((12, 6)), a, b, targets)
    np.testing.assert_allclose(got.map, np.outer(a, b), rtol=1e-4)
    assert got.converged
    assert got.cost == 0


@pytest.mark.parametrize("form", ["transport", "potential"])
def test_a_warm_start_ends_at_the_same_plan_sooner(form):
    cost, a, b, targets = problem(6, n=24, m=12)
    cold = transport.solve(cost, a, b, targets, epsilon=0.01)
    init = cold if form == "transport" else cold.potential
    warm = transport.solve(cost, a, b, targets, epsilon=0.01, init=init)
    assert warm.converged
    assert warm.iterations <= cold.iterations // 4
    assert np.abs(warm.map - cold.map).sum() < 2 * THRESHOLD


def test_too_few_iterations_are_flagged(monkeypatch):
    monkeypatch.setattr(solvers, "_MAX_ITERATIONS", 10)
    got = transport.solve(*problem(0, n=13), epsilon=0.0123)
    assert not got.converged
    assert got.iterations == 10
    assert got.marginal_error > THRESHOLD


def test_sinkhorn_has_the_gradient_of_differences():
    cost, a, b, targets = problem(7, n=6, m=3)
    rng = np.random.default_rng(0)
    weights, direction = (rng.normal(size=(6, 3)) for _ in range(2))

    def objective(cost):
        return (weights * transport.solve(cost, a, b, targets, epsilon=0.3).map).sum()

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
def test_epsilon_must_be_positive(epsilon):
    with pytest.raises(ValueError, match="epsilon > 0"):
        transport.solve(*problem(0), epsilon=epsilon)


# Exact and nearest ------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_the_exact_cost_is_that_of_a_linear_program(seed):
    cost, a, b, targets = problem(seed, n=7, m=3, d=5, kind="importance")
    got = transport.solve(cost, a, b, targets, solver="exact")
    rows = np.kron(np.eye(7), np.ones((1, 3)))
    columns = np.kron(np.ones((1, 7)), np.eye(3))
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    a, b = a / a.sum(), b / b.sum()
    # One constraint follows from the others; with it, rounding would make them infeasible.
    best = linprog(
        np.ravel(cost),
        A_eq=np.vstack([rows, columns[:-1]]),
        b_eq=np.concatenate([a, b[:-1]]),
        method="highs",
    )
    np.testing.assert_allclose(got.cost, best.fun, rtol=1e-5)
    assert np.count_nonzero(got.map) <= 7 + 3 - 1


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_the_exact_plan_between_equal_numbers_is_the_best_assignment(seed):
    cost = np.random.default_rng(seed).uniform(size=(6, 6)).astype(np.float32)
    mass = jnp.full(6, 1 / 6)
    got = transport.solve(jnp.asarray(cost), mass, mass, jnp.arange(6), solver="exact")
    expected = np.zeros((6, 6))
    expected[linear_sum_assignment(cost)] = 1 / 6
    np.testing.assert_allclose(got.map, expected, atol=1e-7)


def test_the_exact_plan_is_that_of_pot():
    cost, a, b, targets = problem(8, kind="importance")
    got = transport.solve(cost, a, b, targets, solver="exact")
    a, b, cost = (np.asarray(x, np.float64) for x in (a, b, cost))
    np.testing.assert_allclose(got.map, ot.emd(a / a.sum(), b / b.sum(), cost), atol=1e-7)


def test_the_exact_plan_is_exact_in_float64():
    with jax.enable_x64(True):
        cost, a, b, targets = problem(8, kind="importance")
        cost, a, b = (jnp.asarray(np.asarray(x), jnp.float64) + 1e-12 for x in (cost, a, b))
        a, b = a / a.sum(), b / b.sum()
        got = jax.jit(lambda *args: transport.solve(*args, solver="exact"))(cost, a, b, targets)
        expected = ot.emd(np.asarray(a), np.asarray(b), np.asarray(cost))
        np.testing.assert_allclose(got.map, expected, atol=1e-15)
        assert got.marginal_error < 1e-14


def test_exact_runs_inside_jit_on_large_problems():
    cost, a, b, targets = problem(0, n=384, m=192)
    got = jax.jit(lambda *args: transport.solve(*args, solver="exact"))(cost, a, b, targets)
    assert got.converged
    assert got.marginal_error < 1e-5


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_exact_without_pot_says_what_to_install(monkeypatch, wrap):
    solvers._pot.cache_clear()
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"pip install 'ifjax\[exact\]'"):
        wrap(lambda *args: transport.solve(*args, solver="exact"))(*problem(0))


def test_nearest_takes_the_first_of_the_nearest_and_bounds_the_exact_cost():
    cost = jnp.asarray([[1.0, 1.0, 2.0], [3.0, 0.5, 0.5], [2.0, 3.0, 1.0]])
    a = jnp.asarray([0.5, 0.3, 0.2])
    got = transport.solve(cost, a, jnp.full(3, 1 / 3), jnp.arange(3), solver="nearest")
    np.testing.assert_array_equal(got.map, np.diag(a))
    np.testing.assert_array_equal(got.potential, [1.0, 0.5, 1.0])
    exact = transport.solve(cost, a, jnp.full(3, 1 / 3), jnp.arange(3), solver="exact")
    assert got.cost <= exact.cost
