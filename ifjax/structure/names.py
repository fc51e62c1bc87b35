"""What groups are called: the leaf that produces them first, and what they are in it."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ifjax.structure import axis as ex
from ifjax.structure.structure import Group, Leaf, Member, Structure

Value = TypeVar("Value")

WORDS = {
    "neuron": "neurons",
    "head": "heads",
    "head_dim": "head_dim",
    "integer": "neurons",
    "free": "free",
}
_PLACE = re.compile(r"(?P<from>\d+):(?P<to>\d+)(=(?P<shape>[\dx]+)\.(?P<factor>\d+)(?P<rest>.*))?")


def group_names(groups: Sequence[Group], leaves: Mapping[str, Leaf]) -> dict[str, str]:
    """A name that reads for every group, by the one that it has so far.

    A group that has the axis of its first producer for itself is called as the leaf. Where a leaf
    holds several groups, what tells them apart follows in brackets: the kind (``kv heads``,
    ``query heads``, ``head_dim``), the segment (``0:8``), the factor of merged axes.

    Args:
      groups: with names of any form, which ``along`` uses too.
      leaves: by path.

    Returns:
      New names, all different.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"up": jnp.ones((4, 8)), "a": jnp.ones((3, 2)), "b": jnp.ones((5, 2))}
      >>> def apply(p, x):
      ...     h = x @ p["up"]
      ...     return h[:, :3] @ p["a"] + h[:, 3:] @ p["b"]
      >>> [group.name for group in ifjax.trace(apply, params, jnp.ones((1, 4))).groups]
      ['up (0:3)', 'up (3:8)']
    """
    outer = {name for g in groups if g.kind == "head" for name in g.along}
    heads = {g.name for g in groups if g.kind == "head"}
    taken: dict[str, str] = {}
    names: dict[str, str] = {}
    clash: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for group in groups:
        member = naming_member(group)
        path = member.path or "params"
        whole = isinstance(ex.unordered(ex.whole(leaves[member.path].axes[member.axis])), ex.Atom)
        if whole and path not in taken:
            names[group.name], taken[path] = path, group.name
            continue
        clash[path].append((group.name, _meanings(group, member, whole, outer, heads)))
    for path, several in clash.items():
        found = [meanings[0] for _, meanings in several]
        for name, meanings in several:
            chosen = meanings[0] if found.count(meanings[0]) == 1 else meanings[1]
            full, count = f"{path} ({chosen})", 1
            while full in taken:
                count += 1
                full = f"{path} ({chosen} #{count})"
            names[name], taken[full] = full, name
    return names


def naming_member(group: Group) -> Member:
    """The first producer of a group; of a group without one, its first member."""
    producers = [m for m in group.members if m.position >= 0]
    return min(producers, key=lambda m: m.position) if producers else group.members[0]


def older_name(group: Group) -> str:
    """The name of a group in specs of schema 2, where a leaf holds several of them on one axis."""
    member = naming_member(group)
    return f"{member.path}@{member.where[0]}" if member.where else member.path


def known_group(structure: Structure, name: str) -> Group:
    """The group of a name, of today or of schema 2.

    Raises:
      ValueError: where there is none, or more than one of an older name.
    """
    if name in structure.group:
        return structure.group[name]
    older = [group for group in structure.groups if older_name(group) == name]
    if len(older) > 1:
        names = ", ".join(repr(group.name) for group in older)
        raise ValueError(f"group {name!r} may be any of {names}: give one of these names")
    if not older:
        known = ", ".join(list(structure.group)[:5]) or "none"
        raise ValueError(f"unknown group {name!r}; the groups are {known} ...")
    return older[0]


def by_group(structure: Structure, given: Mapping[str, Value]) -> dict[str, Value]:
    """What is given by names of groups, of today or of schema 2, by those of today.

    Raises:
      ValueError: for an unknown group, or one that is given twice.
    """
    found: dict[str, Value] = {}
    for name, value in given.items():
        group = known_group(structure, name)
        if group.name in found:
            raise ValueError(f"group {group.name} is given twice, also as {older_name(group)!r}")
        found[group.name] = value
    return found


def renamed(structure: Structure, names: Mapping[str, str]) -> Structure:
    """The structure with other names of its groups."""

    def leaf(x: Leaf) -> Leaf:
        return dataclasses.replace(x, axes=tuple(ex.rename(e, names) for e in x.axes))

    groups = (
        dataclasses.replace(
            g, name=names.get(g.name, g.name), along=tuple(names.get(a, a) for a in g.along)
        )
        for g in structure.groups
    )
    return dataclasses.replace(
        structure,
        leaves=tuple(map(leaf, structure.leaves)),
        state=tuple(map(leaf, structure.state)),
        groups=tuple(groups),
        products=tuple(tuple(ex.rename(e, names) for e in p) for p in structure.products),
    )


def _meanings(
    group: Group, member: Member, whole: bool, outer: set[str], heads: set[str]
) -> list[str]:
    """What a group is in its leaf: as short as may do, and with its place."""
    word = WORDS[group.kind]
    if group.name in outer:
        word = "kv heads"
    elif group.kind == "head" and heads & {*group.along}:
        word = "query heads"
    place = _place(member.where[0]) if member.where else f"axis {member.axis}"
    if whole:
        return [word if word not in ("neurons", "free") else f"axis {member.axis}", place]
    if word in ("neurons", "free"):
        return [place, place]
    return [word, f"{word}, {place}"]


def _place(where: str) -> str:
    """``0:8`` as it is; a factor of merged axes as ``factor 1 of 2x3``."""
    match = _PLACE.fullmatch(where)
    if match is None or match["shape"] is None or match["rest"]:
        return where
    factor = f"factor {int(match['factor']) + 1} of {match['shape']}"
    return factor if match["from"] == "0" else f"{match['from']}:{match['to']}, {factor}"
