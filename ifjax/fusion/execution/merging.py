"""The maps of many groups applied to many leaves: side by side on the host, or traced."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import jax

from ifjax.fusion import batch_norm
from ifjax.fusion.merge import GroupMap, Maps, assigned, group_map, merge_leaf
from ifjax.fusion.merge_steps import Merges
from ifjax.fusion.program import Program, Refit
from ifjax.namespace import AnyArray, Arrays, namespace
from ifjax.parallel import threads
from ifjax.structure.structure import BatchNorm, Group
from ifjax.transport.transport import Transport
from ifjax.tree import promoted


def merged(
    program: Program,
    leaves: Arrays,
    transports: Mapping[str, Transport],
    kind: str = "weights",
    sources: Mapping[str, int | None] | None = None,
) -> dict[str, AnyArray]:
    """The leaves that hold a group, at their small widths, in their dtypes.

    Args:
      program: what is static.
      leaves: by path, all or some of the spec's; all in numpy, or of jax.
      transports: of all groups, of arrays of the same kind.
      kind: as for `ifjax.apply_maps`.
      sources: how many sources a target has, by group, where it is known.

    Returns:
      The merged leaves by path.
    """
    merge = program.merge(kind)
    maps = group_maps(program, program.spec.structure.in_order(), transports, kind, sources or {})
    work = {path: promoted(leaves[path]) for path in program.merges if path in leaves}
    refits = program.refits if kind == "weights" else ()
    vectors = (p for r in refits for p in (r.norm.scale, r.norm.variance) if p not in work)
    work |= {path: promoted(leaves[path]) for path in vectors}
    folded = fold(work, [r.norm for r in refits])
    neutral = kind == "weights"
    found = applied(folded, program.merges, maps, merge, program.keep_shape, neutral)
    calls = [
        functools.partial(_refit, r, work, found, maps, merge, program, leaves) for r in refits
    ]
    for each in threads.each(calls, [found[r.norm.kernel].size for r in refits], found):
        found |= each
    return {
        path: x.astype(jax.dtypes.canonicalize_dtype(leaves[path].dtype))
        for path, x in found.items()
    }


def fold(leaves: Arrays, norms: Sequence[BatchNorm]) -> dict[str, AnyArray]:
    """All leaves, with the norms folded: `ifjax.fusion.batch_norm.fold`, side by side."""
    calls = [functools.partial(batch_norm.fold, leaves, norm) for norm in norms]
    each = threads.each(calls, [leaves[norm.kernel].size for norm in norms], leaves)
    return {**leaves, **{path: x for found in each for path, x in found.items()}}


def group_maps(
    program: Program,
    groups: Sequence[Group],
    transports: Mapping[str, Transport],
    kind: str,
    sources: Mapping[str, int | None],
    in_place: bool | None = None,
) -> dict[str, GroupMap | list[GroupMap]]:
    """What merging reads of the transports of some groups, of every entry of a batch."""
    in_place = program.keep_shape if in_place is None else in_place
    merge = program.merge(kind)
    cut = [group.name for group in groups if merge[group.name] != "select"]
    lists = assigned({name: transports[name].map for name in cut}, sources)

    def one(group: Group) -> GroupMap | list[GroupMap]:
        found = transports[group.name]
        by = functools.partial(
            group_map,
            select=merge[group.name] == "select",
            full=group.size if in_place else None,
            sources=sources.get(group.name),
        )
        index = lists.get(group.name)
        if not group.batch:
            return by(found.map, found.targets, lists=index)
        plans, targets, index = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[len(group.batch) :]), (found.map, found.targets, index)
        )
        if isinstance(plans, jax.Array):
            return jax.vmap(lambda *each: by(*each[:2], lists=each[2]))(plans, targets, index)
        return [by(plan, index) for plan, index in zip(plans, targets, strict=True)]

    calls = [functools.partial(one, group) for group in groups]
    sizes = [math.prod(transports[g.name].map.shape) for g in groups]
    each = threads.each(calls, sizes, transports)
    return {group.name: found for group, found in zip(groups, each, strict=True)}


def applied(
    leaves: Arrays,
    merges: Merges,
    maps: Maps,
    merge: Mapping[str, str],
    full: bool = False,
    neutral: bool = False,
) -> dict[str, AnyArray]:
    """The leaves that some groups lie in, merged, as far as they are given."""
    found = [(path, steps) for path, steps in merges.items() if path in leaves]
    calls = [
        functools.partial(merge_leaf, leaves[path], steps, maps, merge, full, neutral)
        for path, steps in found
    ]
    each = threads.each(calls, [leaves[path].size for path, _ in found], leaves, maps)
    return {path: x for (path, _), x in zip(found, each, strict=True)}


def _refit(
    refit: Refit,
    work: Arrays,
    found: Arrays,
    maps: Maps,
    merge: Mapping[str, str],
    program: Program,
    leaves: Arrays,
) -> dict[str, AnyArray]:
    """The leaves of one batch norm, with the slope and the spread that merging gives it."""
    norm, full = refit.norm, program.keep_shape
    kernel, scale, variance = work[norm.kernel], work[norm.scale], work[norm.variance]
    rows = batch_norm.spread(kernel, scale, norm.axis)
    size = batch_norm.slope(kernel, scale, variance, norm.axis, norm.eps)
    select = dict.fromkeys(merge, "select")
    rows = merge_leaf(rows, refit.rows, maps, merge, full)
    size = merge_leaf(size, refit.vector, maps, merge, full)
    kept = merge_leaf(scale, refit.vector, maps, select, full)
    sign = namespace(kept).where(kept < 0, -1, 1).astype(size.dtype)
    dtype = jax.dtypes.canonicalize_dtype(leaves[norm.variance].dtype)
    return batch_norm.unfold(found, norm, rows, size * sign, dtype)
