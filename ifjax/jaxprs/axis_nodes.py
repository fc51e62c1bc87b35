"""Nodes of the axis store: what every axis of every array is bound to, made and read.

A node is free (a class of neurons), pinned, or bound: to a product or a sum of smaller nodes, or to
another node whose positions it holds in another order. `ifjax.jaxprs.axis_store` unifies them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ifjax.structure import axis as ex


@dataclasses.dataclass(frozen=True)
class Free:
    """A class of neurons that nothing has split or pinned yet."""


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Not prunable, and why: a string, or what makes one when it is read."""

    reason: object


@dataclasses.dataclass(frozen=True)
class Factors:
    """A product, outermost factor first."""

    nodes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Segments:
    """A sum: segments one after another."""

    nodes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Permuted:
    """Another axis in another order: position i holds what that one holds at ``order[i]``.

    The other one is not permuted itself, nor pinned as a whole, and the order moves something.
    """

    node: int
    order: tuple[int, ...]


Form = Free | Fixed | Factors | Segments | Permuted


class AxisNodes:
    """Axis nodes, by number, with union-find."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._form: list[Form] = []
        self.one = self._new(1, Fixed("axis of size 1"))

    # nodes

    def _new(self, size: int, form: Form) -> int:
        self._parent.append(len(self._parent))
        self._size.append(int(size))
        self._form.append(form)
        return len(self._parent) - 1

    def fresh(self, size: int) -> int:
        """A new class of neurons (size 0 and 1 cannot be cut and are pinned)."""
        if size == 1:
            return self.one
        return self._new(size, Free() if size else Fixed("axis of size 0"))

    def pinned(self, size: int, reason: object) -> int:
        """A new axis that cannot be cut."""
        return self.one if size == 1 else self._new(size, Fixed(reason))

    def product(self, nodes: Sequence[int]) -> int:
        """The axis that merges ``nodes``, outermost first."""
        nodes = [n for n in nodes if self.find(n) != self.one]
        if len(nodes) < 2:
            return nodes[0] if nodes else self.one
        size = math.prod(self.size(n) for n in nodes)
        if not size:  # it could be unified with its own factor
            return self.fresh(0)
        return self._new(size, Factors(tuple(nodes)))

    def sum(self, nodes: Sequence[int]) -> int:
        """The axis that concatenates ``nodes``."""
        nodes = [s for n in nodes if self.size(n) for s in self.segments(n)]
        if len(nodes) == 1:
            return nodes[0]
        return self._new(sum(self.size(n) for n in nodes), Segments(tuple(nodes)))

    def permuted(self, node: int, order: Sequence[int] | np.ndarray) -> int:
        """The axis that holds at position i what another one holds at ``order[i]``."""
        base = self.find(node)
        form = self._form[base]
        order = tuple(map(int, order))
        if self.size(base) < 2 or order == tuple(range(len(order))):
            return node
        if isinstance(form, Fixed):
            return self._new(len(order), form)
        return self.find(self._new(len(order), Permuted(base, order)))

    def find(self, node: int) -> int:
        """The representative of the node's class."""
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        form = self._form[node]
        return self._settled(node, form) if isinstance(form, Permuted) else node

    def _settled(self, root: int, form: Permuted) -> int:
        """The representative, after what the axis is an order of may have been bound or pinned."""
        base = self.find(form.node)
        inner = self._form[base]
        if isinstance(inner, Fixed):
            self._form[root] = inner
        elif isinstance(inner, Permuted):
            order = tuple(inner.order[i] for i in form.order)
            if order == tuple(range(len(order))):
                self._parent[root] = inner.node
                return inner.node
            self._form[root] = Permuted(inner.node, order)
        elif base != form.node:
            self._form[root] = Permuted(base, form.order)
        return root

    def size(self, node: int) -> int:
        """Number of positions along the axis."""
        return self._size[node]

    def form(self, node: int) -> Form:
        """What the axis is bound to."""
        return self._form[self.find(node)]

    def factors(self, node: int) -> list[int]:
        """The flattened factors of a product; another node is its own single factor."""
        form = self.form(node)
        if isinstance(form, Factors):
            flat = [f for n in form.nodes for f in self.factors(n)]
            return [f for f in flat if self.find(f) != self.one]
        return [node]

    def segments(self, node: int) -> list[int]:
        """The flattened segments of a sum; another node is its own single segment."""
        root = self.find(node)
        form = self._form[root]
        if isinstance(form, Segments):
            flat = [s for n in form.nodes for s in self.segments(n)]
            self._form[root] = Segments(tuple(flat))  # or a chain of cuts would nest ever deeper
            return flat
        return [node]

    def ends(self, node: int) -> list[int]:
        """Representatives of what the axis is made of, free or pinned, with repetitions."""
        found, stack = [], [node]
        while stack:
            root = self.find(stack.pop())
            form = self._form[root]
            if isinstance(form, Factors | Segments):
                stack += reversed(form.nodes)
            elif isinstance(form, Permuted):
                stack.append(form.node)
            else:
                found.append(root)
        return found

    def pin(self, node: int, reason: object) -> None:
        """Fixes every class along the axis; the first reason given is kept."""
        for root in self.classes(node):
            self._form[root] = Fixed(reason)

    def seal(self, node: int, reason: object) -> None:
        """Makes one pinned class of an axis without free ones, as of one cut into positions."""
        if not self.classes(node) and not isinstance(self.form(node), Fixed):
            self._form[self.find(node)] = Fixed(reason)

    def is_pinned(self, node: int) -> bool:
        """Whether nothing along the axis can be cut."""
        return not self.classes(node)

    # reading the result

    def classes(self, node: int) -> list[int]:
        """Representatives of the free classes along the axis, with repetitions."""
        return [root for root in self.ends(node) if isinstance(self._form[root], Free)]

    def classes_of(self, nodes: Iterable[int]) -> frozenset[int]:
        """The free classes along several axes, each once."""
        return frozenset(root for node in nodes for root in self.classes(node))

    def pinned_classes(self, node: int) -> list[int]:
        """Representatives of the pinned parts of the axis, with repetitions."""
        return [root for root in self.ends(node) if isinstance(self._form[root], Fixed)]

    def size_at(self, node: int, widths: Mapping[int, int]) -> int:
        """Number of positions along the axis where some classes have other widths."""
        root = self.find(node)
        form = self._form[root]
        if root in widths:
            return widths[root]
        if isinstance(form, Factors):
            return math.prod(self.size_at(n, widths) for n in form.nodes)
        if isinstance(form, Segments):
            return sum(self.size_at(n, widths) for n in form.nodes)
        return self.size_at(form.node, widths) if isinstance(form, Permuted) else self._size[root]

    def reasons(self, node: int) -> list[str]:
        """Why parts of the axis are pinned, without repetitions; axes of size 1 left out."""
        root = self.find(node)
        form = self._form[root]
        if isinstance(form, Factors | Segments):
            found = list(dict.fromkeys(r for n in form.nodes for r in self.reasons(n)))
            alone = not found and self.size(root) > 1 and self.is_pinned(root)
            return ["cut into single positions"] if alone else found
        if isinstance(form, Permuted):
            return self.reasons(form.node)
        return [str(form.reason)] if isinstance(form, Fixed) and root != self.one else []

    def resolve(
        self,
        node: int,
        name: Callable[[int], str],
        pinned: Mapping[int, str] = MappingProxyType({}),
    ) -> ex.Expression:
        """The axis as a frozen expression; ``name`` names free classes, ``pinned`` pinned ones."""
        root = self.find(node)
        form = self._form[root]
        if isinstance(form, Free):
            return ex.Atom(name(root), self._size[root])
        if isinstance(form, Fixed) or root in pinned:
            return ex.Pinned(self._size[root], pinned.get(root))
        if isinstance(form, Permuted):
            return ex.in_order(self.resolve(form.node, name, pinned), form.order)
        if isinstance(form, Factors):
            return ex.product(self.resolve(n, name, pinned) for n in self.factors(root))
        return ex.concatenation(self.resolve(n, name, pinned) for n in self.segments(root))

    def instantiate(
        self,
        expression: ex.Expression,
        atoms: dict[str, int],
        reason: object = "pinned in the spec",
        named: dict[str, int] | None = None,
    ) -> int:
        """A node for a frozen expression; ``atoms`` remembers the nodes of its classes.

        Pinned axes of one name are one node; ``named`` remembers them.
        """
        match expression:
            case ex.Pinned(n, name):
                if name is None or named is None or n == 1:
                    return self.pinned(n, reason)
                return named.setdefault(name, self.pinned(n, reason))
            case ex.Atom(name, n):
                if name not in atoms:
                    atoms[name] = self.fresh(n)
                return atoms[name]
            case ex.Product(parts):
                return self.product([self.instantiate(p, atoms, reason, named) for p in parts])
            case ex.Sum(parts):
                return self.sum([self.instantiate(p, atoms, reason, named) for p in parts])
            case ex.Ordered(inside, order):
                return self.permuted(self.instantiate(inside, atoms, reason, named), order)
