"""The problem of one group against the paper's formulas in float64 loops, and a linear program."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

import ifjax
from ifjax.fusion.execution.distances import distances
from ifjax.fusion.problem import completed, features, moving, problem_of, selected, staying
from ifjax.fusion.program import compiled
from ifjax.transport.solvers import Exact

N, M = 5, 3
RNG = np.random.default_rng(0)
SHAPES = {"w1": (4, N), "b1": (N,), "w2": (N, 2)}
PARAMS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def network(p, x):
    return (x @ p["w1"] + p["b1"]) @ p["w2"]


GRAPH = ifjax.trace(network, PARAMS, np.ones((1, 4), np.float32))


def problem(**options):
    (level,) = compiled(GRAPH.spec(keep=M, **options)).levels
    (group,) = level.problems
    entry = {path: PARAMS[path] for path in group.described.paths}
    return problem_of(group, entry, entry, None, None, distances)


def oracle(p):
    """Scores, targets and costs, neuron by neuron."""
    w1, w2 = (PARAMS[k].astype(np.float64) for k in ("w1", "w2"))
    scores = np.array([(abs(w1[:, i]).sum() + abs(w2[i]).sum()) / 2 for i in range(N)])
    targets = sorted(sorted(range(N), key=lambda i: -scores[i])[:M])
    rows = [np.concatenate([w1[:, i], w2[i]]) for i in range(N)]
    rows = [row / np.sqrt(sum(x**2 for x in row)) for row in rows]
    cost = np.zeros((N, M))
    for i, (j, target) in itertools.product(range(N), enumerate(targets)):
        cost[i, j] = sum(abs(a - b) ** p for a, b in zip(rows[i], rows[target], strict=True))
    return scores / scores.mean(), targets, cost ** (1 / p)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_every_neuron_is_described_scored_and_compared(p):
    found, (scores, targets, cost) = problem(cost_p=p), oracle(p)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    assert found.targets.tolist() == targets
    np.testing.assert_allclose(found.cost, cost, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.a, 1 / N)
    np.testing.assert_allclose(found.b, 1 / M)
    assert found.sources is None


def test_masses_are_proportional_to_the_importance():
    found, (scores, targets, _) = problem(source_marginal="importance"), oracle(1)
    np.testing.assert_allclose(found.a, scores / scores.sum(), rtol=1e-5)
    both = problem(source_marginal="importance", target_marginal="importance")
    np.testing.assert_allclose(both.b, scores[targets] / scores[targets].sum(), rtol=1e-5)


@pytest.mark.parametrize("marginal", ["uniform", "importance"])
def test_what_stays_in_its_place_is_part_of_an_optimal_plan(marginal):
    """Solved for the neurons that move alone, and completed: the linear program's optimum."""
    pytest.importorskip("ot", reason="needs POT: pip install 'ifjax[exact]'")
    options = {"source_marginal": marginal, "target_marginal": marginal}
    found, (_, targets, cost) = problem(solver="exact", **options), oracle(1)
    assert sorted([*found.sources, *found.targets]) == list(range(N))
    np.testing.assert_allclose(staying(found), np.minimum(found.a[targets], found.b))
    small, a, b = moving(found)
    assert small.shape == (N - M, M)
    ((plan, converged),) = Exact().solve_all([small], [a], [b])
    whole = completed(found, plan, converged)
    np.testing.assert_allclose(whole.map.sum(1), found.a, atol=1e-6)
    np.testing.assert_allclose(whole.map.sum(0), found.b, atol=1e-6)
    rows = [np.kron(np.eye(N)[i], np.ones(M)) for i in range(N)]
    columns = [np.kron(np.ones(N), np.eye(M)[j]) for j in range(M - 1)]  # the last one follows
    best = linprog(cost.ravel(), A_eq=[*rows, *columns], b_eq=[*found.a, *found.b[:-1]])
    np.testing.assert_allclose((whole.map * cost).sum(), best.fun, rtol=1e-5)
    np.testing.assert_allclose(whole.cost, best.fun, rtol=1e-5)


def test_pruned_targets_receive_themselves():
    found = problem(method="prune")
    plan = selected(found)
    expected = np.zeros((N, M))
    expected[oracle(1)[1], range(M)] = 1 / M
    np.testing.assert_allclose(plan.map, expected)
    assert plan.targets.tolist() == oracle(1)[1]
    assert found.cost is None


def test_features_of_some_neurons_lie_as_columns():
    parts = [(PARAMS["w1"], 1), (PARAMS["w2"], 0)]
    factors, index = np.arange(1.0, N + 1), np.array([3, 0])
    got = features(parts, factors, index)
    rows = np.concatenate([PARAMS["w1"], PARAMS["w2"].T])
    np.testing.assert_allclose(got, (rows * factors)[:, index])
