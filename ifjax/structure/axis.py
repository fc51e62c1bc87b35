"""Axis expressions: what the neurons along one axis are, as a frozen, serialisable value.

An axis is an *atom* (a class of neurons that are cut together), *pinned* (of fixed size), a
*product* (merged axes, outermost factor first: heads x head_dim, H x W x C) or a *sum*
(concatenated segments), nested freely. Everything that re-indexes, maps or measures an axis is one
recursion over its expression.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ifjax.parallel import placement as mesh

Sizes = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Pinned:
    """An axis, or a part of one, whose size is fixed; with a name where it batches a group."""

    size: int
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class Atom:
    """All neurons of the group ``name``, in the group's order."""

    name: str
    size: int


@dataclasses.dataclass(frozen=True)
class Product:
    """Axes merged by a reshape, outermost first."""

    factors: tuple[Expression, ...]


@dataclasses.dataclass(frozen=True)
class Sum:
    """Segments laid one after another."""

    segments: tuple[Expression, ...]


Expression = Pinned | Atom | Product | Sum


def size(expression: Expression, sizes: Sizes | None = None) -> int:
    """Length of the axis where the groups in ``sizes`` have the given widths.

    >>> size(Product((Pinned(4), Sum((Atom("a", 3), Pinned(1))))), {"a": 2})
    12
    """
    match expression:
        case Pinned(n):
            return n
        case Atom(name, n):
            return n if sizes is None else sizes.get(name, n)
        case Product(factors):
            return math.prod(size(f, sizes) for f in factors)
        case Sum(segments):
            return sum(size(s, sizes) for s in segments)


def atoms(expression: Expression) -> Iterator[str]:
    """Names of the groups along the axis, outermost and first come first, with repetitions."""
    match expression:
        case Atom(name, _):
            yield name
        case Product(parts) | Sum(parts):
            for part in parts:
                yield from atoms(part)


def indices(
    expression: Expression, selections: Mapping[str, Any], sizes: Sizes | None = None
) -> Int[Array, " k"] | Int[np.ndarray, " k"]:
    """Positions along the axis that remain when each named group keeps ``selections[name]``.

    >>> axis = Sum((Atom("a", 2), Product((Pinned(2), Atom("a", 2)))))
    >>> indices(axis, {"a": np.array([1])}).tolist()
    [1, 3, 5]
    """
    match expression:
        case Atom(name, _) if name in selections:
            return selections[name]
        case Pinned() | Atom():
            return np.arange(size(expression, sizes))
        case Product(factors):
            index: Any = np.zeros((1,), int)
            for factor in factors:
                inner = indices(factor, selections, sizes)
                index = (index[:, None] * size(factor, sizes) + inner[None, :]).reshape(-1)
            return index
        case Sum(segments):
            parts, offset = [], 0
            for segment in segments:
                parts.append(indices(segment, selections, sizes) + offset)
                offset += size(segment, sizes)
            traced = any(isinstance(p, jax.Array) for p in parts)
            return jnp.concatenate(parts) if traced else np.concatenate(parts)
    raise AssertionError(expression)


def transform(
    x: Array,
    axis: int,
    expression: Expression,
    name: str,
    function: Callable[[Array, int], Array],
    sizes: Sizes | None = None,
) -> Array:
    """Applies ``function(array, axis)`` wherever the neurons of group ``name`` lie along ``axis``.

    Args:
      x: the array; ``x.shape[axis]`` is ``size(expression, sizes)``.
      axis: the axis that ``expression`` describes.
      expression: what lies along it.
      name: the group to be mapped.
      function: maps an array and the axis of its neurons to an array of any width there.
      sizes: current widths of groups that have been mapped before.

    Returns:
      The array with the group's neurons mapped in every place where they occur.
    """
    if name not in set(atoms(expression)):
        return x
    if isinstance(expression, Atom):
        return function(x, axis)
    x = mesh.whole(x, axis)
    match expression:
        case Product(factors):
            shape = x.shape
            split = [size(f, sizes) for f in factors]
            x = x.reshape(*shape[:axis], *split, *shape[axis + 1 :])
            for i, factor in enumerate(factors):
                x = transform(x, axis + i, factor, name, function, sizes)
            merged = math.prod(x.shape[axis : axis + len(factors)])
            return x.reshape(*shape[:axis], merged, *shape[axis + 1 :])
        case Sum(segments):
            bounds = np.cumsum([size(s, sizes) for s in segments])[:-1].tolist()
            parts = jnp.split(x, bounds, axis)
            return jnp.concatenate(
                [
                    transform(part, axis, segment, name, function, sizes)
                    for part, segment in zip(parts, segments, strict=True)
                ],
                axis,
            )
    raise AssertionError(expression)


