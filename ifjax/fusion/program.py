"""A spec as a static program: which groups wait on which, what of which leaf each one reads."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Literal

import jax

from ifjax.fusion.merge_steps import Merges, MergeStep, merges_of, only, steps_of
from ifjax.importance import GroupMetric
from ifjax.spec.method import Method
from ifjax.spec.spec import FusionSpec
from ifjax.structure import axis as ex
from ifjax.structure.layout import GroupLayout, layout_of
from ifjax.structure.structure import BatchNorm, Group, Structure
from ifjax.transport.solvers import HostSolver, Solver
from ifjax.transport.targets import Neurons

LARGE = 2**36
"""Multiplications that merging takes per group, from which on an accelerator compiles a program.

A host of 16 cores makes 2**37 a second, and compiling takes half a second per group.
"""

# What the scores of a group are read from.
Source = Literal["weights", "raw", "norm_scales", "gradients", "statistic", "given"]


@dataclasses.dataclass(frozen=True)
class GroupProblem:
    """What is static about a group's transport problem.

    Attributes:
      name: of the group.
      number: its place in the order of the structure, which its random key depends on.
      size: number of neurons n.
      kept: number of targets m.
      batch: sizes of the batch axes: a problem of its own for every entry.
      method: how the targets are chosen and solved for.
      solver: None where nothing is solved: the targets receive themselves.
      described: the arrays that describe its neurons.
      scored: the arrays that its scores are read from; None where these are given or statistics.
      reads: which ones.
      staying: whether mass that an optimal plan leaves in its place is left out, see
        `ifjax.fusion.problem`.
      sources: how many sources every target has, where that is known beforehand.
    """

    name: str
    number: int
    size: int
    kept: int
    batch: tuple[int, ...]
    method: Method
    solver: Solver | None
    described: GroupLayout
    scored: GroupLayout | None
    reads: Source
    staying: bool
    sources: int | None

    @property
    def count(self) -> int:
        """Number of problems."""
        return math.prod(self.batch)

    @property
    def in_numpy(self) -> bool:
        """Whether importance and targets know arrays of numpy."""
        known = self.reads == "given" or self.method.importance_value.in_numpy
        return known and self.method.targets_value.in_numpy

    @property
    def extent(self) -> tuple[int, int]:
        """Sources and targets of one of them."""
        return (self.size - self.kept if self.staying else self.size), self.kept


@dataclasses.dataclass(frozen=True)
class Level:
    """Groups that do not wait on each other, and what their maps change for later levels."""

    problems: tuple[GroupProblem, ...]
    changes: Merges


@dataclasses.dataclass(frozen=True)
class Refit:
    """A batch norm along a cut axis: how the rows of its kernel and its vectors are merged."""

    norm: BatchNorm
    rows: tuple[MergeStep, ...]
    vector: tuple[MergeStep, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """What fusing by a spec does, as far as it does not depend on numbers.

    Attributes:
      spec: the spec.
      given: the groups whose scores are given.
      keep_shape: whether the targets stay in their places.
      backend: the platform that solvers are chosen for.
    """

    spec: FusionSpec
    given: frozenset[str]
    keep_shape: bool
    backend: str

    @functools.cached_property
    def levels(self) -> tuple[Level, ...]:
        """The groups by level: each needs nothing but the levels before it.

        Raises:
          ValueError: for a group that lacks what its importance is read from.
        """
        structure, method = self.spec.structure, self.spec.method
        number = {group.name: i for i, group in enumerate(structure.in_order())}
        sizes: dict[str, int] = {}
        found: list[tuple[tuple[GroupProblem, ...], dict[str, int]]] = []
        for groups in levels_of(structure, method.order):
            problems = tuple(
                _problem(structure, group, method, sizes, number, self) for group in groups
            )
            found.append((problems, dict(sizes)))
            if method.order == "sequential":
                sizes.update({group.name: group.kept for group in groups})
        later: set[str] = set()
        levels: list[Level] = []
        for problems, present in reversed(found):
            groups = [structure.group[p.name] for p in problems]
            levels.append(Level(problems, merges_of(structure, groups, present, later)))
            for p in problems:
                later |= {*p.described.paths, *(p.scored.paths if p.scored else ())}
        return tuple(reversed(levels))

    @functools.cached_property
    def norms(self) -> tuple[BatchNorm, ...]:
        """Batch norms that are folded into what describes the neurons."""
        structure = self.spec.structure
        held = {m.path for group in structure.in_order() for m in group.members}
        return tuple(norm for norm in structure.norms if norm.kernel in held)

    @functools.cached_property
    def read(self) -> tuple[str, ...]:
        """The leaves that anything is read from or changed in, by path."""
        held = (m.path for group in self.spec.structure.in_order() for m in group.members)
        vectors = (
            path
            for norm in self.norms
            for path in (norm.scale, norm.variance, norm.mean, norm.bias)
            if path is not None
        )
        return tuple(dict.fromkeys([*held, *vectors]))

    @functools.cached_property
    def merges(self) -> Merges:
        """How every leaf that holds a group is merged."""
        structure = self.spec.structure
        groups = structure.in_order()
        return merges_of(structure, groups, {}, structure.leaf, self.keep_shape)

    @functools.cached_property
    def is_large(self) -> bool:
        """Whether its groups are so large that an accelerator is worth compiling for.

        None of them solved by the host, which a compiled program would wait for.
        """
        work = []
        for group in self.spec.structure.in_order():
            own, (n, m) = self.spec.method.of(group.kind), (group.size, group.kept)
            if own.method != "fuse":
                continue
            solver = own.solver_value.at(n, m, uniform=own.uniform, backend=self.backend)
            if isinstance(solver, HostSolver):
                return False
            read = layout_of(self.spec.structure, group, {}, group.kernels).features
            work.append(math.prod(group.batch) * n * m * read)
        return bool(work) and sum(work) >= LARGE * len(work)

    @functools.cached_property
    def refits(self) -> tuple[Refit, ...]:
        """The batch norms to be folded before merging, and refit after it."""
        structure, found = self.spec.structure, []
        for norm in structure.norms if self.spec.method.method == "fuse" else ():
            along = structure.leaf[norm.kernel].axes[norm.axis]
            if structure.widths.keys() & {*ex.atoms(along)}:
                steps = self.merges[norm.kernel]
                rows = (only(step, norm.axis) for step in steps)
                found.append(Refit(norm, tuple(s for s in rows if s.axes), self._vector(norm)))
        return tuple(found)

    def merge(self, kind: str = "weights") -> dict[str, str]:
        """How every group is merged, see `ifjax.fusion.merge.matrix_for`; or ``"select"``."""
        found = {}
        for group in self.spec.structure.in_order():
            method = self.spec.method.of(group.kind)
            chosen = method.merge if kind == "weights" else kind
            found[group.name] = "select" if method.method == "prune" else chosen
        return found

    @property
    def statistic(self) -> str | None:
        """The field of `ifjax.Stats` that the importance reads."""
        return self.spec.method.importance_value.statistic

    def _vector(self, norm: BatchNorm) -> tuple[MergeStep, ...]:
        """How a vector is merged that lies like the normalised axis."""
        structure = self.spec.structure
        axes = (structure.leaf[norm.kernel].axes[norm.axis],)
        members = {
            group.name: [
                dataclasses.replace(m, axis=0)
                for m in group.members
                if (m.path, m.axis) == (norm.kernel, norm.axis)
            ]
            for group in structure.in_order()
        }
        return steps_of(structure.in_order(), axes, members, {}, self.keep_shape)


@functools.lru_cache(maxsize=64)
def _compiled(spec: FusionSpec, given: frozenset[str], keep_shape: bool, backend: str) -> Program:
    return Program(spec, given, keep_shape, backend)


def compiled(spec: FusionSpec, given: Collection[str] = (), keep_shape: bool = False) -> Program:
    """The program of a spec, kept for the next call.

    Args:
      spec: the spec.
      given: the groups whose scores are given.
      keep_shape: whether the targets stay in their places.

    Returns:
      The program.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {f"w{i}": jnp.ones((4, 4)) for i in range(3)}
      >>> apply = lambda p, x: x @ p["w0"] @ p["w1"] @ p["w2"]
      >>> program = compiled(ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5))
      >>> [[p.name for p in level.problems] for level in program.levels]
      [['w1'], ['w0']]
    """
    return _compiled(spec, frozenset(given), keep_shape, jax.default_backend())


def levels_of(structure: Structure, order: str) -> list[list[Group]]:
    """The groups that a structure cuts, by level: each needs nothing but the levels before it.

    Args:
      structure: leaves, groups, widths.
      order: ``"simultaneous"`` for one level; ``"sequential"`` for the fewest in which every group
        comes after all those that precede it in the structure's order and share a leaf with it.

    Returns:
      The groups of every level, in the structure's order.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {f"w{i}": jnp.ones((4, 4)) for i in range(4)}
      >>> apply = lambda p, x: (x @ p["w0"] @ p["w1"], x @ p["w2"] @ p["w3"])
      >>> structure = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5).structure
      >>> [[g.name for g in level] for level in levels_of(structure, "sequential")]
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


