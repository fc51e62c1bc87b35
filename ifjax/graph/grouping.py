"""From the classes of an axis store to named groups and their members."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Mapping, Sequence

import numpy as np

from ifjax.graph.coupling import Coupling, PinnedAxis
from ifjax.graph.facts.norms import Norm
from ifjax.graph.facts.roles import Roles
from ifjax.graph.facts.slices import Slices
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.walk import Axes
from ifjax.structure import axis as ex
from ifjax.structure.names import group_names, naming_member, renamed
from ifjax.structure.structure import (
    BatchNorm,
    Group,
    Kind,
    Leaf,
    Member,
    Structure,
    is_integer,
)

Described = tuple[str, tuple[int, ...], str]  # path, shape, dtype


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a function besides its axes.

    Attributes:
      roles: roles and positions of the leaves' axes, and which leaves are live.
      norms: batch norms; those with a kernel are recorded.
      inexact: classes that a reduction sees.
      batches: axes that number independent copies of a class.
      shared: of those of slices that share copies, what every leaf holds.
      kind_at: kind of a class, given the leaf axes that hold it, by number and as expressions.
    """

    roles: Roles
    norms: Sequence[Norm]
    inexact: Collection[int]
    batches: Mapping[int, Sequence[int]]
    shared: Mapping[int, Slices]
    kind_at: Callable[[int, Sequence[tuple[int, int]], Sequence[ex.Expression]], Kind]


def build(
    store: AxisStore,
    leaf_axes: Sequence[Axes],
    macs: Sequence[Axes],
    leaves: Sequence[Described],
    facts: Facts,
    state: Sequence[tuple[Described, Axes]] = (),
    carried: Sequence[str] = (),
) -> Coupling:
    """Names the groups, gathers their members, and freezes the axes of all leaves.

    Args:
      store: the axis store after unification.
      leaf_axes: axes of every leaf.
      macs: axes of every contraction.
      leaves: path, shape and dtype of every leaf.
      facts: what else is known.
      state: the inputs that follow the widths, and their axes.
      carried: paths of the outputs that do.
    """
    paths, roles = [path for path, _, _ in leaves], facts.roles
    marks = _marks(store, leaf_axes, facts.batches, paths)

    def resolved(axes: Axes) -> tuple[ex.Expression, ...]:
        return tuple(store.resolve(node, str, marks) for node in axes)

    exprs = [resolved(axes) for axes in leaf_axes]
    where = _places(exprs)
    inward = _inward(where, exprs, roles)

    def turned(axes: Sequence[ex.Expression]) -> tuple[ex.Expression, ...]:
        if not inward:
            return tuple(axes)
        turn = lambda a: ex.in_order(a, inward.get(a.name, tuple(range(a.size))))  # noqa: E731
        return tuple(ex.mapped(e, turn) for e in axes)

    exprs = [turned(axes) for axes in exprs]
    integers = frozenset(i for i, (_, _, dtype) in enumerate(leaves) if is_integer(dtype))
    live = {
        root: at
        for root, at in where.items()
        if any(i in roles.live for i, _ in at) and any(i not in integers for i, _ in at)
    }
    known = {str(root): mark for root, mark in marks.items()} | {root: root for root in live}
    groups = [
        _group(root, at, store, facts, known, paths, exprs, integers) for root, at in live.items()
    ]

    def frozen(axes: Sequence[ex.Expression]) -> tuple[ex.Expression, ...]:
        return tuple(_freeze(e, live) for e in axes)

    structure = Structure(
        leaves=tuple(
            Leaf(*x, frozen(_marked(axes, i, facts, known)))
            for i, (x, axes) in enumerate(zip(leaves, exprs, strict=True))
        ),
        groups=tuple(groups),
        norms=tuple(_record(n, paths) for n in facts.norms if n.kernel is not None),
        products=tuple(frozen(resolved(axes)) for axes in macs),
        state=tuple(Leaf(*x, frozen(turned(resolved(axes)))) for x, axes in state),
        carried=tuple(carried),
    )
    structure = renamed(structure, group_names(groups, structure.leaf))
    structure = dataclasses.replace(structure, groups=tuple(sorted(structure.groups, key=_order)))
    pinned = tuple(
        PinnedAxis(paths[i], j, ex.size(axis), "; ".join(map(str, store.reasons(node))))
        for i, axes in enumerate(exprs)
        for j, (axis, node) in enumerate(zip(axes, leaf_axes[i], strict=True))
        if store.reasons(node)
    )
    return Coupling(structure, pinned, tuple(p for i, p in enumerate(paths) if i not in roles.live))


