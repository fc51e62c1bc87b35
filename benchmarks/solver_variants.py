"""Variants of Sinkhorn that ifjax does not offer, for `solvers.py`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ifjax.transport import solvers


@dataclasses.dataclass(frozen=True)
class OwnMassStays(solvers.Solver):
    """A solver of what is left once every target has kept the mass of its own neuron."""

    rest: solvers.Solver

    def __call__(self, cost, a, b, init=None):
        """Solves the rest."""
        own = jnp.where(cost == 0, jnp.minimum(a[:, None], b), 0)
        found = self.rest(cost, a - own.sum(1), b - own.sum(0), init)
        return found._replace(map=own + found.map)


# What `ifjax.transport_maps` does, since the costs are a metric.
exact_but_own = OwnMassStays(solvers.Exact())


def variants(epsilon: float) -> dict[str, Callable]:
    """``(cost, a, b) -> plan, iterations, converged`` by name."""
    from ott.geometry import epsilon_scheduler, geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import acceleration, sinkhorn, sinkhorn_lr

    def ott(solver: Any, cost, a, b, decay: float = 1.0, **problem: Any):
        unit = jnp.mean(cost)
        schedule = epsilon_scheduler.Epsilon(
            epsilon, init=1 / epsilon if decay < 1 else 1.0, decay=decay
        )
        geom = geometry.Geometry(cost / unit, epsilon=schedule)
        out = solver(linear_problem.LinearProblem(geom, a, b, **problem))
        return out.matrix, jnp.asarray(out.n_iters), jnp.asarray(out.converged)

    def log(decay: float = 1.0, problem: Any = None, **options: Any) -> Callable:
        solver = sinkhorn.Sinkhorn(threshold=5e-4, max_iterations=3000, **options)
        return lambda *x: ott(solver, *x, decay=decay, **(problem or {}))

    def relaxed(weight: float) -> Any:
        return acceleration.Momentum(start=0, value=weight)

    def ours(solver: solvers.Solver, after: Callable = lambda plan, a, b: plan) -> Callable:
        def solve(cost, a, b):
            found = solver(cost, a, b)
            return after(found.map, a, b), found.iterations, found.converged

        return solve

    kernel = solvers.SinkhornKernel(epsilon)
    found = {
        "sinkhorn_kernel": ours(kernel),
        "sinkhorn": ours(solvers.Sinkhorn(epsilon)),
        "log, no schedule, relaxation 1": log(),
        "log, no schedule, relaxation 1.5": log(momentum=relaxed(1.5)),
        "log, schedule, relaxation 1": log(0.95),
        "log, schedule, relaxation 1.8": log(0.95, momentum=relaxed(1.8)),
        "log, no schedule, adaptive momentum": log(
            momentum=acceleration.Momentum(start=100, value=1.0)
        ),
        "log, no schedule, Anderson 5": log(
            anderson=acceleration.AndersonAcceleration(memory=5, refresh_every=1)
        ),
        "log, unbalanced 0.99, no schedule": log(problem={"tau_a": 0.99, "tau_b": 0.99}),
        "ott-jax kernel mode, no schedule": log(lse_mode=False),
        "feasible rounding of the plan": ours(kernel, feasible),
        "largest target of each source": ours(kernel, largest),
        "own mass stays": ours(OwnMassStays(kernel)),
    }
    for rank in (32, 128):
        low = sinkhorn_lr.LRSinkhorn(rank=rank, epsilon=0.0, threshold=1e-4, max_iterations=1000)
        found[f"low rank {rank}"] = functools.partial(ott, low)
    return found


def feasible(plan, a, b):
    """Altschuler et al., arXiv 1705.09634, algorithm 2."""
    plan = plan * jnp.minimum(1, a / plan.sum(1))[:, None]
    plan = plan * jnp.minimum(1, b / plan.sum(0))
    left, right = a - plan.sum(1), b - plan.sum(0)
    return plan + left[:, None] * right / jnp.maximum(left.sum(), 1e-30)


def largest(plan, a, b):
    """A vertex of the problem without the constraint on the targets."""
    return a[:, None] * jax.nn.one_hot(jnp.argmax(plan, 1), len(b))