def _problem(
    structure: Structure,
    group: Group,
    method: Method,
    sizes: Mapping[str, int],
    number: Mapping[str, int],
    program: Program,
) -> GroupProblem:
    """What is read of a group."""
    group = first_producer_first(group)
    described = layout_of(structure, group, sizes, group.kernels)
    metric, reads, scored = method.importance_value, "weights", described
    if group.name in program.given:
        reads, scored = "given", None
    elif metric.reads == "norm_scales":
        reads, scored = (
            "norm_scales",
            layout_of(structure, with_scales(structure, group, method.importance), {}),
        )
    elif metric.reads == "gradients":
        reads, scored = "gradients", layout_of(structure, group, {}, group.kernels)
    elif metric.statistic:
        reads, scored = "statistic", None
    elif method.scores_on == "raw":
        reads = "raw"
    own, (n, m) = method.of(group.kind), (group.size, group.kept)
    solver, sources, staying = None, None, False
    if own.method == "fuse":
        solver = own.solver_value.at(n, m, uniform=own.uniform, backend=program.backend)
        staying = isinstance(solver, HostSolver) and solver.optimal and _keeps_mass(own)
        moving = n - m if staying else n
        solver.require(moving, m, uniform=own.uniform)
        sources = solver.sources(moving, m) if own.uniform else None
    return GroupProblem(
        name=group.name,
        number=number[group.name],
        size=n,
        kept=m,
        batch=group.batch,
        method=own,
        solver=solver,
        described=described,
        scored=scored,
        reads=reads,
        staying=staying,
        sources=sources and sources + staying,
    )


