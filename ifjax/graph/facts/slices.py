"""Stacks that are read by static indices: which slices hold copies of a class of their own.

A stacked leaf that is read as ``w[0]``, ``w[1]``, ... in a Python loop has one width along each of
its other axes, but what lies along them in one slice need never meet what lies there in another.
Axes that number slices are told apart by their size: of stacks of as many stacks, the outer count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from ifjax.jaxprs.axis_store import AxisStore, Factors, Segments
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.walk import Axes, Frame, frames_of

Key = tuple[int, int]  # a class, and the number of slices
Entries = tuple[int, ...]  # a copy of the class for every slice, or one
Value = Mapping[Key, Entries]


def sliced(
    store: AxisStore, leaves: Sequence[Axes], frame: Frame
) -> dict[int, list[frozenset[int]]]:
    """The classes that lie in stacks alone and never meet from one slice to another.

    Every array that holds such a class is a stack or one slice of it, so that its neurons can be
    permuted and cut in every slice by themselves, the same number everywhere. Data that moves along
    the stacks' axes, where they are still whole, is not looked at.

    Args:
      store: the axis store.
      leaves: axes of the parameter leaves.
      frame: the frame of the function.

    Returns:
      By representative of the class, the axes that number the slices, together one batch axis.
    """
    search = _Search(store, _read_axes(store, frame))
    keys = search.keys(leaves, but=_found_at(store, frame))
    if not keys:
        return {}
    values = [search.fresh(frame.axes[v], keys) for v in frame.jaxpr.invars]
    control = Control(lambda several, _: search.joined(several))
    outputs = interpret(
        frame, store, values, search.transfer, lambda _: {}, visit=search.visit, control=control
    )
    found: dict[int, list[frozenset[int]]] = {}
    for key in keys:
        held = [x[key] for x in (*values, *outputs) if len(x.get(key, ())) > 1]
        vectors = {search.settled(entries) for entries in held}
        if len(vectors) == 1 and len({*vectors.pop()}) == key[1]:
            numbers = (search.stack(x, key) for x in leaves if key[0] in search.held(x))
            axes = frozenset(number for number in numbers if number is not None)
            found.setdefault(key[0], []).append(axes)
    return found


class _Search:
    """Which copies of a class lie in every array; those that meet in one equation become one."""

    def __init__(self, store: AxisStore, read: Mapping[int, int]) -> None:
        self.store, self.read = store, read
        self.note: Any = None
        self._parent: list[int] = []
        self._held: dict[int, frozenset[int]] = {}
        self._mentioned: dict[int, tuple[int, ...]] = {}

    # what lies along arrays

    def held(self, axes: Axes) -> frozenset[int]:
        """Classes along an array."""
        return frozenset().union(*map(self._classes, axes))

    def _classes(self, node: int) -> frozenset[int]:
        root = self.store.find(node)
        if root not in self._held:
            self._held[root] = frozenset(self.store.classes(root))
        return self._held[root]

    def _numbers(self, node: int) -> tuple[int, ...]:
        """The axes along a node that slices are read from."""
        root = self.store.find(node)
        if root not in self._mentioned:
            form = self.store.form(root)
            if root in self.read:
                found: tuple[int, ...] = (root,)
            elif isinstance(form, Factors | Segments):
                found = tuple(m for n in form.nodes for m in self._numbers(n))
            else:
                found = ()
            self._mentioned[root] = found
        return self._mentioned[root]

    def stack(self, axes: Axes, key: Key) -> int | None:
        """The axis that numbers the slices of an array, the outermost of several."""
        found = (m for node in axes for m in self._numbers(node) if self.read[m] == key[1])
        return next(found, None)

    def keys(self, leaves: Sequence[Axes], but: Collection[int]) -> list[Key]:
        """Classes that lie in stacks alone, with the numbers of slices of these."""
        found: dict[int, set[int]] = {}
        for axes in leaves:
            sizes = {self.read[m] for node in axes for m in self._numbers(node)}
            for root in self.held(axes) - {*but}:
                found[root] = found.get(root, sizes) & sizes
        return [(root, size) for root, sizes in found.items() for size in sorted(sizes)]

    # copies of classes

    def find(self, copy: int) -> int:
        while self._parent[copy] != copy:
            self._parent[copy] = copy = self._parent[self._parent[copy]]
        return copy

    def settled(self, entries: Entries) -> Entries:
        """The representatives of copies."""
        return tuple(map(self.find, entries))

    def met(self, several: Iterable[Entries], whole: bool) -> Entries:
        """What copies become that meet, slice by slice; or all of them, where none is a stack."""
        several = list(several)
        n = max(map(len, several))
        rows = [entries * n if len(entries) == 1 else entries for entries in several]
        columns = [*zip(*rows, strict=True)] if whole else [tuple(c for row in rows for c in row)]
        for column in columns:
            for copy in column[1:]:
                self._parent[self.find(copy)] = self.find(column[0])
        return tuple(self.find(column[0]) for column in columns)

    def fresh(self, axes: Axes, keys: Sequence[Key]) -> Value:
        """Copies of their own for an array that nothing is known of yet."""
        held, found = self.held(axes), {}
        for key in keys:
            if key[0] in held:
                n = 1 if self.stack(axes, key) is None else key[1]
                found[key] = tuple(range(len(self._parent), len(self._parent) + n))
                self._parent += found[key]
        return found

    def joined(self, values: Sequence[Value]) -> Value:
        """One of several values of the same form."""
        found: dict[Key, Entries] = {}
        for key in dict.fromkeys(key for value in values for key in value):
            found[key] = self.met((v[key] for v in values if key in v), whole=True)
        return found

    # equations

    def visit(self, frame: Frame, number: int) -> None:
        """Keeps the note of the equation that comes next."""
        self.note = frame.notes.get(number)

    def transfer(
        self, equation: JaxprEqn, ins: list[Axes], outs: list[Axes], values: list[Value]
    ) -> list[Value]:
        """The copies that the results hold: those of the operands, or a slice of them."""
        results: list[Value] = [{} for _ in outs]
        for key in dict.fromkeys(key for value in values for key in value):
            has = [k for k, value in enumerate(values) if key in value]
            stacks = [self.stack(ins[k], key) is not None for k in has]
            given = [values[k][key] for k in has]  # of a stack that came apart otherwise, one
            given = [x if s else self.met([x], False) for x, s in zip(given, stacks, strict=True)]
            there = [key[0] in self.held(axes) for axes in outs]
            whole = [self.stack(axes, key) is not None for axes in outs]
            taken = self._taken(equation, ins[0], key) if has == [0] and stacks[0] else None
            if taken is not None and len(given[0]) == key[1]:
                found = [(given[0][i],) for i in taken]
            else:
                every = self.met(given, whole=any(stacks) or any(whole))
                if len(every) > 1 and not all(w for w, t in zip(whole, there, strict=True) if t):
                    every = self.met([every], whole=False)
                found = [every for _ in outs]
            for result, entries, is_there in zip(results, found, there, strict=True):
                if is_there:
                    result[key] = entries  # type: ignore[index]
        return results

    def _taken(self, equation: JaxprEqn, axes: Axes, key: Key) -> list[int] | None:
        """By result, which slice of a stack it is; None where not all of them are slices."""
        number = self.stack(axes, key)
        at = [i for i, node in enumerate(axes) if self.store.find(node) == number]
        found = positions(equation, self.note)
        if len(at) != 1 or len(found) != len(equation.outvars):
            return None
        return [p[at[0]] for p in found] if all(at[0] in p for p in found) else None


def _frames(frame: Frame) -> Iterator[Frame]:
    """A frame and those of its calls."""
    yield frame
    for note in frame.notes.values():
        for inner in frames_of(note):
            yield from _frames(inner)


def _found_at(store: AxisStore, frame: Frame) -> set[int]:
    """Classes whose positions are values: they meet where no axis shows it."""
    nodes = (p.node for inner in _frames(frame) for p in inner.positions.values())
    return {root for node in nodes for root in store.classes(node)}


def _read_axes(store: AxisStore, frame: Frame) -> dict[int, int]:
    """The axes that single positions are read from, none of whose parts can be cut, by size."""
    found: dict[int, int] = {}
    for inner in _frames(frame):
        for i, equation in enumerate(inner.jaxpr.eqns):
            if equation.primitive.name not in READS:
                continue
            axes = inner.read(equation.invars[0], store)
            for axis in {
                axis for taken in positions(equation, inner.notes.get(i)) for axis in taken
            }:
                if store.size(axes[axis]) > 1 and not store.classes(axes[axis]):
                    found[store.find(axes[axis])] = store.size(axes[axis])
    return found


READS = ("slice", "dynamic_slice", "gather", "unstack", "split")


def positions(equation: JaxprEqn, note: Any) -> list[dict[int, int]]:
    """By result, the axes of the first operand that single positions are taken of, and which.

    Args:
      equation: of any primitive.
      note: what its rule has noted.

    Returns:
      As many as there are results; empty where nothing is known beforehand.
    """
    p, name = equation.params, equation.primitive.name
    if name == "slice":
        bounds = [*enumerate(zip(p["start_indices"], p["limit_indices"], strict=True))]
        return [{axis: int(start) for axis, (start, limit) in bounds if limit - start == 1}]
    if name == "unstack":
        return [{p.get("axis", 0): i} for i, _ in enumerate(equation.outvars)]
    if name == "split":
        found, start = [], 0
        for size in p["sizes"]:
            found.append({p["axis"]: start} if size == 1 else {})
            start += int(size)
        return found
    if name == "dynamic_slice":
        ranges = dict(enumerate(note or ()))
    elif name == "gather" and isinstance(note, dict):
        ranges = note
    else:
        ranges = {}
    return [{axis: r.start for axis, r in ranges.items() if r is not None and r.count == 1}]
