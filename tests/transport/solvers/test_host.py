"""The exact solver."""

import sys
import threading

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from hypothesis import given, settings
from scipy.optimize import linear_sum_assignment, linprog

from ifjax.transport import solvers, transport
from tests.transport.solvers.problems import problem

seeds = st.integers(0, 2**32 - 1)


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


def test_the_mass_of_uniform_marginals_is_assigned_whole():
    """Of any multiple, and the cost is that of the network simplex."""
    for n, m in ((12, 6), (6, 12), (12, 4), (3, 12), (7, 7), (9, 1)):
        cost = jnp.asarray(np.random.default_rng(n).uniform(size=(n, m)), jnp.float32)
        a, b = jnp.full(n, 1 / n), jnp.full(m, 1 / m)
        got = transport.solve(cost, a, b, jnp.arange(m), solver="exact")
        np.testing.assert_array_equal(np.unique(np.asarray(got.map)[got.map > 0]).size, 1)
        assert np.count_nonzero(got.map) == max(n, m)
        assert got.marginal_error < 1e-6
        best = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), np.float64(cost))
        np.testing.assert_allclose(got.cost, best, rtol=1e-6)


# Many problems at once --------------------------------------------------------------------------


def stacks():
    """Buckets of several sizes and leading axes; the second with absent sources and targets."""
    one, two = problem(1, n=10, m=5), [problem(k, kind="importance") for k in range(3)]
    two = [jnp.stack(x) for x in list(zip(*two, strict=True))[:3]]
    pad = [(0, 0), (0, 3), (0, 2)]
    two = [jnp.pad(two[0], pad), jnp.pad(two[1], pad[:2]), jnp.pad(two[2], pad[::2])]
    large = problem(2, n=256, m=128)
    return list(zip(one[:3], two, (x[None, None] for x in large[:3]), strict=True))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_many_problems_are_solved_as_if_alone(wrap):
    costs, a, b = stacks()
    found = wrap(solvers.exact_many)(costs, a, b)
    for got, *problems in zip(found, costs, a, b, strict=True):
        lead = problems[0].shape[:-2]
        assert got.map.shape == problems[0].shape
        assert got.converged.shape == got.iterations.shape == lead
        for i in np.ndindex(lead):
            alone = solvers.Exact()(*(x[i] for x in problems))
            for x, y in zip(got, alone, strict=True):
                np.testing.assert_array_equal(x[i], y)


def test_vmap_makes_one_call_to_the_host(monkeypatch):
    calls, whole = [], solvers.Exact.solve_all
    monkeypatch.setattr(solvers.Exact, "solve_all", lambda *x: calls.append(1) or whole(*x))
    problems = [jnp.stack(x) for x in zip(*(problem(k, n=14) for k in range(4)), strict=True)]
    got = jax.vmap(lambda *x: transport.solve(*x, solver="exact"))(*problems)
    assert len(calls) == 1
    for k in range(4):
        alone = transport.solve(*(x[k] for x in problems), solver="exact")
        np.testing.assert_array_equal(got.map[k], alone.map)


def test_large_problems_are_threaded_the_largest_first(monkeypatch):
    from ifjax.transport.solvers import host

    seen, one = [], host._solve_one

    def recorded(*job):
        seen.append((job[2].size, threading.current_thread().name))
        one(*job)

    monkeypatch.setattr(host, "_solve_one", recorded)
    monkeypatch.setattr(host.os, "cpu_count", lambda: 1)
    costs, a, b = stacks()
    solvers.exact_many(costs[::-1], a[::-1], b[::-1])
    assert [size for size, _ in seen] == sorted((s for s, _ in seen), reverse=True)
    assert all("ThreadPool" in name for _, name in seen)


# Without POT ------------------------------------------------------------------------------------


@pytest.fixture
def no_pot(monkeypatch):

    monkeypatch.setitem(sys.modules, "ot", None)


@pytest.mark.usefixtures("no_pot")
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_without_pot_only_what_needs_it_says_what_to_install(wrap):
    solve = wrap(lambda *args: transport.solve(*args, solver="exact"))
    assert solve(*problem(0)).converged
    with pytest.raises(ImportError, match=r"pip install 'ifjax\[exact\]'"):
        solve(*problem(0, n=13))
    with pytest.raises(Exception, match=r"pip install 'ifjax\[exact\]'"):
        jax.block_until_ready(solve(*problem(0, kind="importance")))
