"""Which groups are solved together: those that do not wait on each other, by padded size."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ifjax.fusion.execution.buckets import Bucket, Unit, statistic, with_scales
from ifjax.fusion.merge import Sources
from ifjax.spec.method import Method
from ifjax.structure.layout import Held, held
from ifjax.structure.structure import Group, Structure
from ifjax.transport.solvers import Solver, host
from ifjax.transport.targets import Neurons
from ifjax.tree import is_concrete

# A bucket holds no more than this, or than its largest group if that is larger: batching small
# problems saves calls, large ones fill the machine alone.
BYTES = 2**28
# The cores of a CPU are full with less, and equal groups share their programs without being copied
# into one array; but where all is compiled as one program, every bucket is a part of it.
CPU_BYTES = 2**22


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a group is called, and the leaves that it has to do with.

    Attributes:
      name: of the group.
      number: its place in the order of the structure, which its random key depends on.
      described: paths of the arrays that describe its neurons.
      scored: paths of the arrays that its scores are read from, if they are others.
      changed: paths of the arrays that hold it and that later waves read.
    """

    name: str
    number: int
    described: tuple[str, ...]
    scored: tuple[str, ...]
    changed: tuple[str, ...] = ()


class Located(NamedTuple):
    """Where the transport of a group is found, and what merging it knows.

    Attributes:
      bucket: number of its bucket in the wave.
      start: number of its first problem there.
      unit: what is static about the group.
      sources: how many sources a target has.
      merge: of the weights, see `ifjax.fusion.merge.merge_neurons`.
      changed: the arrays that hold the group and that later waves read.
    """

    bucket: int
    start: int
    unit: Unit
    sources: Sources
    merge: str
    changed: Held = Held((), ())


@dataclasses.dataclass(frozen=True)
class Wave:
    """Groups that do not wait on each other.

    Attributes:
      buckets: what is static about the problems that are solved together.
      solvers: of every bucket; None where there is nothing to solve.
      entries: the groups of every bucket.
      located: of every group, in the order of the buckets.
    """

    buckets: tuple[Bucket, ...]
    solvers: tuple[Solver | None, ...]
    entries: tuple[tuple[Entry, ...], ...]
    located: tuple[Located, ...]

    @property
    def groups(self) -> Iterator[tuple[Entry, Located]]:
        """Every group with what is static about it."""
        return zip((e for entries in self.entries for e in entries), self.located, strict=True)


def waves(structure: Structure, order: str) -> list[list[Group]]:
    """The groups that a structure cuts, in waves: each needs nothing but the waves before it.

    Args:
      structure: leaves, groups, widths.
      order: ``"simultaneous"`` for one wave; ``"sequential"`` for the fewest waves in which every
        group comes after all those that precede it in the structure's order and share a leaf with
        it.

    Returns:
      The groups of every wave, in the structure's order.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {f"w{i}": jnp.ones((4, 4)) for i in range(4)}
      >>> apply = lambda p, x: (x @ p["w0"] @ p["w1"], x @ p["w2"] @ p["w3"])
      >>> structure = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5).structure
      >>> [[g.name for g in wave] for wave in waves(structure, "sequential")]
      [['w2', 'w0']]
    """
    groups = structure.in_order()
    if order == "simultaneous":
        return [groups] if groups else []
    last: dict[str, int] = {}
    found: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        paths = {m.path for m in group.members}
        number = 1 + max(last.get(path, -1) for path in paths)
        last.update(dict.fromkeys(paths, number))
        found[number].append(group)
    return [found[number] for number in sorted(found)]


def padded(size: int) -> int:
    """The size of a bucket's axis: with four significant binary digits, at most 12.5 % above.

    >>> [padded(n) for n in (1, 15, 17, 64, 65, 576, 1000)]
    [1, 15, 18, 64, 72, 576, 1024]
    """
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def bucket_bytes(backend: str, *arrays: Any) -> int:
    """How much a bucket of groups that are read from some arrays may hold."""
    return min(BYTES, CPU_BYTES) if backend == "cpu" and is_concrete(*arrays) else BYTES


