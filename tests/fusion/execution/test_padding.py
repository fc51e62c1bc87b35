"""A few sizes for problems of many, and what they cost in plans: nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.fusion.execution import padding
from ifjax.fusion.execution.padding import Padding, paddings, solve_padded
from ifjax.fusion.problem import Problem
from ifjax.fusion.program import compiled
from tests import reference


def levels(widths, **method):
    params = reference.init("mlp", 0, widths)
    program = compiled(reference.trace("mlp", params).spec(0.5, **method))
    return program.levels


def test_small_groups_share_a_size_and_large_ones_have_their_own(monkeypatch):
    monkeypatch.setattr(padding, "_COMPILED", 300)
    found = paddings(levels((8, 10, 60, 64)), "cpu")
    assert len({(p.n, p.m) for p in found.values()}) == 2
    assert found["fc0.weight"] == found["fc1.weight"] == Padding(10, 5, 1)
    assert (found["fc2.weight"].n, found["fc3.weight"].n) == (64, 64)
    monkeypatch.setattr(padding, "_COMPILED", 10**9)
    assert {(p.n, p.m) for p in paddings(levels((8, 10, 60, 64)), "cpu").values()} == {(64, 32)}
    monkeypatch.setattr(padding, "_COMPILED", 0)
    assert len({p.n for p in paddings(levels((8, 10, 60, 64)), "cpu").values()}) == 4


def test_groups_of_a_level_are_a_batch():
    together = paddings(levels((8, 8, 8), order="simultaneous"), "gpu")
    assert {p.batch for p in together.values()} == {3}
    after_another = paddings(levels((8, 8, 8)), "gpu")
    assert {p.batch for p in after_another.values()} == {1}


def test_a_batch_holds_no_more_bytes_than_allowed(monkeypatch):
    monkeypatch.setattr(padding, "_BYTES", 2 * 4 * 8 * 4)
    found = paddings(levels((8, 8, 8), order="simultaneous"), "gpu")
    assert {p.batch for p in found.values()} == {2}


def test_what_is_solved_on_the_host_is_not_padded():
    assert paddings(levels((8, 6), solver="exact"), "cpu") == {}
    assert paddings(levels((8, 6), method="prune"), "cpu") == {}


@pytest.mark.parametrize("solver", ["sinkhorn", "sinkhorn_kernel", "nearest"])
@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_padding_changes_no_plan(solver, xp):
    """Problems of two sizes in batches of three, the last one filled up."""
    rng = np.random.default_rng(0)
    (level,) = levels((9, 6, 9, 6), solver=solver, epsilon=0.1, order="simultaneous")
    groups, problems = list(level.problems), []
    for p in groups:
        n, m = p.extent
        cost = rng.uniform(0.5, 1.5, (1, n, m)).astype(np.float32)
        a, b = (np.full((1, k), 1 / k, np.float32) for k in (n, m))
        problem = Problem(None, np.arange(m)[None], a, b, None, cost)
        problems.append(jax.tree.map(xp.asarray, problem))
    size = dict.fromkeys([p.name for p in groups], Padding(12, 7, 3))
    found = solve_padded(groups, problems, [None] * 4, size, lambda: None)
    for p, problem, got in zip(groups, problems, found, strict=True):
        one = [jnp.asarray(x[0]) for x in (problem.cost, problem.a, problem.b, problem.targets)]
        want = ifjax.transport.transport.solve(*one, solver=p.solver)
        assert got.map.shape == (1, *p.extent)
        np.testing.assert_allclose(got.map[0], want.map, atol=1e-5)
        np.testing.assert_allclose(got.potential[0], want.potential, atol=1e-3)
        np.testing.assert_allclose(got.cost[0], want.cost, rtol=1e-4)
        assert got.converged[0]


def test_cold_and_warm_problems_share_a_batch():
    (level,) = levels((9, 8), epsilon=0.1, order="simultaneous")
    groups = list(level.problems)
    rng, problems = np.random.default_rng(0), []
    for p in groups:
        n, m = p.extent
        cost = rng.uniform(0.5, 1.5, (1, n, m)).astype(np.float32)
        a, b = (np.full((1, k), 1 / k, np.float32) for k in (n, m))
        problems.append(Problem(None, np.arange(m)[None], a, b, None, cost))
    solve = functools.partial(solve_padded, groups, problems, done=lambda: None)
    size = dict.fromkeys([p.name for p in groups], Padding(9, 4, 2))
    cold = solve([None, None], size)
    first, second = solve([cold[0].potential, None], size)
    assert first.iterations[0] < cold[0].iterations[0]
    assert second.iterations[0] == cold[1].iterations[0]
