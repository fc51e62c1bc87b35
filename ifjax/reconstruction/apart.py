"""A function whose stacked leaves are lists of leaves, with a group of its own for each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ifjax.structure import axis as ex
from ifjax.structure.structure import BatchNorm, Group, Leaf, Member, Structure


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a stacked leaf becomes.

    Attributes:
      count: how many arrays.
      axes: what lies along theirs.
      places: by axis of the stacked leaf, which of theirs it is.
      split: takes the leaf apart.
      join: inverse of ``split``.
      entries: where arrays share entries of the batch that told them apart, the one of each.
    """

    count: int
    axes: tuple[ex.Expression, ...]
    places: tuple[int, ...]
    split: Callable[[Any], list[Any]]
    join: Callable[[Sequence[Any]], Any]
    entries: tuple[int, ...] = ()

    def entry(self, i: int) -> int:
        """Of the batch that told the arrays apart, what the i-th holds."""
        return self.entries[i] if self.entries else i


@dataclasses.dataclass(frozen=True)
class Copies:
    """The groups that others became.

    Attributes:
      of: by name of an original group, its copies, and which of its batch axes told them apart; of
        a group that stays one, its own name and None.
    """

    of: Mapping[str, tuple[tuple[str, ...], int | None]]

    def taken(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Kept neurons of original groups, by copy."""
        found = {}
        for name, index in given.items():
            names, at = self.of[name]
            index = np.asarray(index)
            parts = [index] if at is None else np.moveaxis(index, at, 0)
            found |= zip(names, parts, strict=True)
        return found

    def gathered(self, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inverse of `taken`."""
        found = {}
        for name, (names, at) in self.of.items():
            if names[0] in kept:
                parts = [kept[n] for n in names]
                found[name] = parts[0] if at is None else np.stack(parts, at)
        return found

    def originals(self, wanted: Collection[str]) -> set[str]:
        """Names of the original groups that some groups are copies of."""
        return {name for name, (names, _) in self.of.items() if not {*names}.isdisjoint(wanted)}


@dataclasses.dataclass(frozen=True)
class Apart:
    """A function of parameters whose stacks are lists.

    Attributes:
      apply_fn: ``apply_fn(params, *inputs)`` of these parameters.
      params: the parameters.
      structure: of them.
      copies: the groups that its groups became.
      tree: of the original parameters.
      paths: of their leaves.
      parts: by leaf of the original parameters, what it became; None of one that stays.
    """

    apply_fn: Callable[..., Any]
    params: PyTree
    structure: Structure
    copies: Copies
    tree: Any
    paths: tuple[str, ...]
    parts: tuple[Parts | None, ...]

    def unstacked(self, params: PyTree) -> PyTree:
        """Original parameters, full or at the widths of the spec, as this function takes them."""
        return unstacked(params, self.parts)

    def stacked(self, params: PyTree) -> PyTree:
        """Parameters at the widths of the spec as the original function takes them."""
        found = by_leaf(params, self.parts)
        pairs = zip(found, self.parts, strict=True)
        leaves = [x if part is None else part.join(x) for x, part in pairs]
        return jax.tree.unflatten(self.tree, leaves)


def unstacked(params: PyTree, parts: Sequence[Parts | None]) -> PyTree:
    """Parameters with lists in the places of stacks."""
    leaves, tree = jax.tree.flatten(params)
    pairs = zip(leaves, parts, strict=True)
    return jax.tree.unflatten(tree, [x if part is None else part.split(x) for x, part in pairs])


def by_leaf(params: PyTree, parts: Sequence[Parts | None]) -> list[Any]:
    """The arrays of every original leaf, a list where it was a stack."""
    leaves = iter(jax.tree.leaves(params))
    return [
        next(leaves) if part is None else [next(leaves) for _ in range(part.count)]
        for part in parts
    ]


def copied(
    structure: Structure, paths: Sequence[str], parts: Mapping[str, Parts], over: Collection[str]
) -> tuple[Structure, Copies]:
    """The structure of the leaves that stacks come apart into.

    Args:
      structure: of the stacks.
      paths: of its leaves, in the order of the tree.
      parts: what the stacked leaves become, by path.
      over: names of the axes that numbered what becomes leaves.

    Returns:
      The structure, without products, and the groups that its groups became.
    """
    of: dict[str, tuple[tuple[str, ...], int | None]] = {}
    for group in structure.groups:
        at = next((j for j, name in enumerate(group.along) if name in over), None)
        # No axis is called so, as "w[1]", the second axis of w, is.
        names = [f"{group.name} #{i}" for i in range(1 if at is None else group.batch[at])]
        of[group.name] = ((group.name,) if at is None else tuple(names), at)
    single = {leaf.path: entry for leaf in structure.leaves for entry in _single(leaf, over)}
    groups = [g for group in structure.groups for g in _copies(group, of, parts, single)]

    def copies_of(entry: int) -> dict[str, str]:
        return {n: copies[entry] for n, (copies, at) in of.items() if at is not None}

    leaves: list[Leaf] = []
    for path in paths:
        leaf, part = structure.leaf[path], parts.get(path)
        if part is None:
            if path in single:
                plain = (ex.rename(ex.whole(e), copies_of(single[path])) for e in leaf.axes)
                leaf = dataclasses.replace(leaf, axes=tuple(plain))
            leaves.append(leaf)
            continue
        for i in range(part.count):
            axes = tuple(ex.rename(e, copies_of(part.entry(i))) for e in part.axes)
            leaves.append(Leaf(f"{path}/{i}", tuple(map(ex.size, axes)), leaf.dtype, axes))
    new = dataclasses.replace(
        structure,
        leaves=tuple(leaves),
        groups=tuple(groups),
        norms=tuple(n for norm in structure.norms for n in _norms(norm, parts)),
        products=(),
    )
    return new, Copies(of)


def _single(leaf: Leaf, over: Collection[str]) -> list[int]:
    """The one entry of a batch that a leaf holds which has no axis for it."""
    found = (e for name in over for e in ex.numbering(leaf.axes, name))
    return [e.entries[0] for e in found if e.size == 1]


def _copies(
    group: Group,
    of: Mapping[str, tuple[tuple[str, ...], int | None]],
    parts: Mapping[str, Parts],
    single: Mapping[str, int],
) -> list[Group]:
    """A group for each copy, of the members that it has; batched by copies of what batched it."""
    names, at = of[group.name]
    found = []
    for i, name in enumerate(names):
        members: list[Member] = []
        for m in group.members:
            if m.path not in parts:
                if at is None or single.get(m.path, i) == i:
                    members.append(m)
                continue
            part = parts[m.path]
            for k in (k for k in range(part.count) if at is None or part.entry(k) == i):
                axis = part.places[m.axis]
                members.append(dataclasses.replace(m, path=f"{m.path}/{k}", axis=axis))
        kept = [j for j in range(len(group.along)) if j != at]
        along = [group.along[j] for j in kept]
        copies = [of[a][0] if a in of else (a,) for a in along]
        found.append(
            dataclasses.replace(
                group,
                name=name,
                members=tuple(members),
                batch=tuple(group.batch[j] for j in kept),
                along=tuple(several[min(i, len(several) - 1)] for several in copies),
            )
        )
    return found


def _norms(norm: BatchNorm, parts: Mapping[str, Parts]) -> list[BatchNorm]:
    if norm.kernel not in parts:
        return [norm]
    found, part = [], parts[norm.kernel]
    for i in range(part.count):
        paths = {
            f.name: f"{value}/{i}" if value in parts else value
            for f in dataclasses.fields(norm)
            if isinstance(value := getattr(norm, f.name), str)
        }
        found.append(dataclasses.replace(norm, **paths, axis=part.places[norm.axis]))
    return found