@functools.lru_cache(maxsize=64)
def schedule(
    structure: Structure, method: Method, given: frozenset[str], backend: str, limit: int = BYTES
) -> tuple[Wave, ...]:
    """The waves of a structure with their buckets.

    Args:
      structure: leaves, groups, widths.
      method: how the groups are read and solved.
      given: groups whose scores are given.
      backend: the platform that ``solver="auto"`` is chosen for.
      limit: a bucket holds no more bytes, or its largest group.

    Returns:
      What is static about every wave.

    Raises:
      ValueError: for a group that lacks what its importance is read from.
    """
    number = {group.name: i for i, group in enumerate(structure.in_order())}
    order = waves(structure, method.order)
    sizes: dict[str, int] = {}
    found: list[Wave] = []
    for groups in order:
        alike: dict[tuple[Any, ...], list[tuple[Unit, Entry]]] = defaultdict(list)
        for group in map(first_producer_first, groups):
            kind = method.of(group.kind).method
            solver = None
            if kind == "fuse":
                solver = method.solver_value.at(
                    group.size, group.kept, uniform=method.uniform, backend=backend
                )
            unit, entry = _unit(structure, group, method, group.name in given, sizes, number)
            alike[(kind, solver, *map(padded, unit.extent))].append((unit, entry))
        parts = [
            (kind, solver, part)
            for (kind, solver, *_), units in alike.items()
            for part in _parts(units, limit)
        ]
        buckets = tuple(_bucket(part, method, kind, solver) for kind, solver, part in parts)
        found.append(
            Wave(
                buckets,
                tuple(solver for _, solver, _ in parts),
                tuple(tuple(entry for _, entry in part) for _, _, part in parts),
                tuple(
                    Located(
                        i,
                        sum(unit.count for unit, _ in part[:k]),
                        unit,
                        _sources(buckets[i], unit, solver),
                        method.merge if kind == "fuse" else "select",
                    )
                    for i, (kind, solver, part) in enumerate(parts)
                    for k, (unit, _) in enumerate(part)
                ),
            )
        )
        if method.order == "sequential":
            sizes.update({g.name: g.kept for g in groups})
    return _with_changes(structure, found)


def _with_changes(structure: Structure, found: list[Wave]) -> tuple[Wave, ...]:
    """The waves, each with what it has to change for the later ones."""
    later: set[str] = set()
    sizes = dict(structure.widths) if len(found) > 1 else {}
    result = []
    for wave in reversed(found):
        for entry, _ in wave.groups:
            sizes.pop(entry.name, None)
        entries, located = [], []
        for entry, at in wave.groups:
            changed, paths = held(structure, structure.group[entry.name], sizes, later)
            entries.append(dataclasses.replace(entry, changed=paths))
            located.append(at._replace(changed=changed))
        pending = iter(entries)
        buckets = tuple(tuple(next(pending) for _ in each) for each in wave.entries)
        result.append(dataclasses.replace(wave, entries=buckets, located=tuple(located)))
        later |= {path for entry in entries for path in entry.described + entry.scored}
    return tuple(reversed(result))


def in_order(found: Sequence[Wave]) -> list[str]:
    """The names of all groups, in the order of the structure."""
    entries = (entry for wave in found for entry, _ in wave.groups)
    return [entry.name for entry in sorted(entries, key=lambda entry: entry.number)]


def first_producer_first(group: Group) -> Group:
    """The group with its producers in the order of the function, before its other members."""
    members = sorted(group.members, key=lambda m: (m.role != "producer", m.position))
    return dataclasses.replace(group, members=tuple(members))


def _unit(
    structure: Structure,
    group: Group,
    method: Method,
    given: bool,
    sizes: Mapping[str, int],
    number: Mapping[str, int],
) -> tuple[Unit, Entry]:
    """What is read of a group."""
    described, paths = held(structure, group, sizes)
    scored, others = None, ()
    match None if given else method.importance_value.reads:
        case "norm_scales":
            scored, others = held(structure, with_scales(structure, group, method.importance), {})
        case "gradients":
            scored, others = held(structure, group, {})
        case "fisher" | "chip":
            scored, others = statistic(group), (group.name,)
        case "weights" if method.scores_on == "raw":
            scored, others = described, paths
    unit = Unit(group.size, group.kept, group.batch, described, scored, given)
    return unit, Entry(group.name, number[group.name], paths, others)


def _sources(bucket: Bucket, unit: Unit, solver: Solver | None) -> Sources:
    """How many sources a target has in the plans of a group: few in sparse ones.

    For certain where what moves is an assignment.
    """
    if solver is None or not solver.sparse:
        return "many"
    assignment = host.divides(unit.moving(bucket.moved), unit.kept)
    return "whole" if bucket.method.uniform and assignment else "few"


def _parts(units: list[tuple[Unit, Entry]], limit: int) -> Iterator[list[tuple[Unit, Entry]]]:
    """Equal units side by side, no more of them than a bucket holds."""
    first = {unit: i for i, (unit, _) in reversed([*enumerate(units)])}
    part: list[tuple[Unit, Entry]] = []
    held_bytes = 0
    for unit, entry in sorted(units, key=lambda pair: first[pair[0]]):
        if part and held_bytes + unit.bytes > limit:
            yield part
            part, held_bytes = [], 0
        part.append((unit, entry))
        held_bytes += unit.bytes
    yield part


def _bucket(
    part: list[tuple[Unit, Entry]], method: Method, kind: str, solver: Solver | None
) -> Bucket:
    """With the method reduced to what is read, so that specs that differ elsewhere share it."""
    other = Method()
    reading = dataclasses.replace(
        method,
        method=kind,
        solver=other.solver,
        epsilon=other.epsilon,
        merge=other.merge,
        order=other.order,
        heads=other.heads,
        scores_on=other.scores_on,
    )
    metric = isinstance(method.targets_value, Neurons) and isinstance(method.cost_p, (int, float))
    same = method.source_marginal == method.target_marginal
    moved = solver is not None and solver.optimal and metric and same
    return Bucket(tuple(unit for unit, _ in part), reading, moved)