def _keeps_mass(method: Method) -> bool:
    """Whether an optimal plan leaves in its place all mass that a target has and receives."""
    metric = isinstance(method.cost_p, (int, float))
    same = method.source_marginal == method.target_marginal
    return metric and same and isinstance(method.targets_value, Neurons)


def first_producer_first(group: Group) -> Group:
    """The group with its producers in the order of the function, before its other members."""
    members = sorted(group.members, key=lambda m: (m.role != "producer", m.position))
    return dataclasses.replace(group, members=tuple(members))


def with_scales(structure: Structure, group: Group, asked: str | GroupMetric) -> Group:
    """The group with the scales of its batch norms as its only members.

    Those that can be folded; where there are only others, every vector that multiplies neurons with
    running statistics.
    """
    known = {norm.scale for norm in structure.norms}
    scales = [m for m in group.members if m.path in known]
    if not scales and any(m.role == "variance" for m in group.members):
        vectors = (m for m in group.members if len(structure.leaf[m.path].shape) == 1)
        scales = [m for m in vectors if m.role == "multiplicative"]
    if not scales:
        raise ValueError(
            f"group {group.name}: importance {asked!r} reads the scales of its batch norms, and "
            "it has none; choose another importance, exclude the group, or pass scores for it"
        )
    return dataclasses.replace(group, members=tuple(scales))
