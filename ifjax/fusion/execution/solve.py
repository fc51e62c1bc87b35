"""The transport problems of a wave, solved a bucket at a time."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ifjax.fusion.execution.buckets import Bucket, Problems, Unit, stacked
from ifjax.fusion.execution.program import Located, Wave
from ifjax.fusion.merge import Map
from ifjax.parallel import callback
from ifjax.parallel import placement as mesh
from ifjax.transport import transport
from ifjax.transport.solvers import HostSolver, Solver
from ifjax.transport.transport import Transport
from ifjax.tree import is_concrete


def solve(
    problems: Iterable[Problems],
    buckets: Iterable[Bucket],
    solvers: Iterable[Solver | None],
    starts: Sequence[list[Array | None]],
) -> list[Transport]:
    """The transports of buckets that do not wait on each other, padded as the problems are.

    All that is for one solver on the host goes there in one call.

    Args:
      problems: of every bucket, see `buckets.read`; solved, and forgotten, as they come.
      buckets: what is static about them.
      solvers: of every bucket; None where there is nothing to solve.
      starts: per bucket, a potential ``[*batch, n]`` of every unit to start from; None to start
        cold.

    Returns:
      A stacked `Transport` per bucket.
    """
    found: list[Any] = []
    on_host: dict[HostSolver, dict[int, Problems]] = defaultdict(dict)
    for problem, bucket, solver, start in zip(problems, buckets, solvers, starts, strict=True):
        bare = problem._replace(scores=None)
        if solver is None:
            found.append(_selected(problem.scores, problem.targets))
        elif isinstance(solver, HostSolver):
            on_host[solver][len(found)] = bare
            found.append(None)
        else:
            found.append(_solved(bare, _filled(start, bucket), solver))
    for solver, those in on_host.items():
        for i, result in zip(those, _solved_on_host([*those.values()], solver), strict=True):
            found[i] = result
    return found


def require(waves: Iterable[Wave]) -> None:
    """Raises ImportError where a solver needs a package, before anything is computed."""
    for wave in waves:
        for at in wave.located:
            bucket, solver = wave.buckets[at.bucket], wave.solvers[at.bucket]
            if solver is not None:
                n = at.unit.moving(bucket.moved)
                solver.require(n, at.unit.kept, uniform=bucket.method.uniform)


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


@functools.partial(jax.jit, static_argnames="solver")
def _solved(problem: Problems, start: list[Array] | None, solver: Solver) -> Transport:
    one = functools.partial(transport.solve, solver=solver)
    init = None
    if start is not None:
        init = stacked([x.reshape(-1, x.shape[-1]) for x in start], problem.a.shape[1:])
    return jax.vmap(lambda c, a, b, t, init: one(c, a, b, t, init=init))(
        problem.cost, problem.a, problem.b, problem.targets, init
    )


def _solved_on_host(problems: list[Problems], solver: HostSolver) -> list[Transport]:
    """Directly where one device holds all: nothing is compiled."""
    arrays: Any = jax.tree.leaves(problems)
    if not is_concrete(*arrays) or any(len(x.sharding.device_set) > 1 for x in arrays):
        return _called(problems, solver)
    places = [problem.a.sharding for problem in problems]
    found = _on_host(jax.tree.map(np.asarray, problems), solver)
    return [jax.device_put(each, place) for each, place in zip(found, places, strict=True)]


@functools.partial(jax.jit, static_argnames="solver")
def _called(problems: list[Problems], solver: HostSolver) -> list[Transport]:
    solve = functools.partial(_on_host, solver=solver)
    found = callback.called(solve, [_shapes(problem) for problem in problems], problems)
    return jax.tree.map(mesh.settled, found)


def _shapes(problem: Problems) -> Any:
    """Of what comes back from the host."""
    cost: Any = problem.cost
    (batch, n), m = problem.a.shape, problem.b.shape[1]
    kinds = {"converged": jnp.bool_, "iterations": jnp.int32, "targets": problem.targets.dtype}
    sizes = {"map": (n, m), "targets": (m,), "potential": (n,)}
    found: Any = [
        jax.ShapeDtypeStruct((batch, *sizes.get(name, ())), kinds.get(name, cost.dtype))
        for name in Transport._fields
    ]
    return Transport(*found)


def _on_host(problems: list[Problems], solver: HostSolver) -> list[Any]:
    """The transports of stacked problems, in numpy; with any leading axes.

    The solver sees nothing of mass that stays where it is, see `buckets.read`.
    """
    leads = [problem.a.shape[:-1] for problem in problems]
    flat: Any = [
        jax.tree.map(lambda x, k=problem.a.ndim: x.reshape(-1, *x.shape[k - 1 :]), problem)
        for problem in problems
    ]
    moving = [_moving(*problem) for problem in flat]
    solutions = solver.solve_all(*map(list, zip(*moving, strict=True)))
    parts: Any = zip(flat, moving, solutions, strict=True)
    found = [_completed(*problem, *moved[1:], *solution) for problem, moved, solution in parts]
    return [
        jax.tree.map(lambda x, lead=lead: x.reshape(*lead, *x.shape[1:]), transport)
        for transport, lead in zip(found, leads, strict=True)
    ]


def _moving(_: None, targets: Any, a: Any, b: Any, sources: Any, cost: Any) -> list[np.ndarray]:
    """Cost and mass of what moves, of the fields of `Problems`."""
    if sources is not None:
        # Both sums are one less what stays; the solver wants them equal to the last digit.
        b = b - _staying(a, b, targets)
        a = _filled_at(a, sources)
        total = b.sum(1, keepdims=True)
        b = b * np.divide(a.sum(1, keepdims=True), total, out=np.zeros_like(total), where=total > 0)
    return [cost, a.astype(cost.dtype), b.astype(cost.dtype)]


def _staying(a: np.ndarray, b: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The mass of every target that it had as a source, and keeps."""
    return np.minimum(_filled_at(a, targets), b)


def _filled_at(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Entries of every row; zero beyond its end."""
    return np.take_along_axis(np.pad(x, ((0, 0), (0, 1))), index, 1)


def _completed(
    _: None,
    targets: Any,
    a: Any,
    b: Any,
    sources: Any,
    cost: Any,
    moving: np.ndarray,
    coming: np.ndarray,
    plan: np.ndarray,
    converged: np.ndarray,
) -> Any:
    """The transports of all neurons, of the plans for those that move."""
    present = (moving > 0)[:, :, None] & (coming > 0)[:, None]
    nearest = np.where(coming[:, None] > 0, cost, np.inf).min(2, initial=np.inf)
    potential = np.where(moving > 0, nearest, 0)
    total = np.where(present, plan * cost, 0).sum((1, 2))
    if sources is not None:
        (batch, n), m = a.shape, b.shape[1]
        row, whole = np.arange(batch)[:, None], np.zeros((batch, n + 1, m), plan.dtype)
        whole[row, sources] = plan
        whole[row, targets, np.arange(m)] += _staying(a, b, targets)
        # That of a target is the cost of staying, which is zero.
        lifted = np.zeros((batch, n + 1), plan.dtype)
        lifted[row, sources] = potential
        plan, potential = whole[:, :n], lifted[:, :n]
    error = np.abs(plan.sum(2) - a).sum(1) + np.abs(plan.sum(1) - b).sum(1)
    steps = np.zeros(len(plan), np.int32)
    fields: Any = plan, targets, converged, steps, error, total, potential
    return Transport(*(x.astype(cost.dtype) if x.dtype.kind == "f" else x for x in fields))


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