def rows(
    x: Array, axis: int, expression: Expression, name: str, sizes: Sizes | None = None
) -> list[Array]:
    """Matrices ``[n, d]`` of the entries that belong to each neuron of a group, one per occurrence.

    >>> axis = Product((Pinned(2), Atom("a", 3)))
    >>> [r.shape for r in rows(jnp.zeros((6, 5)), 0, axis, "a")]
    [(3, 10)]
    """
    found = parts(x, axis, expression, name, sizes)
    return [jnp.moveaxis(mesh.spread(x, at), at, 0).reshape(x.shape[at], -1) for x, at in found]


def parts(
    x: Array, axis: int, expression: Expression, name: str, sizes: Sizes | None = None
) -> list[tuple[Array, int]]:
    """The parts of an array that hold the neurons of a group, and the axis that these lie along.

    >>> axis = Product((Pinned(2), Atom("a", 3)))
    >>> [(part.shape, at) for part, at in parts(jnp.zeros((6, 5)), 0, axis, "a")]
    [((2, 3, 5), 1)]
    """
    found: list[tuple[Array, int]] = []

    def collect(part: Array, at: int) -> Array:
        found.append((part, at))
        return part

    transform(x, axis, expression, name, collect, sizes)
    return found


def places(expression: Expression, name: str, offset: int = 0) -> Iterator[str]:
    """Where in the axis a group lies, one readable string per occurrence.

    >>> list(places(Sum((Pinned(8), Atom("a", 4))), "a"))
    ['8:12']
    """
    match expression:
        case Atom(found, n) if found == name:
            yield f"{offset}:{offset + n}"
        case Pinned(n, found) if found == name:
            yield f"{offset}:{offset + n}"
        case Product(factors):
            for i, factor in enumerate(factors):
                if name in set(atoms(factor)):
                    shape = "x".join(str(size(f)) for f in factors)
                    base = f"{offset}:{offset + size(expression)}={shape}"
                    inner = list(places(factor, name))
                    whole = isinstance(factor, Atom)
                    yield from ([f"{base}.{i}"] if whole else [f"{base}.{i}[{p}]" for p in inner])
        case Sum(segments):
            for segment in segments:
                yield from places(segment, name, offset)
                offset += size(segment)


def rename(expression: Expression, names: Mapping[str, str]) -> Expression:
    """The same expression with its groups renamed."""
    match expression:
        case Atom(name, n):
            return Atom(names.get(name, name), n)
        case Product(parts):
            return Product(tuple(rename(p, names) for p in parts))
        case Sum(parts):
            return Sum(tuple(rename(p, names) for p in parts))
        case _:
            return expression


def to_json(expression: Expression) -> list[Any]:
    """A nested list of strings and numbers; inverse of `from_json`."""
    match expression:
        case Pinned(n, None):
            return ["pinned", n]
        case Pinned(n, name):
            return ["pinned", n, name]
        case Atom(name, n):
            return ["atom", name, n]
        case Product(parts):
            return ["product", [to_json(p) for p in parts]]
        case Sum(parts):
            return ["sum", [to_json(p) for p in parts]]


def from_json(value: list[Any]) -> Expression:
    """Inverse of `to_json`."""
    match value:
        case ["pinned", int(n)]:
            return Pinned(n)
        case ["pinned", int(n), str(name)]:
            return Pinned(n, name)
        case ["atom", str(name), int(n)]:
            return Atom(name, n)
        case ["product", list(parts)]:
            return Product(tuple(from_json(p) for p in parts))
        case ["sum", list(parts)]:
            return Sum(tuple(from_json(p) for p in parts))
    raise ValueError(f"an axis expression is a list like ['atom', name, size]; got {value!r}")


for _cls in (Pinned, Atom, Product, Sum):
    jax.tree_util.register_static(_cls)
