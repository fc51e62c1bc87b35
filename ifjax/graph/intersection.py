"""The graph that is safe for two functions of one parameter tree."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

from ifjax.graph.coupling import Coupling
from ifjax.graph.facts.batching import batch_axes
from ifjax.graph.facts.kinds import joint_kind
from ifjax.graph.facts.roles import Roles
from ifjax.graph.grouping import Facts, build
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.walk import Axes
from ifjax.structure import axis as ex
from ifjax.structure.structure import BatchNorm, Group, Kind, Leaf


def intersect(a: Coupling, b: Coupling) -> Coupling:
    """Unifies the axes of every leaf in both graphs; what either pins or ties stays so."""
    if [(x.path, x.shape) for x in a.structure.leaves] != [
        (x.path, x.shape) for x in b.structure.leaves
    ]:
        mine = {x.path: x.shape for x in a.structure.leaves}
        for leaf in b.structure.leaves:
            if mine.get(leaf.path) != leaf.shape:
                raise ValueError(
                    f"graphs of different parameter trees: at {leaf.path} expected shape "
                    f"{mine.get(leaf.path)}, got {leaf.shape}"
                )
        raise ValueError("graphs of different parameter trees: the second one lacks leaves")
    store = AxisStore()
    atoms: dict[str, int] = {}
    state: dict[str, tuple[Leaf, Axes]] = {}

    def nodes(graph: Coupling, side: str) -> list[Axes]:
        def atom(a: ex.Atom) -> int:
            return atoms.setdefault(side + a.name, store.fresh(a.size))

        reason = {(p.path, p.axis): p.reason for p in graph.pinned}
        named: dict[str, int] = {}
        found = [
            tuple(
                store.instantiate(x, atom, reason.get((leaf.path, i), "reaches no output"), named)
                for i, x in enumerate(leaf.axes)
            )
            for leaf in graph.structure.leaves
        ]
        atoms.update({side + name: node for name, node in named.items()})
        for leaf in graph.structure.state:
            axes = tuple(store.instantiate(x, atom, "an axis of a state", named) for x in leaf.axes)
            other, known = state.setdefault(leaf.path, (leaf, axes))
            if len(other.shape) != len(leaf.shape):
                raise ValueError(
                    f"state {leaf.path}: the functions take it in shapes {other.shape} and "
                    f"{leaf.shape}; give the two inputs different places"
                )
            for p, q in zip(known, axes, strict=True):
                if store.size(p) == store.size(q):
                    store.unify(p, q)
                else:
                    store.pin(p, "an axis of a state of several sizes")
        return found

    left, right = nodes(a, "a:"), nodes(b, "b:")
    for i, (x, y) in enumerate(zip(left, right, strict=True)):
        dead = [a.structure.leaves[i].path in g.unused for g in (a, b)]
        for p, q in zip(x, y, strict=True):
            if not any(dead):
                store.unify(p, q)
    live_left = [
        y if a.structure.leaves[i].path in a.unused else x
        for i, (x, y) in enumerate(zip(left, right, strict=True))
    ]
    of: dict[tuple[int, int], Any] = {}
    position: dict[tuple[int, int], int] = {}
    for graph in (b, a):
        index = {leaf.path: i for i, leaf in enumerate(graph.structure.leaves)}
        for group in graph.structure.groups:
            for member in group.members:
                key = (index[member.path], member.axis)
                of[key] = member.role
                if member.position >= 0:
                    position[key] = member.position
    live = frozenset(
        i
        for i, leaf in enumerate(a.structure.leaves)
        if leaf.path not in a.unused or leaf.path not in b.unused
    )
    macs = []
    for product in a.structure.products:
        at = lambda e: atoms["a:" + e.name]  # noqa: E731
        macs.append(tuple(store.instantiate(e, at) for e in product))
    leaves = [(x.path, x.shape, x.dtype) for x in a.structure.leaves]
    held: dict[int, list[tuple[str, Group]]] = defaultdict(list)
    for side, graph in (("a:", a), ("b:", b)):
        for group in graph.structure.groups:
            for root in store.classes(atoms[side + group.name]):
                held[root].append((side, group))
    inexact = {root for root, groups in held.items() if not all(g.exact for _, g in groups)}

    def _along(groups: list[tuple[str, Group]]) -> set[int]:
        """What batches a class in both functions."""
        each = [{store.find(atoms[side + name]) for name in g.along} for side, g in groups]
        return set.intersection(*each)

    roles = Roles(of, position, live)
    batches = batch_axes(store, live_left, known={r: _along(gs) for r, gs in held.items()})

    def kind_at(root: int, at: Any, axes: Any) -> Kind:
        del at, axes
        return joint_kind([group.kind for _, group in held[root]])

    graph = build(
        store,
        live_left,
        macs,
        leaves,
        Facts(roles, [], inexact, batches, kind_at),
        [((leaf.path, leaf.shape, leaf.dtype), axes) for leaf, axes in state.values()],
        tuple(dict.fromkeys(a.structure.carried + b.structure.carried)),
    )
    norms = tuple(n for n in a.structure.norms if _foldable_in(b, n))
    norms += tuple(n for n in b.structure.norms if n not in norms and _foldable_in(a, n))
    return graph._replace(structure=dataclasses.replace(graph.structure, norms=norms))


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
