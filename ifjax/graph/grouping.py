"""From the classes of an axis store to named groups and their members."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from ifjax.graph.coupling import Coupling, PinnedAxis
from ifjax.graph.facts.norms import Norm
from ifjax.graph.facts.roles import Roles
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.walk import Axes
from ifjax.structure import axis as ex
from ifjax.structure.structure import BatchNorm, Group, Kind, Leaf, Member, Structure

Described = tuple[str, tuple[int, ...], str]  # path, shape, dtype


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a function besides its axes.

    Attributes:
      roles: roles and positions of the leaves' axes, and which leaves are live.
      norms: batch norms; those with a kernel are recorded.
      inexact: classes that a reduction sees.
      batches: axes that number independent copies of a class.
      kind_at: kind of a class, given the leaf axes that hold it, by number and as expressions.
    """

    roles: Roles
    norms: Sequence[Norm]
    inexact: Collection[int]
    batches: Mapping[int, Sequence[int]]
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
    exprs = [
        tuple(store.resolve(node, lambda root: str(root), marks) for node in axes)
        for axes in leaf_axes
    ]
    where: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, axes in enumerate(exprs):
        for j, axis in enumerate(axes):
            for name in dict.fromkeys(ex.atoms(axis)):
                where[name].append((i, j))
    dead = {name for name, at in where.items() if not any(i in roles.live for i, _ in at)}
    groups, names = [], {}
    for root, at in where.items():
        if root in dead:
            continue
        members = tuple(
            Member(
                paths[i],
                j,
                roles.of.get((i, j), "additive"),
                tuple(ex.places(exprs[i][j], root)),
                roles.position.get((i, j), -1),
            )
            for i, j in at
        )
        names[root] = _group_name(root, at, roles, paths, exprs)
        size = store.size(int(root))
        group = Group(
            name=root,
            size=size,
            kept=size,
            kind=facts.kind_at(int(root), at, [exprs[i][j] for i, j in at]),
            members=members,
            exact=int(root) not in facts.inexact,
        )
        groups.append((_min_position(at, roles), group))
    _make_unique(names)
    pins, marks = marks, {str(root): name for root, name in marks.items()} | names

    def frozen(axes: Axes) -> tuple[ex.Expression, ...]:
        return tuple(_freeze(store.resolve(a, lambda r: str(r), pins), names) for a in axes)

    groups = [(first, _named(g, names, marks, facts.batches, store)) for first, g in groups]
    groups.sort(key=lambda pair: (pair[0], pair[1].name))
    pinned = [
        PinnedAxis(paths[i], j, ex.size(axis), "; ".join(map(str, store.reasons(node))))
        for i, axes in enumerate(exprs)
        for j, (axis, node) in enumerate(zip(axes, leaf_axes[i], strict=True))
        if store.reasons(node)
    ]
    structure = Structure(
        leaves=tuple(
            Leaf(path, shape, dtype, tuple(_freeze(a, names) for a in axes))
            for (path, shape, dtype), axes in zip(leaves, exprs, strict=True)
        ),
        groups=tuple(group for _, group in groups),
        norms=tuple(_record(n, paths) for n in facts.norms if n.kernel is not None),
        products=tuple(map(frozen, macs)),
        state=tuple(Leaf(*x, frozen(axes)) for x, axes in state),
        carried=tuple(carried),
    )
    unused = tuple(path for i, path in enumerate(paths) if i not in roles.live)
    return Coupling(structure, tuple(pinned), unused)


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


def _named(
    group: Group,
    names: Mapping[str, str],
    marks: Mapping[str, str],
    batches: Mapping[int, Sequence[int]],
    store: AxisStore,
) -> Group:
    """A group with its name and those of the axes that batch it."""
    along = [b for b in batches.get(int(group.name), ()) if str(b) in marks]
    return dataclasses.replace(
        group,
        name=names[group.name],
        batch=tuple(store.size(b) for b in along),
        along=tuple(marks[str(b)] for b in along),
    )


def _min_position(at: Sequence[tuple[int, int]], roles: Roles) -> int:
    """Order of a group's first producer; groups without one come last."""
    return min((roles.position[key] for key in at if key in roles.position), default=1 << 30)


def _group_name(
    root: str,
    at: Sequence[tuple[int, int]],
    roles: Roles,
    paths: Sequence[str],
    exprs: Sequence[tuple[ex.Expression, ...]],
) -> str:
    """The first producer's path, with the segment where its axis holds several groups."""
    i, j = min(at, key=lambda key: roles.position.get(key, 1 << 30))
    axis, path = exprs[i][j], paths[i] or "params"
    if isinstance(axis, ex.Atom):
        return path
    return f"{path}@{next(ex.places(axis, root))}"


def _make_unique(names: dict[str, str]) -> None:
    """Numbers names that two groups share (two axes of one leaf)."""
    seen: dict[str, int] = defaultdict(int)
    for root, name in names.items():
        seen[name] += 1
        if seen[name] > 1:
            names[root] = f"{name}#{seen[name]}"


def _freeze(axis: ex.Expression, names: Mapping[str, str]) -> ex.Expression:
    """Names the groups; classes that no leaf or only dead leaves hold become pinned."""
    match axis:
        case ex.Atom(root, n):
            return ex.Atom(names[root], n) if root in names else ex.Pinned(n)
        case ex.Product(parts):
            return ex.Product(tuple(_freeze(p, names) for p in parts))
        case ex.Sum(parts):
            return ex.Sum(tuple(_freeze(p, names) for p in parts))
        case _:
            return axis


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
