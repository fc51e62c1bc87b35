"""Any JAX function and its parameters -> the groups of axes that must be cut together."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ifjax.graph import expression as ex
from ifjax.graph import selecting
from ifjax.graph.analysis import Arguments, analyse, path_name
from ifjax.graph.axes import AxisStore
from ifjax.graph.flow import Axes
from ifjax.graph.norms import Norm, find_norms
from ifjax.graph.roles import Roles, find_roles
from ifjax.method import Method
from ifjax.spec import BatchNorm, FusionSpec, Group, Leaf, Member, Plan


@dataclasses.dataclass(frozen=True)
class PinnedAxis:
    """An axis of a leaf that cannot be cut, or only in part.

    Attributes:
      path: path of the leaf.
      axis: the axis.
      size: its size.
      reason: what pins it, with the source line.
    """

    path: str
    axis: int
    size: int
    reason: str


@dataclasses.dataclass(frozen=True)
class DependencyGraph:
    """What hangs together in a function.

    Attributes:
      plan: leaves, groups, batch norms; every group at full width.
      pinned: axes that cannot be cut, and why.
      unused: paths of leaves that reach no output; they are cut with their group where they share
        one with a leaf that does.
    """

    plan: Plan
    pinned: tuple[PinnedAxis, ...]
    unused: tuple[str, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, in the order of their first producer."""
        return self.plan.groups

    def spec(
        self,
        sparsity: float | Mapping[str, float] | None = None,
        *,
        keep: int | Mapping[str, int] | None = None,
        include: selecting.Selector = None,
        exclude: selecting.Selector = None,
        round_to: int = 1,
        **method: Any,
    ) -> FusionSpec:
        """Says how many neurons of which groups are to be kept, and how they are computed.

        m = max(1, floor(n (1 - sparsity) + 1e-9)) of a group's n neurons are kept.

        Args:
          sparsity: fraction of neurons to remove, in [0, 1); or a mapping from globs on group names
            (``fnmatchcase``, first match wins) to fractions; groups that none matches are kept.
          keep: absolute number of neurons to keep, or a mapping from globs; it goes before
            ``sparsity`` where both match.
          include: globs or a predicate on `Group`; only these groups are cut. Groups of kind
            ``"free"`` are cut only where their exact name is given.
          exclude: globs or a predicate; these groups are not cut.
          round_to: kept neurons are the nearest positive multiple of it that is not above n.
          **method: fields of `ifjax.Method`.

        Returns:
          The spec.

        Raises:
          ValueError: for a pattern that matches nothing, a sparsity outside [0, 1), a number of
            neurons that the group does not have, an unknown method option, or where a positive
            sparsity would remove nothing at all.
        """
        known = {f.name for f in dataclasses.fields(Method)}
        for name in method:
            if name not in known:
                raise ValueError(
                    f"unknown option {name!r} of spec; expected one of {', '.join(sorted(known))}"
                )
        groups = selecting.widths(self.groups, sparsity, keep, include, exclude, round_to)
        return FusionSpec(dataclasses.replace(self.plan, groups=groups), Method(**method))

    def verify(
        self, apply_fn: Callable[..., Any], params: Any, *inputs: Any, **options: Any
    ) -> Any:
        """Permutes every group and compares the function's output; see `ifjax.graph.verify`."""
        from ifjax.graph.verify import verify

        return verify(self, apply_fn, params, *inputs, **options)

    def __and__(self, other: DependencyGraph) -> DependencyGraph:
        """The graph that is safe for both functions of one parameter tree."""
        if not isinstance(other, DependencyGraph):
            return NotImplemented
        return _intersect(self, other)

    def __str__(self) -> str:
        """A table of groups, and what is pinned."""
        from ifjax.graph.printing import graph_table

        return graph_table(self)


