"""Axis expressions: what the neurons along one axis are, as a frozen, serialisable value.

An axis is an *atom* (a class of neurons that are cut together), *pinned* (of fixed size), a
*product* (merged axes, outermost factor first: heads x head_dim, H x W x C), a *sum* (concatenated
segments) or another axis *in another order*, nested freely. Everything that re-indexes, maps or
measures an axis is one recursion over its expression.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax

Sizes = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Pinned:
    """An axis, or a part of one, whose size is fixed; with a name where it batches a group.

    Attributes:
      size: number of positions.
      name: of the batch axis that the positions number, each entry by one position.
      entries: where positions share entries, the one that each holds: queries, keys and values
        along an axis of three are of the entries 0, 0 and 1. An array that holds one entry of a
        batch without an axis for it has a factor of size 1.
      batch: with ``entries``, how many entries there are.
    """

    size: int
    name: str | None = None
    entries: tuple[int, ...] = ()
    batch: int = 0


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


@dataclasses.dataclass(frozen=True)
class Ordered:
    """Another axis in another order, as behind a permutation that the function applies.

    Position i holds what stands at ``order[i]`` of the axis inside. The order is one of the full
    width: where some of the axis has been cut nothing is left of it, and the neurons stand as they
    do inside. So the function at a small width permutes nothing there, whichever neurons are kept.
    """

    inside: Expression
    order: tuple[int, ...]


Expression = Pinned | Atom | Product | Sum | Ordered


def in_order(inside: Expression, order: tuple[int, ...]) -> Expression:
    """An axis in another order, as `Ordered` where that says anything.

    An axis that is shorter than the order has been cut, and has none.

    >>> in_order(Ordered(Atom("a", 3), (1, 2, 0)), (2, 0, 1))
    Atom(name='a', size=3)
    """
    if size(inside) != len(order):
        return inside
    match inside:
        case Pinned(n):
            return Pinned(n)
        case Ordered(inner, first):
            return in_order(inner, tuple(first[i] for i in order))
    return inside if order == tuple(range(len(order))) else Ordered(inside, order)


def product(factors: Iterable[Expression]) -> Expression:
    """Merged axes, without products among the factors, pinned neighbours as one.

    >>> product((Pinned(2), Product((Pinned(3), Atom("a", 4))))).factors[0].size
    6
    """
    flat = (f for p in factors for f in (p.factors if isinstance(p, Product) else (p,)))
    found = _neighbours(flat, operator.mul)
    return found[0] if len(found) == 1 else Product(found)


def concatenation(segments: Iterable[Expression]) -> Expression:
    """Axes one after another, without sums among the segments, pinned neighbours as one.

    >>> concatenation((Pinned(2), Sum((Pinned(3), Atom("a", 4))))).segments[0].size
    5
    """
    flat = (s for p in segments for s in (p.segments if isinstance(p, Sum) else (p,)))
    found = _neighbours(flat, operator.add)
    return found[0] if len(found) == 1 else Sum(found)


def _neighbours(
    parts: Iterable[Expression], join: Callable[[int, int], int]
) -> tuple[Expression, ...]:
    """Parts of an axis, those next to each other joined that are pinned and have no name."""
    found: list[Expression] = []
    for part in parts:
        match found[-1:], part:
            case [Pinned(m, None)], Pinned(n, None):
                found[-1] = Pinned(join(m, n))
            case _:
                found.append(part)
    return tuple(found)


def unordered(expression: Expression) -> Expression:
    """The axis in the order that it has inside.

    >>> unordered(Ordered(Atom("a", 2), (1, 0)))
    Atom(name='a', size=2)
    """
    return expression.inside if isinstance(expression, Ordered) else expression


def order_at(expression: Ordered, sizes: Sizes | None = None) -> tuple[int, ...] | None:
    """The order of an axis at some widths; None where some of it has been cut.

    >>> order_at(Ordered(Atom("a", 2), (1, 0))), order_at(Ordered(Atom("a", 2), (1, 0)), {"a": 1})
    ((1, 0), None)
    """
    is_full = size(expression.inside, sizes) == len(expression.order)
    return expression.order if is_full else None


def whole(expression: Expression) -> Expression:
    """The axis without factors of one.

    >>> whole(Product((Pinned(1, "qkv[1]", (1,), 2), Atom("dims", 4))))
    Atom(name='dims', size=4)
    """
    if not isinstance(expression, Product):
        return expression
    factors = tuple(f for f in expression.factors if not (isinstance(f, Pinned) and f.size == 1))
    return factors[0] if len(factors) == 1 else Product(factors)


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
        case Ordered(inside, _):
            return size(inside, sizes)


def ends(expression: Expression) -> Iterator[Atom | Pinned]:
    """What the axis is made of in the end, outermost and first come first, with repetitions."""
    match expression:
        case Product(parts) | Sum(parts):
            for part in parts:
                yield from ends(part)
        case Ordered(inside, _):
            yield from ends(inside)
        case _:
            yield expression


def atoms(expression: Expression) -> Iterator[str]:
    """Names of the groups along the axis, as `ends` come."""
    return (e.name for e in ends(expression) if isinstance(e, Atom))


def places(expression: Expression, name: str, offset: int = 0) -> Iterator[str]:
    """Where in the axis a group lies, one readable string per occurrence.

    >>> list(places(Sum((Pinned(8), Atom("a", 4))), "a"))
    ['8:12']
    """
    expression = whole(expression)
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
                    alone = isinstance(factor, Atom)
                    yield from ([f"{base}.{i}"] if alone else [f"{base}.{i}[{p}]" for p in inner])
        case Sum(segments):
            for segment in segments:
                yield from places(segment, name, offset)
                offset += size(segment)
        case Ordered(inside, order):
            base = f"{offset}:{offset + len(order)}~"
            alone = isinstance(inside, Atom)
            yield from (base if alone else base + place for place in places(inside, name))


def mapped(
    expression: Expression,
    atom: Callable[[Atom], Expression],
    pinned: Callable[[Pinned], Expression] = lambda part: part,
) -> Expression:
    """The same expression with something else in the place of every atom, or pinned part.

    >>> mapped(Sum((Atom("a", 4), Pinned(2))), lambda a: Atom("b", a.size)).segments[0]
    Atom(name='b', size=4)
    """
    match expression:
        case Atom():
            return atom(expression)
        case Pinned():
            return pinned(expression)
        case Product(parts):
            return Product(tuple(mapped(p, atom, pinned) for p in parts))
        case Sum(parts):
            return Sum(tuple(mapped(p, atom, pinned) for p in parts))
        case Ordered(inside, order):
            return in_order(mapped(inside, atom, pinned), order)


def numbering(axes: Sequence[Expression], name: str) -> Iterator[Pinned]:
    """Where a pinned axis of a name lies along an array."""
    return (e for x in axes for e in ends(x) if isinstance(e, Pinned) and e.name == name)


def shared(expression: Expression, name: str, entries: tuple[int, ...], batch: int) -> Expression:
    """The same axis where the positions of a named one hold some entries of a batch.

    Args:
      expression: what lies along the axis.
      name: of a pinned axis.
      entries: that its positions hold; where there are none, each has one of its own.
      batch: how many there are.
    """
    held = lambda p: Pinned(p.size, name, entries, batch) if p.name == name else p  # noqa: E731
    return mapped(expression, lambda a: a, held)


def rename(expression: Expression, names: Mapping[str, str]) -> Expression:
    """The same expression with its groups renamed."""
    return mapped(expression, lambda a: Atom(names.get(a.name, a.name), a.size))


def to_json(expression: Expression) -> list[object]:
    """A nested list of strings and numbers; inverse of `from_json`."""
    match expression:
        case Pinned(n, None):
            return ["pinned", n]
        case Pinned(n, name, ()):
            return ["pinned", n, name]
        case Pinned(n, name, entries, batch):
            return ["pinned", n, name, list(entries), batch]
        case Atom(name, n):
            return ["atom", name, n]
        case Product(parts):
            return ["product", [to_json(p) for p in parts]]
        case Sum(parts):
            return ["sum", [to_json(p) for p in parts]]
        case Ordered(inside, order):
            return ["ordered", to_json(inside), list(order)]


def from_json(value: object) -> Expression:
    """Inverse of `to_json`."""
    match value:
        case ["pinned", int(n)]:
            return Pinned(n)
        case ["pinned", int(n), str(name)]:
            return Pinned(n, name)
        case ["pinned", int(n), str(name), list(entries), int(batch)]:
            return Pinned(n, name, tuple(entries), batch)
        case ["atom", str(name), int(n)]:
            return Atom(name, n)
        case ["product", list(parts)]:
            return Product(tuple(from_json(p) for p in parts))
        case ["sum", list(parts)]:
            return Sum(tuple(from_json(p) for p in parts))
        case ["ordered", inside, list(order)]:
            return Ordered(from_json(inside), tuple(map(int, order)))
    raise ValueError(f"an axis expression is a list like ['atom', name, size]; got {value!r}")


for _cls in (Pinned, Atom, Product, Sum, Ordered):
    jax.tree_util.register_static(_cls)
