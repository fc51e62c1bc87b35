"""Where in arrays the neurons of one group lie; without names, so that like groups are equal."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.batch_view import View, mentioned
from ifjax.structure.structure import Group, Member, Role, Structure

SELF = "self"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one array holds the neurons of the group at hand.

    Of a group with batch axes: one entry of the array, without these axes.

    Attributes:
      array: number of the array.
      axis: its axis.
      role: what it does to the neurons.
      where: what lies along the axis; the group is the atom `SELF`, all else is pinned at its
        present size, so that groups of one shape share their compiled programs.
    """

    array: int
    axis: int
    role: Role
    where: ex.Expression


def places(
    structure: Structure, group: Group, sizes: Mapping[str, int]
) -> tuple[list[str], tuple[Place, ...]]:
    """Paths of the leaves that hold a group, and where, at the present sizes of all groups."""
    paths = list(dict.fromkeys(m.path for m in group.members))
    number = {path: i for i, path in enumerate(paths)}
    found = [
        Place(number[m.path], m.axis, m.role, _localised(structure, m, group, sizes))
        for m in group.members
    ]
    return paths, tuple(found)


def _localised(
    structure: Structure, member: Member, group: Group, sizes: Mapping[str, int]
) -> ex.Expression:
    name = group.name

    def visit(e: ex.Expression) -> ex.Expression:
        match e:
            case ex.Atom(found, n) if found == name:
                return ex.Atom(SELF, n)
            case ex.Product(parts) if name in set(ex.atoms(e)):
                return ex.Product(tuple(map(visit, parts)))
            case ex.Sum(parts) if name in set(ex.atoms(e)):
                return ex.Sum(tuple(map(visit, parts)))
        return ex.Pinned(ex.size(e, sizes))

    return visit(View(structure.leaf[member.path].axes, group.along).rest()[member.axis])


@dataclasses.dataclass(frozen=True)
class Held:
    """Arrays that hold a group, and where; without names, so that groups of one shape are equal.

    Attributes:
      shapes: of the arrays; of a group with batch axes, of one entry.
      where: the places of the group.
      views: how batch axes come to the front, per array; empty where the group has none.
    """

    shapes: tuple[tuple[int, ...], ...]
    where: tuple[Place, ...]
    views: tuple[View, ...] = ()

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.shapes, self.where, self.views))

    def __hash__(self) -> int:
        """Computed once: it is part of static arguments of jitted functions."""
        return self._hash

    @property
    def width(self) -> int:
        """Number of features of a neuron."""
        rest = ((math.prod(self.shapes[p.array]) // ex.size(p.where), p.where) for p in self.where)
        return sum(others * sum(_multiplicities(where)) for others, where in rest)

    def entries(self, arrays: Sequence[Array]) -> list[Array]:
        """Every array as ``[batch, *entry]``; one entry where the group has no batch axes."""
        if self.views:
            return [view.front(x, {}) for view, x in zip(self.views, arrays, strict=True)]
        return [x.reshape(-1, *shape) for x, shape in zip(arrays, self.shapes, strict=True)]


def _multiplicities(e: ex.Expression) -> Iterator[int]:
    """How often every neuron of the group at hand lies along an axis, for every occurrence."""
    match e:
        case ex.Atom():
            yield 1
        case ex.Product(parts):
            for i, part in enumerate(parts):
                others = math.prod(ex.size(p) for j, p in enumerate(parts) if j != i)
                yield from (others * count for count in _multiplicities(part))
        case ex.Sum(parts):
            for part in parts:
                yield from _multiplicities(part)


def held(
    structure: Structure,
    group: Group,
    sizes: Mapping[str, int],
    given: Container[str] | None = None,
) -> tuple[Held, tuple[str, ...]]:
    """The arrays that hold a group, at the present sizes, and their paths.

    Those that describe its neurons; or all those of the ``given`` paths.
    """
    paths, where = places(structure, group, sizes)
    if given is None:
        where = describing(where)
        arrays = list(dict.fromkeys(p.array for p in where))
    else:
        arrays = [i for i, path in enumerate(paths) if path in given]
    paths = tuple(paths[i] for i in arrays)
    return seen(
        [structure.leaf[path].axes for path in paths], alone(where, arrays), group, sizes
    ), paths


def seen(
    axes: Sequence[Sequence[ex.Expression]],
    where: tuple[Place, ...],
    group: Group,
    sizes: Mapping[str, int],
) -> Held:
    """Arrays along whose axes the given lies, as they hold a group."""
    views = tuple(_view(each, group, sizes) for each in axes)
    shapes = tuple(tuple(ex.size(e) for e in view.rest()) for view in views)
    return Held(shapes, where, views if group.batch else ())


def _view(axes: Sequence[ex.Expression], group: Group, sizes: Mapping[str, int]) -> View:
    """The batch axes of an array, by number, and the group; all else is pinned."""
    numbers = {name: str(i) for i, name in enumerate(group.along)}
    names = {group.name, *numbers}

    def visit(e: ex.Expression) -> ex.Expression:
        match e:
            case ex.Atom(name, n) if name == group.name:
                return ex.Atom(SELF, n)
            case ex.Atom(name, _) | ex.Pinned(_, str(name)) if name in numbers:
                return ex.Pinned(ex.size(e, sizes), numbers[name])
            case ex.Product(parts) if names & set(mentioned(e)):
                return ex.Product(tuple(map(visit, parts)))
            case ex.Sum(parts) if names & set(mentioned(e)):
                return ex.Sum(tuple(map(visit, parts)))
        return ex.Pinned(ex.size(e, sizes))

    return View(tuple(map(visit, axes)), tuple(numbers.values()))


def flat(group: Group, found: Any) -> Any:
    """Arrays ``[*batch, ...]`` as ``[batch, ...]``."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(group.batch) :]), found)


def describing(where: Sequence[Place]) -> tuple[Place, ...]:
    """The places that describe a neuron: producers and consumers, or all where there are none."""
    return tuple(p for p in where if p.role in ("producer", "consumer")) or tuple(where)


def rows(arrays: Sequence[Array], where: Sequence[Place]) -> list[Float[Array, "n _"]]:
    """What belongs to each neuron, one matrix per occurrence of the group in the given places."""
    return [
        matrix for p in where for matrix in axis_arrays.rows(arrays[p.array], p.axis, p.where, SELF)
    ]


def parts(arrays: Sequence[Array], where: Sequence[Place]) -> list[tuple[Array, int]]:
    """The same as it lies in the arrays, and the axis of the neurons."""
    return [
        part for p in where for part in axis_arrays.parts(arrays[p.array], p.axis, p.where, SELF)
    ]


def alone(where: Sequence[Place], arrays: Sequence[int]) -> tuple[Place, ...]:
    """The places in some of the arrays, which are numbered anew in the order given."""
    number = {array: i for i, array in enumerate(arrays)}
    return tuple(dataclasses.replace(p, array=number[p.array]) for p in where if p.array in number)