def trace(
    apply_fn: Callable[..., Any], params: Any, *inputs: Any, **static: Any
) -> DependencyGraph:
    """Finds the groups of coupled axes of ``apply_fn(params, *inputs, **static)``.

    Args:
      apply_fn: any function that JAX can trace.
      params: pytree of arrays or `jax.ShapeDtypeStruct` that holds every array whose shape depends
        on a width: for flax.linen the whole variables, ``{"params": ..., "batch_stats": ...}``.
      *inputs: arrays or `jax.ShapeDtypeStruct`; Python values that are not arrays are static.
      **static: keyword arguments, not traced.

    Returns:
      The graph. Axes of inputs and outputs are pinned, except outputs that mirror a leaf of
      ``params`` (updated batch statistics).

    Raises:
      ValueError: if ``params`` holds no arrays, or a batch norm's statistics are not among them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> graph = trace(lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"], params, jnp.ones((1, 4)))
      >>> [(g.name, g.size) for g in graph.groups]
      [('w1', 8)]
    """
    named = jax.tree_util.tree_leaves_with_path(params)
    if not named:
        raise ValueError("params holds no arrays: expected a pytree of arrays or ShapeDtypeStructs")
    seen: set[str] = set()
    for path, x in named:
        if path_name(path) in seen:
            raise ValueError(f"two leaves of params have the path {path_name(path)}: rename one")
        seen.add(path_name(path))
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise TypeError(
                f"params leaf {path_name(path)}: expected an array or ShapeDtypeStruct, got "
                f"{type(x).__name__}; pass what is not an array as a keyword argument"
            )

    def fresh(store: AxisStore, path: str, x: jax.ShapeDtypeStruct) -> Axes:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return tuple(store.pinned(n, "leaf is not floating point") for n in x.shape)
        return tuple(store.fresh(n) for n in x.shape)

    analysis = analyse(apply_fn, params, Arguments.split(inputs), static, fresh)
    roles = find_roles(analysis.frame, analysis.store, analysis.leaves, analysis.inputs)
    norms = find_norms(analysis.frame, analysis.store, analysis.leaves, analysis.inputs)
    for norm in norms:
        assigned = {norm.scale: "multiplicative", norm.offset: "additive", norm.bias: "additive"}
        assigned |= {norm.mean: "mean", norm.variance: "variance"}
        for leaf, role in assigned.items():
            if leaf is not None:
                for axis in range(len(analysis.leaves[leaf])):
                    roles.of[leaf, axis] = role  # type: ignore[assignment]
    leaves = [(path_name(p), tuple(x.shape), str(x.dtype)) for p, x in named]
    return _build(analysis.store, analysis.leaves, analysis.macs, roles, norms, leaves)


