"""Stacks that are read by static indices: which slices hold copies of a class of their own.

A stacked leaf that is read as ``w[0]``, ``w[1]``, ... in a Python loop has one width along each of
its other axes, but what lies along them in one slice need never meet what lies there in another.
Of queries, keys and values in one array, the first two meet, and the values meet neither.
Axes that number slices are told apart by their size: of stacks of as many stacks, the outer count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from jax.extend.core import JaxprEqn

from ifjax.jaxprs.axis_nodes import Factors, Segments
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.walk import Axes, Frame, frames_of

Key = tuple[int, int]  # a class, and the number of slices
Entries = tuple[int, ...]  # a copy of the class for every slice, or one
PADDING = 4  # of what holds a class, how much may be filled up to have the same of every copy
Value = Mapping[Key, Entries]


@dataclasses.dataclass(frozen=True)
class Slices:
    """Slices of stacks that hold copies of a class, not all of them the same one.

    Attributes:
      axes: that number the slices, together one batch axis.
      entries: where slices share copies, or a leaf holds one without an axis for it: by leaf, the
        number of the copy that each slice holds; empty where every slice has one of its own.
      batch: with ``entries``, how many copies there are.
    """

    axes: frozenset[int]
    entries: Mapping[int, Entries] = dataclasses.field(default_factory=dict)
    batch: int = 0

    def padded(self, sizes: Mapping[int, int]) -> int:
        """The size of all leaves where every copy has as many slices in each.

        Args:
          sizes: of the leaves.
        """
        return sum(
            sizes[i] // len(one) * max(map(one.count, one)) * self.batch
            for i, one in self.entries.items()
        )


def sliced(store: AxisStore, leaves: Sequence[Axes], frame: Frame) -> dict[int, list[Slices]]:
    """The classes that lie in stacks and never meet from one slice to another, or not in all.

    Every array that holds such a class is a stack or holds what one slice of it does, so that its
    neurons can be permuted and cut by themselves in slices that do not meet, the same number
    everywhere. Data that moves along the stacks' axes, where they are still whole, is not looked
    at.

    Args:
      store: the axis store.
      leaves: axes of the parameter leaves.
      frame: the frame of the function.

    Returns:
      By representative of the class, the slices.
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
    read = {id(v) for equation in frame.jaxpr.eqns for v in equation.invars}
    unread = {i for i, v in enumerate(frame.jaxpr.invars) if id(v) not in read}
    found: dict[int, list[Slices]] = {}
    for key in keys:
        numbers = {
            i: search.stack(x, key) for i, x in enumerate(leaves) if key[0] in search.held(x)
        }
        if key in search.dead:
            continue
        axes = frozenset(number for number in numbers.values() if number is not None)
        held = [x[key] for x in (*values, *outputs) if len(x.get(key, ())) > 1]
        vectors = {search.settled(entries) for entries in held}
        if None not in numbers.values() and len(vectors) == 1 and len({*vectors.pop()}) == key[1]:
            found.setdefault(key[0], []).append(Slices(axes))
            continue
        state = any(key in x for x in (*values[len(leaves) :], *outputs))
        if state or key in search.nested or not unread.isdisjoint(numbers):
            continue
        shared = _shared({i: search.settled(values[i][key]) for i in numbers}, axes)
        sizes = {i: math.prod(map(store.size, leaves[i])) for i in numbers}
        slices = [copy for one in shared.entries.values() for copy in one]
        if shared.batch == 1 or any(slices.count(copy) == 1 for copy in range(shared.batch)):
            continue  # what one slice alone holds meets nothing that it could be cut with
        if shared.padded(sizes) <= PADDING * sum(sizes.values()):
            found.setdefault(key[0], []).append(shared)
    return found


def _shared(copies: Mapping[int, Entries], axes: frozenset[int]) -> Slices:
    """Slices by the copies that leaves hold, those of stacks numbered first."""
    stacks_first = sorted(copies.values(), key=lambda one: len(one) == 1)
    order = [*dict.fromkeys(copy for one in stacks_first for copy in one)]
    entries = {i: tuple(map(order.index, one)) for i, one in copies.items()}
    return Slices(axes, entries, len(order))


class _Search:
    """Which copies of a class lie in every array; those that meet in one equation become one."""

    def __init__(self, store: AxisStore, read: Mapping[int, int]) -> None:
        self.store, self.read = store, read
        self.note: object = None
        self.dead: set[Key] = set()  # all copies of a stack are one
        self.nested: set[Key] = set()  # some array has two axes of the number of slices
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
        found = [m for node in axes for m in self._numbers(node) if self.read[m] == key[1]]
        if len(found) > 1:
            self.nested.add(key)
        return next(iter(found), None)

    def keys(self, leaves: Sequence[Axes], but: Collection[int]) -> list[Key]:
        """Classes that lie in stacks, with the numbers of slices of these."""
        found: dict[int, set[int]] = {}
        for axes in leaves:
            sizes = {self.read[m] for node in axes for m in self._numbers(node)}
            for root in self.held(axes) - {*but} if sizes else ():
                found.setdefault(root, set()).update(sizes)
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
            if key not in self.dead:
                found[key] = self.met((v[key] for v in values if key in v), whole=True)
                self._note(key, found[key])
        return found

    def _note(self, key: Key, entries: Entries) -> None:
        if len(entries) > 1 and len({*self.settled(entries)}) == 1:
            self.dead.add(key)

    # equations

    def visit(self, frame: Frame, number: int) -> None:
        """Keeps the note of the equation that comes next."""
        self.note = frame.notes.get(number)

    def transfer(
        self, equation: JaxprEqn, ins: list[Axes], outs: list[Axes], values: list[Value]
    ) -> list[Value]:
        """The copies that the results hold: those of the operands, or a slice of them."""
        results: list[Value] = [{} for _ in outs]
        for key in dict.fromkeys(key for value in values for key in value if key not in self.dead):
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
                for entries in (every, *given):
                    self._note(key, entries)
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


def _found_at(store: AxisStore, frame: Frame) -> frozenset[int]:
    """Classes whose positions are values: they meet where no axis shows it."""
    nodes = (p.node for inner in _frames(frame) for p in inner.positions.values())
    return store.classes_of(nodes)


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


def positions(equation: JaxprEqn, note: object) -> list[dict[int, int]]:
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
    if name == "dynamic_slice" and isinstance(note, list):
        ranges = dict(enumerate(note))
    elif name == "gather" and isinstance(note, dict):
        ranges = note
    else:
        ranges = {}
    return [{axis: r.start for axis, r in ranges.items() if r is not None and r.count == 1}]
