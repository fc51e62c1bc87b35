"""The transport problems of all groups, level by level: on the host, or traced."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray, PyTree

from ifjax.activations.progress import shown_progress
from ifjax.activations.statistics import Stats
from ifjax.fusion.execution.distances import distances
from ifjax.fusion.execution.merging import applied, group_maps
from ifjax.fusion.execution.padding import Padding, paddings, solve_padded
from ifjax.fusion.execution.sources import Sources, sources_of
from ifjax.fusion.problem import (
    Problem,
    check_problem,
    check_scores,
    completed,
    moving,
    problem_of,
    scores_of,
    selected,
)
from ifjax.fusion.program import GroupProblem, Level, Program
from ifjax.namespace import AnyArray, Arrays
from ifjax.parallel import placement, ring, threads
from ifjax.parallel.callback import called
from ifjax.transport import costs
from ifjax.transport.costs import Order
from ifjax.transport.solvers import HostSolver
from ifjax.transport.transport import Transport
from ifjax.tree import promoted

# A call that takes longer says how far it is.
_LONG = 2.0


def solved(
    program: Program,
    leaves: Arrays,
    scores: Arrays,
    stats: Stats | None = None,
    init: Mapping[str, Transport] | None = None,
) -> dict[str, Transport]:
    """The transports of all groups.

    Args:
      program: what is static.
      leaves: the parameters by path: all in numpy, for the host, or all of jax, to be traced.
      scores: given ones.
      stats: checked statistics.
      init: earlier transports to start from.

    Returns:
      A transport ``[*batch, ...]`` per group, of the arrays that the leaves are of.
    """
    sources = sources_of(program, leaves, scores, stats)
    padding = paddings(program.levels, program.backend)
    on_host = all(isinstance(x, np.ndarray) for x in sources.described.values())
    found: dict[str, Transport] = {}
    with _progress(program, on_host) as done:
        for level in program.levels:
            starts = [_start(init, p) for p in level.problems]
            if on_host:
                each = _on_host(level.problems, sources, starts, padding, done)
            else:
                each = _traced(level.problems, sources, starts, padding)
            for p, transport in zip(level.problems, each, strict=True):
                found[p.name] = jax.tree.map(
                    lambda x, p=p: x.reshape((*p.batch, *x.shape[1:])), transport
                )
            if level is not program.levels[-1]:
                sources = changed(program, sources, level, found)
    return found


def _progress(
    program: Program, on_host: bool
) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """On a terminal, of the problems that are solved; tracing takes no time of its own."""
    if not on_host:
        return contextlib.nullcontext(_nothing)
    total = sum(p.count for level in program.levels for p in level.problems)
    return shown_progress(total, "fuse", "transport problems", after=_LONG)


def _nothing() -> None:
    """Where no progress is shown."""


def changed(
    program: Program, sources: Sources, level: Level, found: Mapping[str, Transport]
) -> Sources:
    """The sources with the maps of a level applied, as far as later levels read them."""
    groups = [program.spec.structure.group[p.name] for p in level.problems]
    known = {p.name: p.sources for p in level.problems}
    maps = group_maps(program, groups, found, "weights", known, in_place=False)

    def merge(leaves: Arrays) -> Arrays:
        held = {path: promoted(leaves[path]) for path in level.changes if path in leaves}
        return applied(held, level.changes, maps, program.merge())

    return sources.changed(merge)


def _start(init: Mapping[str, Transport] | None, p: GroupProblem) -> AnyArray | None:
    """The source potentials ``[count, n]`` to start from."""
    if init is None or p.name not in init:
        return None
    potential = init[p.name].potential
    if potential.shape != (*p.batch, p.size):
        raise ValueError(
            f"init of group {p.name}: expected a potential of shape {(*p.batch, p.size)}, got "
            f"{potential.shape}"
        )
    return potential.reshape(-1, p.size)


def _keys(p: GroupProblem) -> Key[Array, " count"] | None:
    """A random key for every entry of a group, where one is needed."""
    method = p.method
    drawn = p.reads != "given" and method.importance_value.random
    if not (method.targets_value.random or drawn):
        return None
    key = jax.random.fold_in(jax.random.key(method.seed), p.number)
    return jax.random.split(key, p.count) if p.batch else key[None]


def _on_host(
    problems: Sequence[GroupProblem],
    sources: Sources,
    starts: Sequence[AnyArray | None],
    padding: Mapping[str, Padding],
    done: Callable[[], None],
) -> list[Transport]:
    """Problems in numpy on threads; what is solved on the host is solved where it is read."""
    calls, sizes = [], []

    def one(p: GroupProblem, *given: PyTree) -> Problem | Transport:
        found = _one(p, *given)
        if isinstance(found, Transport):
            done()
        return found

    for p in problems:
        entry, scored, given = sources.of(p)
        keys = _keys(p)
        for i in range(p.count):
            given_arrays = _entry(p, i, entry, scored, given, keys)
            calls.append(functools.partial(one, p, *given_arrays))
            sizes.append(math.prod(p.extent) * p.described.features)
    results = iter(threads.each(calls, sizes))
    found = [
        jax.tree.map(lambda *x: np.stack(x), *itertools.islice(results, p.count)) for p in problems
    ]
    return _solve_the_rest(problems, found, starts, padding, done)


def _entry(
    p: GroupProblem, i: int, entry: Arrays, scored: Arrays, *rows: AnyArray | None
) -> tuple[PyTree, ...]:
    """One entry of arrays with the batch in front, or where there is none arrays as they are."""
    dicts = [{path: x[i] if p.batch else x for path, x in tree.items()} for tree in (entry, scored)]
    return (*dicts, *(None if x is None else x[i] for x in rows))


def _one(
    p: GroupProblem, entry: Arrays, scored: Arrays, given: AnyArray | None, key: PRNGKeyArray | None
) -> Problem | Transport:
    """One entry of a group, solved if that is done on the host."""
    if p.in_numpy:
        problem = problem_of(p, entry, scored, given, key, distances)
    else:
        problem = jax.device_get(_compiled(p, entry, scored, given, key))
    check_problem(p, problem)
    if p.solver is None:
        return selected(problem)
    if not isinstance(p.solver, HostSolver):
        return problem._replace(scores=None)
    cost, a, b = moving(problem)
    ((plan, converged),) = p.solver.solve_all([cost], [a], [b])
    return completed(problem, plan, converged)


@functools.partial(jax.jit, static_argnums=0)
def _compiled(p: GroupProblem, *given: PyTree) -> Problem:
    """The problem of a group whose metric or targets know arrays of jax alone."""
    return problem_of(p, *given, distances=_distances)


def _traced(
    problems: Sequence[GroupProblem],
    sources: Sources,
    starts: Sequence[AnyArray | None],
    padding: Mapping[str, Padding],
) -> list[Transport]:
    """Problems of jax: one call to the host for all that is solved there."""
    found: list[Problem | Transport] = []
    for p in problems:

        def one(p: GroupProblem, *given: PyTree) -> Problem | Transport:
            problem = problem_of(p, *given, distances=_distances, ask_host=True)
            return selected(problem) if p.solver is None else problem._replace(scores=None)

        given = (*sources.of(p), _keys(p))
        found.append(_over(p, functools.partial(one, p), *given))
    hosted = {
        i: x
        for i, x in enumerate(found)
        if isinstance(x, Problem) and isinstance(problems[i].solver, HostSolver)
    }
    if hosted:
        each = _called([problems[i] for i in hosted], list(hosted.values()))
        for i, transport in zip(hosted, each, strict=True):
            found[i] = transport
    return _solve_the_rest(problems, found, starts, padding)


def _distances(x: Array, y: Array, p: Order) -> Array:
    """Between columns of features, wherever they lie."""
    metric = functools.partial(costs.cost_matrix, p=p, axis=1)
    return ring.pairwise(metric, x, y, axis=1)


def _over(
    p: GroupProblem,
    function: Callable[..., PyTree],
    entry: Arrays,
    scored: Arrays,
    given: Array | None,
    keys: Key[Array, " count"] | None,
) -> PyTree:
    """A function of every entry; of a group without batch axes without vmap."""
    if p.batch:
        if isinstance(p.solver, HostSolver):  # all entries go to the host at once
            return jax.vmap(function)(entry, scored, given, keys)
        each = placement.over_batch(function, min(p.extent), p.count)
        return each(entry, scored, given, keys)
    given, key = (x if x is None else x[0] for x in (given, keys))
    return jax.tree.map(lambda x: x[None], function(entry, scored, given, key))


def _called(groups: Sequence[GroupProblem], problems: Sequence[Problem]) -> list[Transport]:
    """Transports that the host solves, in one call."""

    def shapes(p: GroupProblem, problem: Problem) -> Transport:
        assert problem.cost is not None  # it is to be solved
        dtype, count = problem.cost.dtype, p.count
        kinds = {"converged": np.bool_, "iterations": np.int32, "targets": problem.targets.dtype}
        sizes = {"map": (p.size, p.kept), "targets": (p.kept,), "potential": (p.size,)}
        fields = (
            jax.ShapeDtypeStruct((count, *sizes.get(name, ())), kinds.get(name, dtype))
            for name in Transport._fields
        )
        return Transport(*fields)

    def solve(problems: Sequence[Problem]) -> list[Transport]:
        found: dict[int, Transport] = {}
        alike: dict[HostSolver, list[int]] = defaultdict(list)
        for i, p in enumerate(groups):
            if isinstance(p.solver, HostSolver):
                alike[p.solver].append(i)
        for solver, members in alike.items():
            each = [moving(problems[i]) for i in members]
            plans = solver.solve_all(*map(list, zip(*each, strict=True)))
            for i, solution in zip(members, plans, strict=True):
                found[i] = completed(problems[i], *solution)
        return [found[i] for i in range(len(problems))]

    wanted = [shapes(p, problem) for p, problem in zip(groups, problems, strict=True)]
    return jax.tree.map(placement.replicated, called(solve, wanted, list(problems)))


def _solve_the_rest(
    problems: Sequence[GroupProblem],
    found: list[Problem | Transport],
    starts: Sequence[AnyArray | None],
    padding: Mapping[str, Padding],
    done: Callable[[], None] = _nothing,
) -> list[Transport]:
    """The transports, those in the place of problems solved on devices."""
    rest = {i: x for i, x in enumerate(found) if isinstance(x, Problem)}
    groups, given = [problems[i] for i in rest], [starts[i] for i in rest]
    each = solve_padded(groups, list(rest.values()), given, padding, done)
    others = dict(zip(rest, each, strict=True))
    return [others[i] if isinstance(x, Problem) else x for i, x in enumerate(found)]


def scored(program: Program, leaves: Arrays, stats: Stats | None) -> dict[str, AnyArray]:
    """The scores ``[*batch, n]`` of all groups, on the given parameters."""
    sources = sources_of(program, leaves, {}, stats)
    found: dict[str, AnyArray] = {}
    for p in (p for level in program.levels for p in level.problems):
        _, arrays, given = sources.of(p)
        keys = _keys(p)
        if isinstance(next(iter(sources.described.values())), np.ndarray):
            each = []
            for i in range(p.count):
                _, *entry = _entry(p, i, {}, arrays, given, keys)
                each.append(scores_of(p, *entry))
                check_scores(p, each[-1])
            scores = np.stack(each)
        else:
            one = functools.partial(lambda p, _, *rest: scores_of(p, *rest), p)
            scores = _over(p, one, {}, arrays, given, keys)
        found[p.name] = scores.reshape(*p.batch, p.size)
    return found