def _build(
    store: AxisStore,
    leaf_axes: Sequence[Axes],
    macs: Sequence[Axes],
    roles: Roles,
    norms: Sequence[Norm],
    leaves: Sequence[tuple[str, tuple[int, ...], str]],
) -> DependencyGraph:
    paths = [path for path, _, _ in leaves]
    exprs = [
        tuple(store.resolve(node, lambda root: str(root)) for node in axes) for axes in leaf_axes
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
        kinds = {m.role for m in members}
        kind = "neuron" if {"producer", "consumer"} <= kinds or roles.both & {*at} else "free"
        size = store.size(int(root))
        groups.append((min_position(at, roles), Group("", size, size, kind, members)))
    _make_unique(names)
    groups = [
        (first, dataclasses.replace(group, name=name))
        for (first, group), name in zip(groups, names.values(), strict=True)
    ]
    groups.sort(key=lambda pair: (pair[0], pair[1].name))
    pinned = [
        PinnedAxis(paths[i], j, ex.size(axis), "; ".join(map(str, store.reasons(node))))
        for i, axes in enumerate(exprs)
        for j, (axis, node) in enumerate(zip(axes, leaf_axes[i], strict=True))
        if store.reasons(node)
    ]
    plan = Plan(
        leaves=tuple(
            Leaf(path, shape, dtype, tuple(_freeze(a, names) for a in axes))
            for (path, shape, dtype), axes in zip(leaves, exprs, strict=True)
        ),
        groups=tuple(group for _, group in groups),
        norms=tuple(_record(n, paths) for n in norms if n.kernel is not None),
        products=tuple(
            tuple(_freeze(store.resolve(a, lambda root: str(root)), names) for a in product)
            for product in macs
        ),
    )
    unused = tuple(path for i, path in enumerate(paths) if i not in roles.live)
    return DependencyGraph(plan, tuple(pinned), unused)


def min_position(at: Sequence[tuple[int, int]], roles: Roles) -> int:
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


def _intersect(a: DependencyGraph, b: DependencyGraph) -> DependencyGraph:
    if [(x.path, x.shape) for x in a.plan.leaves] != [(x.path, x.shape) for x in b.plan.leaves]:
        mine = {x.path: x.shape for x in a.plan.leaves}
        for leaf in b.plan.leaves:
            if mine.get(leaf.path) != leaf.shape:
                raise ValueError(
                    f"graphs of different parameter trees: at {leaf.path} expected shape "
                    f"{mine.get(leaf.path)}, got {leaf.shape}"
                )
        raise ValueError("graphs of different parameter trees: the second one lacks leaves")
    store = AxisStore()
    atoms: dict[str, int] = {}

    def nodes(graph: DependencyGraph, side: str) -> list[Axes]:
        def atom(a: ex.Atom) -> int:
            return atoms.setdefault(side + a.name, store.fresh(a.size))

        reason = {(p.path, p.axis): p.reason for p in graph.pinned}
        return [
            tuple(
                store.instantiate(x, atom, reason.get((leaf.path, i), "reaches no output"))
                for i, x in enumerate(leaf.axes)
            )
            for leaf in graph.plan.leaves
        ]

    left, right = nodes(a, "a:"), nodes(b, "b:")
    for i, (x, y) in enumerate(zip(left, right, strict=True)):
        dead = [a.plan.leaves[i].path in g.unused for g in (a, b)]
        for p, q in zip(x, y, strict=True):
            if not any(dead):
                store.unify(p, q)
    live_left = [
        y if a.plan.leaves[i].path in a.unused else x
        for i, (x, y) in enumerate(zip(left, right, strict=True))
    ]
    of: dict[tuple[int, int], Any] = {}
    position: dict[tuple[int, int], int] = {}
    both: set[tuple[int, int]] = set()
    for graph in (b, a):
        index = {leaf.path: i for i, leaf in enumerate(graph.plan.leaves)}
        for group in graph.groups:
            for member in group.members:
                key = (index[member.path], member.axis)
                of[key] = member.role
                if member.position >= 0:
                    position[key] = member.position
                if group.kind == "neuron":
                    both.add(key)
    live = frozenset(
        i
        for i, leaf in enumerate(a.plan.leaves)
        if leaf.path not in a.unused or leaf.path not in b.unused
    )
    macs = []
    for product in a.plan.products:
        at = lambda e: atoms["a:" + e.name]  # noqa: E731
        macs.append(tuple(store.instantiate(e, at) for e in product))
    leaves = [(x.path, x.shape, x.dtype) for x in a.plan.leaves]
    graph = _build(store, live_left, macs, Roles(of, position, live, frozenset(both)), [], leaves)
    norms = tuple(n for n in a.plan.norms if _foldable_in(b, n))
    norms += tuple(n for n in b.plan.norms if n not in norms and _foldable_in(a, n))
    return dataclasses.replace(graph, plan=dataclasses.replace(graph.plan, norms=norms))


def _foldable_in(graph: DependencyGraph, norm: BatchNorm) -> bool:
    """Whether a function allows a norm of another one of the same parameters to be folded.

    It does where it has the same norm, does not use the kernel at all, or normalises the kernel's
    output by batch statistics (train mode): then it uses the scale, and no norm shares a leaf.
    """
    if norm in graph.plan.norms or norm.kernel in graph.unused:
        return True
    own = {norm.kernel, norm.bias, norm.scale, norm.offset, norm.mean, norm.variance} - {None}
    for other in graph.plan.norms:
        parts = {other.kernel, other.bias, other.scale, other.offset, other.mean, other.variance}
        if own & parts:
            return False
    return norm.scale not in graph.unused
