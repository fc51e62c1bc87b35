"""Problems of several sizes, padded to a few, so that a solver is compiled for a few."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ifjax.fusion.problem import Problem
from ifjax.fusion.program import GroupProblem, Level
from ifjax.namespace import AnyArray, namespace
from ifjax.transport import transport
from ifjax.transport.solvers import HostSolver, Solver
from ifjax.transport.transport import Transport

# Costs that are iterated on in the time that a solver takes to be compiled, and to be begun.
_COMPILED = 2**21
_BEGUN = {"cpu": 2**12}
_BEGUN_ELSEWHERE = 2**20
# A batch holds no more bytes of costs than this, or one problem.
_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Padding:
    """The size that problems are padded to: sources, targets, and problems of a batch."""

    n: int
    m: int
    batch: int


def paddings(levels: Sequence[Level], backend: str) -> dict[str, Padding]:
    """The paddings of all groups that are solved on devices, by name.

    Problems of neighbouring sizes share one where the costs that are added take less time than
    compiling once more would; a batch has the size that takes least over all levels.

    Args:
      levels: the groups.
      backend: the platform.

    Returns:
      The paddings.
    """
    found: dict[str, Padding] = {}
    solved = [
        [p for p in level.problems if p.solver and not isinstance(p.solver, HostSolver)]
        for level in levels
    ]
    for solver in dict.fromkeys(p.solver for level in solved for p in level):
        groups = [[p for p in level if p.solver == solver] for level in solved]
        counts: Counter[tuple[int, int]] = Counter()
        for p in (p for level in groups for p in level):
            counts[p.extent] += p.count
        for extents in _clusters(sorted(counts), counts):
            n, m = (max(sizes) for sizes in zip(*extents, strict=True))
            each = [sum(p.count for p in level if p.extent in extents) for level in groups]
            batch = _batch([count for count in each if count], n * m, backend)
            for p in (p for level in groups for p in level if p.extent in extents):
                found[p.name] = Padding(n, m, batch)
    return found


def _clusters(
    extents: Sequence[tuple[int, int]], counts: Mapping[tuple[int, int], int]
) -> list[list[tuple[int, int]]]:
    """The extents in order, cut where it takes least."""
    best: list[tuple[float, list[list[tuple[int, int]]]]] = [(0, [])]
    for stop in range(1, len(extents) + 1):
        choices = []
        for start in range(stop):
            part = list(extents[start:stop])
            n, m = (max(sizes) for sizes in zip(*part, strict=True))
            time = best[start][0] + _COMPILED + n * m * sum(counts[e] for e in part)
            choices.append((time, [*best[start][1], part]))
        best.append(min(choices, key=lambda choice: choice[0]))
    return best[-1][1]


def _batch(counts: Sequence[int], costs: int, backend: str) -> int:
    """The number of problems that takes least, if no more or fewer are solved together."""
    begun = _BEGUN.get(backend, _BEGUN_ELSEWHERE)
    sizes = [b for b in range(1, max(counts) + 1) if b == 1 or 4 * b * costs <= _BYTES]
    return min(sizes, key=lambda b: sum(-(-n // b) * (begun + b * costs) for n in counts))


def solve_padded(
    groups: Sequence[GroupProblem],
    problems: Sequence[Problem],
    starts: Sequence[AnyArray | None],
    padding: Mapping[str, Padding],
    done: Callable[[], None],
) -> list[Transport]:
    """The transports of groups that do not wait on each other, batch by batch.

    Args:
      groups: what is static.
      problems: of the groups, ``[count, ...]`` each.
      starts: per group a potential ``[count, n]`` to start from; None to start cold.
      padding: by group.
      done: is called after every problem.

    Returns:
      A transport ``[count, ...]`` per group.
    """
    alike: dict[tuple[Solver | None, Padding], list[tuple[int, int]]] = defaultdict(list)
    for g, group in enumerate(groups):
        alike[group.solver, padding[group.name]] += [(g, i) for i in range(group.count)]
    found: dict[int, dict[int, Transport]] = defaultdict(dict)
    for (solver, size), members in alike.items():
        for first in range(0, len(members), size.batch):
            batch = members[first : first + size.batch]
            filled = batch
            if not isinstance(problems[batch[0][0]].cost, jax.Array):
                # Of one size, for the program that is compiled.
                filled = batch + batch[:1] * (size.batch - len(batch))
            fields = [_stacked(problems, starts, filled, size, name) for name in ("cost", "a", "b")]
            start = None
            if any(starts[g] is not None for g, _ in batch):
                start = _stacked(problems, starts, filled, size, "start")
            each = _solved(*fields, start, solver=solver)
            if not isinstance(fields[0], jax.Array):
                each = jax.tree.map(np.asarray, each)
            for k, (g, i) in enumerate(batch):
                n, m = problems[g].a.shape[1], problems[g].b.shape[1]
                one = jax.tree.map(lambda x, k=k: x[k], each)
                found[g][i] = one._replace(
                    map=one.map[:n, :m], potential=one.potential[:n], targets=problems[g].targets[i]
                )
                done()
    each = ([found[g][i] for i in range(group.count)] for g, group in enumerate(groups))
    return [jax.tree.map(lambda *x: namespace(*x).stack(x), *transports) for transports in each]


def _stacked(
    problems: Sequence[Problem],
    starts: Sequence[AnyArray | None],
    members: Sequence[tuple[int, int]],
    size: Padding,
    name: str,
) -> AnyArray:
    """One field of some problems; filled up with zeros, where mass is zero nothing is present."""
    parts, shape = [], {"cost": (size.n, size.m), "b": (size.m,)}.get(name, (size.n,))
    for g, i in members:
        if name == "start":
            start = starts[g]
            x = problems[g].a[i] * np.nan if start is None else start[i]
        else:
            x = getattr(problems[g], name)[i]
        width = [(0, large - small) for large, small in zip(shape, x.shape, strict=True)]
        parts.append(namespace(x).pad(x, width))
    return namespace(*parts).stack(parts)


@functools.partial(jax.jit, static_argnames="solver")
def _solved(cost: Array, a: Array, b: Array, start: Array | None, solver: Solver) -> Transport:
    def one(cost: Array, a: Array, b: Array, start: Array | None) -> Transport:
        targets = jnp.arange(b.shape[0])
        return transport.solve(cost, a, b, targets, solver=solver, init=start)

    return jax.vmap(one)(cost, a, b, start)
