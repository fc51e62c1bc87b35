"""The Sinkhorn solver on the kernel, where kernels underflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.transport import transport
from ifjax.transport.solvers import SinkhornKernel
from tests.transport.solvers.problems import THRESHOLD, problem


@pytest.mark.parametrize("epsilon", [0.01, 1e-3, 1e-4])
def test_float32_survives_small_epsilon(epsilon):
    cost, a, b, targets = problem(3, n=48, m=24, kind="importance")
    # Far beyond what an exponential in float32 holds.
    assert np.max(cost) / (epsilon * np.mean(cost)) > 104 or epsilon == 0.01
    got = transport.solve(cost, a, b, targets, solver="sinkhorn_kernel", epsilon=epsilon)
    assert got.converged
    exact = transport.solve(cost, a, b, targets, solver="exact")
    np.testing.assert_allclose(got.cost, exact.cost, rtol=2 * epsilon + THRESHOLD)


def test_costs_of_any_spread_are_carried():
    rng = np.random.default_rng(0)
    _, a, b, targets = problem(0, kind="importance")
    cost = jnp.exp(jnp.asarray(rng.normal(size=(12, 6)) * 4, jnp.float32))
    assert cost.max() / cost.min() > 1e6
    got = transport.solve(cost, a, b, targets, solver="sinkhorn_kernel")
    expected = transport.solve(cost, a, b, targets, solver="sinkhorn")
    assert got.converged
    assert np.abs(got.map - expected.map).sum() < 2 * THRESHOLD


def test_it_takes_no_more_iterations_than_the_log_domain():
    one = problem(1, n=64, m=32)
    counts = [
        int(transport.solve(*one, solver=solver).iterations)
        for solver in ("sinkhorn_kernel", "sinkhorn")
    ]
    assert counts[0] <= counts[1]


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="a GPU splits long reductions, and tunes its products"
)
def test_memory_is_a_kernel_and_a_scaled_cost():
    n, m = 192, 96
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, m), (n,), (m,))]
    solve = jax.jit(lambda *x: SinkhornKernel()(*x))
    memory = solve.lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2.5 * 4 * n * m
