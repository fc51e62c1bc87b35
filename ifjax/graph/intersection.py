"""The graph that is safe for two functions of one parameter tree."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

from ifjax.graph.coupling import Coupling
from ifjax.graph.facts.batching import batch_axes
from ifjax.graph.facts.kinds import joint_kind
from ifjax.graph.facts.roles import Roles
from ifjax.graph.facts.slices import Slices
from ifjax.graph.grouping import Facts, build
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.walk import Axes
from ifjax.structure import axis as ex
from ifjax.structure.structure import BatchNorm, Group, Kind, Leaf, Role, Structure


def intersect(a: Coupling, b: Coupling) -> Coupling:
    """Unifies the axes of every leaf in both graphs; what either pins or ties stays so."""
    _check_same_leaves(a, b)
    joint = _Joint()
    left, right = joint.leaf_axes(a, "a:"), joint.leaf_axes(b, "b:")
    paths = [leaf.path for leaf in a.structure.leaves]
    for path, x, y in zip(paths, left, right, strict=True):
        if path not in a.unused and path not in b.unused:
            for p, q in zip(x, y, strict=True):
                joint.store.unify(p, q)
    live_left = [
        y if path in a.unused else x for path, x, y in zip(paths, left, right, strict=True)
    ]
    structure = a.structure
    macs = [
        tuple(joint.store.instantiate(e, joint.atoms["a:"]) for e in product)
        for product in structure.products
    ]
    found = build(
        joint.store,
        live_left,
        macs,
        [(x.path, x.shape, x.dtype) for x in structure.leaves],
        _facts(a, b, joint, live_left),
        [((leaf.path, leaf.shape, leaf.dtype), axes) for leaf, axes in joint.state.values()],
        tuple(dict.fromkeys(structure.carried + b.structure.carried)),
    )
    norms = tuple(n for n in structure.norms if _foldable_in(b, n))
    norms += tuple(n for n in b.structure.norms if n not in norms and _foldable_in(a, n))
    return found._replace(structure=dataclasses.replace(found.structure, norms=norms))


def _check_same_leaves(a: Coupling, b: Coupling) -> None:
    mine = {x.path: x.shape for x in a.structure.leaves}
    for leaf in b.structure.leaves:
        if mine.get(leaf.path) != leaf.shape:
            raise ValueError(
                f"graphs of different parameter trees: at {leaf.path} expected shape "
                f"{mine.get(leaf.path)}, got {leaf.shape}"
            )
    if list(mine) != [x.path for x in b.structure.leaves]:
        raise ValueError("graphs of different parameter trees: the second one lacks leaves")


@dataclasses.dataclass
class _Joint:
    """The axes of two graphs in one store.

    Attributes:
      store: of the axes.
      atoms: by side, the node of every group and named pinned axis.
      state: inputs that follow the widths, by path, with their axes.
    """

    store: AxisStore = dataclasses.field(default_factory=AxisStore)
    atoms: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    state: dict[str, tuple[Leaf, Axes]] = dataclasses.field(default_factory=dict)

    def leaf_axes(self, graph: Coupling, side: str) -> list[Axes]:
        """The axes of a graph's leaves, and of its state."""
        atoms, named = self.atoms.setdefault(side, {}), dict[str, int]()

        def axes_of(leaf: Leaf, reasons: Sequence[str]) -> Axes:
            pairs = zip(leaf.axes, reasons, strict=True)
            return tuple(self.store.instantiate(e, atoms, why, named) for e, why in pairs)

        reason = {(p.path, p.axis): p.reason for p in graph.pinned}
        found = [
            axes_of(
                leaf,
                [reason.get((leaf.path, i), "reaches no output") for i in range(len(leaf.axes))],
            )
            for leaf in graph.structure.leaves
        ]
        for leaf in graph.structure.state:
            self._add_state(leaf, axes_of(leaf, ["an axis of a state"] * len(leaf.axes)))
        atoms.update(named)
        return found

    def _add_state(self, leaf: Leaf, axes: Axes) -> None:
        other, known = self.state.setdefault(leaf.path, (leaf, axes))
        if len(other.shape) != len(leaf.shape):
            raise ValueError(
                f"state {leaf.path}: the functions take it in shapes {other.shape} and "
                f"{leaf.shape}; give the two inputs different places"
            )
        for p, q in zip(known, axes, strict=True):
            if self.store.size(p) == self.store.size(q):
                self.store.unify(p, q)
            else:
                self.store.pin(p, "an axis of a state of several sizes")

    def classes(self, a: Coupling, b: Coupling) -> dict[int, list[tuple[str, Group]]]:
        """The groups of both, with their sides, by the class that holds them."""
        held: dict[int, list[tuple[str, Group]]] = defaultdict(list)
        for side, graph in (("a:", a), ("b:", b)):
            for group in graph.structure.groups:
                for root in self.store.classes(self.atoms[side][group.name]):
                    held[root].append((side, group))
        return held

    def along(
        self, groups: Sequence[tuple[str, Group]], structures: Mapping[str, Structure]
    ) -> dict[int, Slices | None]:
        """What batches a class in both functions, and what leaves hold where entries are shared."""
        each = [
            {self.store.find(self.atoms[side][x]): _shared(structures[side], x) for x in g.along}
            for side, g in groups
        ]
        first = each[0]
        return {b: x for b, x in first.items() if all(b in o and o[b] == x for o in each)}