def _places(exprs: Sequence[Sequence[ex.Expression]]) -> dict[str, list[tuple[int, int]]]:
    """The leaves and axes where every class lies."""
    where: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, axes in enumerate(exprs):
        for j, axis in enumerate(axes):
            for name in dict.fromkeys(ex.atoms(axis)):
                where[name].append((i, j))
    return where


def _inward(
    where: Mapping[str, Sequence[tuple[int, int]]],
    exprs: Sequence[tuple[ex.Expression, ...]],
    roles: Roles,
) -> dict[str, tuple[int, ...]]:
    """Orders that make the neurons of a class stand as in the leaf that the group is named for."""
    found = {}
    for root, at in where.items():
        producers = [key for key in at if roles.position.get(key, -1) >= 0]
        i, j = min(producers, key=roles.position.__getitem__) if producers else at[0]
        match exprs[i][j]:
            case ex.Ordered(ex.Atom(name, _), order) if name == root:
                found[root] = tuple(np.argsort(order).tolist())
    return found


def _group(
    root: str,
    at: Sequence[tuple[int, int]],
    store: AxisStore,
    facts: Facts,
    known: Mapping[str, str],
    paths: Sequence[str],
    exprs: Sequence[tuple[ex.Expression, ...]],
    integers: Container[int],
) -> Group:
    """The group of a class, called as its representative, with the axes that batch it."""
    roles = facts.roles
    kind: Kind = facts.kind_at(int(root), at, [exprs[i][j] for i, j in at])
    if kind != "free" and any(i in integers for i, _ in at):
        kind = "integer"  # those cannot be fused
    members = tuple(
        Member(
            paths[i],
            j,
            "additive" if i in integers else roles.of.get((i, j), "additive"),
            tuple(ex.places(exprs[i][j], root)),
            roles.position.get((i, j), -1),
        )
        for i, j in at
    )
    along = [b for b in facts.batches.get(int(root), ()) if str(b) in known]
    size = store.size(int(root))
    return Group(
        name=root,
        size=size,
        kept=size,
        kind=kind,
        members=members,
        batch=tuple(facts.shared[b].batch if b in facts.shared else store.size(b) for b in along),
        along=tuple(known[str(b)] for b in along),
        exact=int(root) not in facts.inexact,
    )


def _order(group: Group) -> tuple[int, str, int, tuple[str, ...]]:
    """By the first producer, then by where the group lies in it; groups without one come last."""
    first = naming_member(group)
    position = first.position if first.position >= 0 else 1 << 30
    return position, first.path, first.axis, first.where


def _marks(
    store: AxisStore,
    leaf_axes: Sequence[Axes],
    batches: Mapping[int, Sequence[int]],
    paths: Sequence[str],
) -> dict[int, str]:
    """Names for the pinned axes that batch a class, after the first leaf that holds them."""
    wanted = {b for found in batches.values() for b in found if not store.classes(b)}
    marks: dict[int, str] = {}
    for path, axes in zip(paths, leaf_axes, strict=True):
        for j, node in enumerate(axes):
            for root in store.pinned_classes(node):
                if root in wanted:
                    marks.setdefault(root, f"{path}[{j}]")
    return marks


def _marked(
    axes: tuple[ex.Expression, ...], leaf: int, facts: Facts, known: Mapping[str, str]
) -> tuple[ex.Expression, ...]:
    """A leaf's axes with the entries of the batch that slices hold, where they share these."""
    for root, slices in facts.shared.items():
        entries, name = slices.entries.get(leaf, ()), known[str(root)]
        if len(entries) > 1:
            axes = tuple(ex.shared(e, name, entries, slices.batch) for e in axes)
        elif entries:  # a factor of the first axis of a class that the batch is one of
            classes = {str(c) for c, found in facts.batches.items() if root in found}
            at = next(i for i, e in enumerate(axes) if classes & {*ex.atoms(e)})
            one = ex.Pinned(1, name, entries, slices.batch)
            e = axes[at]
            product = ex.Product((one, *(e.factors if isinstance(e, ex.Product) else (e,))))
            axes = (*axes[:at], product, *axes[at + 1 :])
    return axes


def _freeze(axis: ex.Expression, live: Container[str]) -> ex.Expression:
    """Classes that no leaf or only dead leaves hold become pinned."""
    return ex.mapped(axis, lambda a: a if a.name in live else ex.Pinned(a.size))


def _record(norm: Norm, paths: Sequence[str]) -> BatchNorm:
    assert norm.kernel is not None
    assert norm.scale is not None

    def path(leaf: int | None) -> str | None:
        return None if leaf is None else paths[leaf]

    return BatchNorm(
        kernel=paths[norm.kernel[0]],
        axis=norm.kernel[1],
        bias=path(norm.bias),
        scale=paths[norm.scale],
        offset=path(norm.offset),
        mean=paths[norm.mean],
        variance=paths[norm.variance],
        eps=norm.eps,
    )
