"""Arrays along an axis expression: re-indexed, mapped, taken apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ifjax.namespace import AnyArray, namespace, pick
from ifjax.parallel import placement
from ifjax.structure.axis import (
    Atom,
    Expression,
    Ordered,
    Pinned,
    Product,
    Sizes,
    Sum,
    atoms,
    order_at,
    size,
)


def indices(
    expression: Expression, selections: Mapping[str, AnyArray], sizes: Sizes | None = None
) -> Int[AnyArray, " k"]:
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
            index: AnyArray = np.zeros((1,), int)
            for factor in factors:
                inner = indices(factor, selections, sizes)
                index = (index[:, None] * size(factor, sizes) + inner[None, :]).reshape(-1)
            return index
        case Sum(segments):
            parts, offset = [], 0
            for segment in segments:
                parts.append(indices(segment, selections, sizes) + offset)
                offset += size(segment, sizes)
            if not parts:
                return np.arange(0)
            traced = any(isinstance(p, jax.Array) for p in parts)
            return jnp.concatenate(parts) if traced else np.concatenate(parts)
        case Ordered(inside, _):
            inner = indices(inside, selections, sizes)
            order = order_at(expression, sizes)
            if order is None:
                return inner
            index = pick(np.argsort(order), inner, 0)
            return pick(index, np.asarray(order), 0) if len(inner) == len(order) else index
    raise AssertionError(expression)


def transform(
    x: AnyArray,
    axis: int,
    expression: Expression,
    name: str,
    function: Callable[[AnyArray, int], AnyArray],
    sizes: Sizes | None = None,
) -> AnyArray:
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
    return transform_all(x, axis, expression, {name: function}, sizes)


def transform_all(
    x: AnyArray,
    axis: int,
    expression: Expression,
    functions: Mapping[str, Callable[[AnyArray, int], AnyArray]],
    sizes: Sizes | None = None,
) -> AnyArray:
    """`transform` by several groups at once, a function each.

    >>> axis = Sum((Atom("a", 2), Pinned(1), Atom("b", 2)))
    >>> double, drop = (lambda x, _: 2 * x), (lambda x, _: x[:1])
    >>> transform_all(np.arange(5), 0, axis, {"a": double, "b": drop}).tolist()
    [0, 2, 2, 3]
    """
    if functions.keys().isdisjoint(atoms(expression)):
        return x
    if isinstance(expression, Atom):
        return functions[expression.name](x, axis)
    x = placement.whole_along(x, axis)
    match expression:
        case Product(factors):
            shape = x.shape
            split = [size(f, sizes) for f in factors]
            x = x.reshape(*shape[:axis], *split, *shape[axis + 1 :])
            for i, factor in enumerate(factors):
                x = transform_all(x, axis + i, factor, functions, sizes)
            merged = math.prod(x.shape[axis : axis + len(factors)])
            return x.reshape(*shape[:axis], merged, *shape[axis + 1 :])
        case Sum(segments):
            pairs = _segments(x, axis, segments, sizes)
            mapped = [transform_all(part, axis, s, functions, sizes) for part, s in pairs]
            return namespace(*mapped).concatenate(mapped, axis)
        case Ordered(inside, _):
            order = order_at(expression, sizes)
            x = _in_place(x, axis, order)
            found = transform_all(x, axis, inside, functions, sizes)
            whole = order is not None and found.shape[axis] == len(order)
            return placement.take(found, np.asarray(order), axis) if whole else found
    raise AssertionError(expression)


def rows(
    x: AnyArray, axis: int, expression: Expression, name: str, sizes: Sizes | None = None
) -> list[AnyArray]:
    """Matrices ``[n, d]`` of the entries that belong to each neuron of a group, one per occurrence.

    >>> axis = Product((Pinned(2), Atom("a", 3)))
    >>> [r.shape for r in rows(jnp.zeros((6, 5)), 0, axis, "a")]
    [(3, 10)]
    """
    found = parts(x, axis, expression, name, sizes)
    return [
        namespace(x).moveaxis(placement.split_along(x, at), at, 0).reshape(x.shape[at], -1)
        for x, at in found
    ]


def parts(
    x: AnyArray, axis: int, expression: Expression, name: str, sizes: Sizes | None = None
) -> list[tuple[AnyArray, int]]:
    """The parts of an array that hold the neurons of a group, and the axis that these lie along.

    >>> axis = Product((Pinned(2), Atom("a", 3)))
    >>> [(part.shape, at) for part, at in parts(jnp.zeros((6, 5)), 0, axis, "a")]
    [((2, 3, 5), 1)]
    """
    if isinstance(expression, Atom):
        return [(x, axis)] if expression.name == name else []
    if name not in atoms(expression):
        return []
    x = placement.whole_along(x, axis)
    match expression:
        case Product(factors):
            split = [size(f, sizes) for f in factors]
            x = x.reshape(*x.shape[:axis], *split, *x.shape[axis + 1 :])
            inner = ((x, axis + i, factor) for i, factor in enumerate(factors))
        case Sum(segments):
            inner = ((y, axis, segment) for y, segment in _segments(x, axis, segments, sizes))
        case Ordered(inside, _):
            inner = iter([(_in_place(x, axis, order_at(expression, sizes)), axis, inside)])
        case _:
            return []
    return [
        part
        for y, at, e in inner
        if not isinstance(e, Pinned)
        for part in parts(y, at, e, name, sizes)
    ]


def _in_place(x: AnyArray, axis: int, order: Sequence[int] | None) -> AnyArray:
    """What lies along an axis in the order that it has inside of an `Ordered` one."""
    return x if order is None else placement.take(x, np.argsort(order), axis)


def _segments(
    x: AnyArray, axis: int, segments: Sequence[Expression], sizes: Sizes | None
) -> Iterator[tuple[AnyArray, Expression]]:
    """The segments of an axis, one after another, and what lies along each."""
    start = 0
    for segment in segments:
        stop = start + size(segment, sizes)
        if isinstance(x, jax.Array):
            yield jax.lax.slice_in_dim(x, start, stop, axis=axis), segment
        else:
            yield x[(slice(None),) * axis + (slice(start, stop),)], segment
        start = stop


def positions(expression: Expression, name: str, sizes: Sizes | None = None) -> np.ndarray:
    """Which neuron of a group stands at each position of an axis, -1 where there is none.

    Args:
      expression: what lies along the axis.
      name: the group, or the name of a pinned axis; its entries where positions share these.
      sizes: present widths of groups.

    Returns:
      Integers, as many as the axis is long.

    Example:
      >>> positions(Sum((Pinned(1), Product((Pinned(2), Atom("a", 2))))), "a").tolist()
      [-1, 0, 1, 0, 1]
    """
    n = size(expression, sizes)
    match expression:
        case Pinned(_, found, entries) if entries and found == name:
            return np.array(entries)
        case Atom(found, _) | Pinned(_, found) if found == name:
            return np.arange(n)
        case Product(factors):
            index = np.full((1,), -1)
            for factor in factors:
                inner = positions(factor, name, sizes)
                index = np.maximum(index[:, None], inner[None, :]).reshape(-1)
            return index
        case Sum(segments):
            parts = [positions(s, name, sizes) for s in segments]
            return np.concatenate([np.arange(0), *parts])
        case Ordered(inside, _):
            inner, order = positions(inside, name, sizes), order_at(expression, sizes)
            return inner if order is None else inner[np.asarray(order)]
    return np.full(n, -1)