def _shared(structure: Structure, name: str) -> Slices | None:
    """What leaves hold of a batch whose entries positions share; None of another batch axis."""
    found = {
        i: e
        for i, leaf in enumerate(structure.leaves)
        for e in ex.numbering(leaf.axes, name)
        if e.entries
    }
    if not found:
        return None
    [batch] = {e.batch for e in found.values()}
    return Slices(frozenset(), {i: e.entries for i, e in found.items()}, batch)


def _facts(a: Coupling, b: Coupling, joint: _Joint, leaf_axes: Sequence[Axes]) -> Facts:
    """What is known of both functions."""
    held = joint.classes(a, b)
    structures = {"a:": a.structure, "b:": b.structure}
    known = {root: joint.along(groups, structures) for root, groups in held.items()}

    def kind_at(root: int, at: object, axes: object) -> Kind:
        del at, axes
        return joint_kind([group.kind for _, group in held[root]])

    batches, shared = batch_axes(joint.store, leaf_axes, known=known)
    return Facts(
        roles=_roles(a, b),
        norms=[],
        inexact={root for root, groups in held.items() if not all(g.exact for _, g in groups)},
        batches=batches,
        shared=shared,
        kind_at=kind_at,
    )


def _roles(a: Coupling, b: Coupling) -> Roles:
    """Roles and positions of the leaves' axes: those of the first graph where both have some."""
    of: dict[tuple[int, int], Role] = {}
    position: dict[tuple[int, int], int] = {}
    index = {leaf.path: i for i, leaf in enumerate(a.structure.leaves)}
    for graph in (b, a):
        for group in graph.structure.groups:
            for member in group.members:
                key = (index[member.path], member.axis)
                of[key] = member.role
                if member.position >= 0:
                    position[key] = member.position
    live = frozenset(i for path, i in index.items() if path not in a.unused or path not in b.unused)
    return Roles(of, position, live)


def _foldable_in(graph: Coupling, norm: BatchNorm) -> bool:
    """Whether a function allows a norm of another one of the same parameters to be folded.

    It does where it has the same norm, does not use the kernel at all, or normalises the kernel's
    output by batch statistics (train mode): then it uses the scale, and no norm shares a leaf.
    """
    if norm in graph.structure.norms or norm.kernel in graph.unused:
        return True
    own = {norm.kernel, norm.bias, norm.scale, norm.offset, norm.mean, norm.variance} - {None}
    for other in graph.structure.norms:
        parts = {other.kernel, other.bias, other.scale, other.offset, other.mean, other.variance}
        if own & parts:
            return False
    return norm.scale not in graph.unused
