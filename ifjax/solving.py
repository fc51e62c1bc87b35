"""The transport problems of a wave, solved a bucket at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ifjax import solvers, transport
from ifjax.merge import Map
from ifjax.problems import Bucket, Problems, Unit, stacked
from ifjax.solvers import Solution, host
from ifjax.transport import Transport
from ifjax.waves import Located, Wave


def solve(
    problems: Iterable[Problems],
    wave: Wave,
    starts: Sequence[list[Array | None]],
    epsilon: float,
) -> list[Transport]:
    """The transports of the buckets of a wave, stacked and padded as the problems are.

    All that is for the exact solver goes to the host in one call.

    Args:
      problems: of every bucket, see `ifjax.problems.read`; solved, and forgotten, as they come.
      wave: what is static about them.
      starts: per bucket, a potential ``[*batch, n]`` of every unit to start from; None to start
        cold.
      epsilon: of Sinkhorn.

    Returns:
      A stacked `Transport` per bucket.
    """
    found: list[Any] = []
    exact: dict[int, Problems] = {}
    for solver, bucket, start, problem in zip(
        wave.solvers, wave.buckets, starts, problems, strict=True
    ):
        if solver == "exact":
            exact[len(found)] = problem._replace(scores=None)
            found.append(None)
        elif solver == "":
            found.append(_selected(problem.scores, problem.targets))
        else:
            bare = problem._replace(scores=None)
            found.append(_solved(bare, _filled(start, bucket), solver, epsilon))
    for i, result in zip(exact, _solved_exactly([*exact.values()]) if exact else [], strict=True):
        found[i] = result
    return found


def require(waves: Iterable[Wave]) -> None:
    """Raises ImportError where the exact solver needs POT, before anything is computed."""
    if any(located.sources == "few" for wave in waves for located in wave.located):
        host.pot()


def taken(found: Sequence[Transport], at: Located) -> Transport:
    """The transport ``[*batch, n, m]`` of a group, of those of the buckets of its wave."""
    return _taken(found[at.bucket], at.unit, at.start)


def mapped(found: Sequence[Transport], at: Located) -> Map:
    """What merging reads of it."""
    whole = taken(found, at)
    return Map(whole.map, whole.targets, at.sources)


@functools.partial(jax.jit, static_argnames="unit")
def _taken(found: Transport, unit: Unit, start: Any) -> Transport:
    sizes = {"map": (unit.size, unit.kept), "targets": (unit.kept,), "potential": (unit.size,)}

    def part(name: str, x: Array) -> Array:
        x = jax.lax.dynamic_slice_in_dim(x, start, unit.count)
        inner = sizes.get(name, ())
        return x[:, *map(slice, inner)].reshape(*unit.batch, *inner)

    return Transport(*(part(name, x) for name, x in zip(found._fields, found, strict=True)))


def _filled(start: list[Array | None], bucket: Bucket) -> list[Array] | None:
    """A start for every unit of a bucket in which any has one; NaN for a cold one."""
    if all(x is None for x in start):
        return None
    return [
        jnp.full((*unit.batch, unit.size), jnp.nan) if x is None else x
        for x, unit in zip(start, bucket.units, strict=True)
    ]


@functools.partial(jax.jit, static_argnames=("solver", "epsilon"))
def _solved(problem: Problems, start: list[Array] | None, solver: str, epsilon: float) -> Transport:
    one = functools.partial(transport.solve, solver=solver, epsilon=epsilon)
    init = None
    if start is not None:
        init = stacked([x.reshape(-1, x.shape[-1]) for x in start], problem.a.shape[1:])
    return jax.vmap(lambda c, a, b, t, init: one(c, a, b, t, init=init))(
        problem.cost, problem.a, problem.b, problem.targets, init
    )


@jax.jit
def _solved_exactly(problems: list[Problems]) -> list[Transport]:
    """Of mass that stays where it is the host sees nothing, see `ifjax.problems.read`."""
    moving = [jax.vmap(_moving)(problem) for problem in problems]
    solutions = solvers.exact_many(*map(list, zip(*moving, strict=True)))
    return [
        jax.vmap(_completed)(problem, solution)
        for problem, solution in zip(problems, solutions, strict=True)
    ]


def _moving(problem: Problems) -> tuple[Array, Array, Array]:
    """Cost and mass of what moves."""
    cost: Any = problem.cost
    a, b = problem.a, problem.b
    if problem.sources is not None:
        # Both sums are one less what stays; the host wants them equal to the last digit.
        b = b - _staying(problem)
        a = a.at[problem.sources].get(mode="fill", fill_value=0)
        total = jnp.sum(b)
        b = b * jnp.where(total > 0, jnp.sum(a) / jnp.where(total > 0, total, 1), 0)
    return cost, a.astype(cost.dtype), b.astype(cost.dtype)


def _staying(problem: Problems) -> Array:
    """The mass of every target that it had as a source, and keeps."""
    had = problem.a.at[problem.targets].get(mode="fill", fill_value=0)
    return jnp.minimum(had, problem.b)


def _completed(problem: Problems, solution: Solution) -> Transport:
    """The transport of all neurons, of the solution for those that move."""
    cost, a, b = _moving(problem)
    present = (a > 0)[:, None] & (b > 0)
    total = jnp.sum(solution.map * jnp.where(present, cost, 0))
    plan, potential = solution.map, solution.potential
    if problem.sources is not None:
        (n,), (m,) = problem.a.shape, problem.b.shape
        stay = _staying(problem).astype(plan.dtype)
        plan = jnp.zeros((n, m), plan.dtype).at[problem.sources].set(plan, mode="drop")
        plan = plan.at[problem.targets, jnp.arange(m)].add(stay, mode="drop")
        # That of a target is the cost of staying, which is zero.
        potential = jnp.zeros(n, plan.dtype).at[problem.sources].set(potential, mode="drop")
    return Transport(
        map=plan,
        targets=problem.targets,
        converged=solution.converged,
        iterations=solution.iterations,
        marginal_error=solvers.marginal_error(plan, problem.a, problem.b),
        cost=total,
        potential=potential,
    )


@jax.jit
def _selected(scores: Array, targets: Array) -> Transport:
    """The plans of plain pruning: every target receives itself alone."""

    def one(scores: Array, targets: Array) -> Transport:
        n, m = scores.shape[0], targets.shape[0]
        share = 1 / jnp.sum(targets < n, dtype=scores.dtype)
        plan = jnp.zeros((n, m), scores.dtype)
        zero = jnp.zeros((), scores.dtype)
        return Transport(
            map=plan.at[targets, jnp.arange(m)].set(share, mode="drop"),
            targets=targets,
            converged=jnp.asarray(True),
            iterations=jnp.zeros((), jnp.int32),
            marginal_error=zero,
            cost=zero,
            potential=jnp.zeros_like(scores),
        )

    return jax.vmap(one)(scores, targets)
