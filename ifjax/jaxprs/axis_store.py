"""The axis store: classes of axes that must be cut together, found by unification.

Every axis of every array is a node. A node is free (a class of neurons), pinned, or bound to a
product or a sum of smaller nodes. Rules only ever unify two nodes of equal size, or cut one at an
offset; so an equation holds in both directions, and the order of the equations does not matter:
what a later reshape splits is split everywhere at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from ifjax.structure import axis as ex

FUEL = 512  # steps per unification, and segments per axis; beyond it both sides are pinned
EXHAUSTED = "too many segments"


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


class AxisStore:
    """Axis nodes, by number, with union-find. The only mutable object of the graph package."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._form: list[Free | Fixed | Factors | Segments] = []
        self._fuel = FUEL
        self.one = self._new(1, Fixed("axis of size 1"))

    def copy(self) -> AxisStore:
        """A store of its own with the same nodes."""
        other = AxisStore()
        other._parent = list(self._parent)
        other._size = list(self._size)
        other._form = list(self._form)
        return other

    # nodes

    def _new(self, size: int, form: Free | Fixed | Factors | Segments) -> int:
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

    def find(self, node: int) -> int:
        """The representative of the node's class."""
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def size(self, node: int) -> int:
        """Number of positions along the axis."""
        return self._size[node]

    def form(self, node: int) -> Free | Fixed | Factors | Segments:
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

    def pin(self, node: int, reason: object) -> None:
        """Fixes every class along the axis; the first reason given is kept."""
        stack = [node]
        while stack:
            root = self.find(stack.pop())
            form = self._form[root]
            if isinstance(form, Free):
                self._form[root] = Fixed(reason)
            elif isinstance(form, Factors | Segments):
                stack.extend(form.nodes)

    def seal(self, node: int, reason: object) -> None:
        """Makes one pinned class of an axis without free ones, as of one cut into positions."""
        if not self.classes(node) and not isinstance(self.form(node), Fixed):
            self._form[self.find(node)] = Fixed(reason)

    def is_pinned(self, node: int) -> bool:
        """Whether nothing along the axis can be cut."""
        form = self.form(node)
        if isinstance(form, Factors | Segments):
            return all(self.is_pinned(n) for n in form.nodes)
        return isinstance(form, Fixed)

    # unification

    def unify(self, a: int, b: int, reason: object = "regrouped by coprime factors") -> None:
        """States that two axes of equal size hold the same neurons in the same order.

        Args:
          a: one axis.
          b: the other.
          reason: why axes are pinned that no common refinement exists for.

        Raises:
          ValueError: if the sizes differ.
        """
        if self.size(a) != self.size(b):
            raise ValueError(f"axes of sizes {self.size(a)} and {self.size(b)} cannot be one axis")
        self._fuel = FUEL
        self._unify(a, b, reason)

    def _unify(self, a: int, b: int, reason: object) -> None:
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        self._fuel -= 1
        if self._fuel < 0:
            self.pin(a, EXHAUSTED)
            self.pin(b, EXHAUSTED)
            return
        form_a, form_b = self._form[a], self._form[b]
        if isinstance(form_a, Free | Fixed) or isinstance(form_b, Free | Fixed):
            if isinstance(form_a, Fixed):
                self.pin(b, form_a.reason)
            elif isinstance(form_b, Fixed):
                self.pin(a, form_b.reason)
            # the bound side represents the class
            keep, drop = (b, a) if isinstance(form_a, Free | Fixed) else (a, b)
            self._parent[drop] = keep
            return
        if isinstance(form_a, Factors) and isinstance(form_b, Factors):
            self._unify_products(a, b, reason)
        else:
            self._unify_piecewise(a, b, reason)
        a, b = self.find(a), self.find(b)
        if a != b:
            self._parent[b] = a

    def _unify_products(self, a: int, b: int, reason: object) -> None:
        """Walks the factors from the outer end, then from the inner end; pins the middle."""
        left, right = [a], [b]
        for end in (0, -1):
            while left and right and self._fuel >= 0:
                # a step may have split a factor that comes again further in
                left = [f for node in left for f in self.factors(node)]
                right = [f for node in right for f in self.factors(node)]
                m, n = self.size(left[end]), self.size(right[end])
                g = math.gcd(m, n)
                if m == n:
                    self._unify(left.pop(end), right.pop(end), reason)
                elif g == 1:
                    break
                else:
                    node = left[end] if m != g else right[end]
                    self._split(node, g if end == 0 else self.size(node) // g)
        for node in left + right:
            self.pin(node, reason if self._fuel >= 0 else EXHAUSTED)

    def _split(self, node: int, outer: int) -> None:
        """Binds a node that is no product to the product of (outer, inner)."""
        self._fuel -= 1
        root = self.find(node)
        form = self._form[root]
        inner = self.size(node) // outer
        if isinstance(form, Fixed):
            parts = (self.pinned(outer, form.reason), self.pinned(inner, form.reason))
        else:
            parts = (self.fresh(outer), self.fresh(inner))
        if isinstance(form, Segments):
            product = self._new(self.size(node), Factors(parts))
            self._unify_piecewise(product, root, "split across segments")
            self._parent[root] = product
        else:
            self._form[root] = Factors(parts)

    def _unify_piecewise(self, a: int, b: int, reason: object) -> None:
        """Cuts both at the union of their boundaries and unifies the pieces."""
        bounds = sorted(set(self._bounds(a)) | set(self._bounds(b)))
        if len(bounds) > FUEL:
            self.pin(a, EXHAUSTED)
            self.pin(b, EXHAUSTED)
            return
        done = 0
        for bound in bounds:
            piece_a, a = self.cut(a, bound - done)
            piece_b, b = self.cut(b, bound - done)
            done = bound
            self._unify(piece_a, piece_b, reason)
        self._unify(a, b, reason)

    def _bounds(self, node: int) -> list[int]:
        form = self.form(node)
        if not isinstance(form, Segments):
            return []
        bounds, at = [], 0
        for segment in self.segments(node):
            at += self.size(segment)
            bounds.append(at)
        return bounds[:-1]

    def cut(self, node: int, at: int) -> tuple[int, int]:
        """The axis before and from position ``at``, ``0 < at < size``."""
        root = self.find(node)
        form = self._form[root]
        n = self.size(node)
        if isinstance(form, Free | Fixed):
            if isinstance(form, Free):
                left, right = self.fresh(at), self.fresh(n - at)
            else:
                left, right = self.pinned(at, form.reason), self.pinned(n - at, form.reason)
            self._form[root] = Segments((left, right))
            return left, right
        if isinstance(form, Segments):
            before: list[int] = []
            after = self.segments(node)
            if len(after) > FUEL:
                self.pin(node, EXHAUSTED)
                self._form[root] = Fixed(EXHAUSTED)
                return self.cut(node, at)
            while at >= self.size(after[0]):
                at -= self.size(after[0])
                before.append(after.pop(0))
            if at:
                left, right = self.cut(after.pop(0), at)
                before.append(left)
                after.insert(0, right)
            return self.sum(before), self.sum(after)
        outer, *inner = self.factors(node)
        rest = self.product(inner)
        row, rem = divmod(at, self.size(rest))
        before, after = [], []
        if row:
            top, bottom = self.cut(outer, row)
            before += [self.product([s, rest]) for s in self.segments(top)]
        else:
            bottom = outer
        if rem:
            left, right = self.cut(rest, rem)
            before.append(left)
            after.append(right)
            if self.size(bottom) > 1:
                _, below = self.cut(bottom, 1)
                after += [self.product([s, rest]) for s in self.segments(below)]
        else:
            after += [self.product([s, rest]) for s in self.segments(bottom)]
        return self.sum(before), self.sum(after)

    # reading the result

    def classes(self, node: int) -> list[int]:
        """Representatives of the free classes along the axis, with repetitions."""
        root = self.find(node)
        form = self._form[root]
        if isinstance(form, Factors | Segments):
            return [c for n in form.nodes for c in self.classes(n)]
        return [root] if isinstance(form, Free) else []

    def pinned_classes(self, node: int) -> list[int]:
        """Representatives of the pinned parts of the axis, with repetitions."""
        root = self.find(node)
        form = self._form[root]
        if isinstance(form, Factors | Segments):
            return [c for n in form.nodes for c in self.pinned_classes(n)]
        return [root] if isinstance(form, Fixed) else []

    def reasons(self, node: int) -> list[str]:
        """Why parts of the axis are pinned, without repetitions; axes of size 1 left out."""
        root = self.find(node)
        form = self._form[root]
        if isinstance(form, Factors | Segments):
            found = list(dict.fromkeys(r for n in form.nodes for r in self.reasons(n)))
            alone = not found and self.size(root) > 1 and self.is_pinned(root)
            return ["cut into single positions"] if alone else found
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
        parts: list[ex.Expression] = []
        is_product = isinstance(form, Factors)
        nodes = self.factors(root) if is_product else self.segments(root)
        for part in (self.resolve(n, name, pinned) for n in nodes):
            inner: tuple[ex.Expression, ...] = (part,)
            if is_product and isinstance(part, ex.Product):
                inner = part.factors
            elif not is_product and isinstance(part, ex.Sum):
                inner = part.segments
            for p in inner:
                last = parts[-1] if parts else None
                if (
                    isinstance(p, ex.Pinned)
                    and isinstance(last, ex.Pinned)
                    and not (p.name or last.name)
                ):
                    n = last.size
                    parts[-1] = ex.Pinned(n * p.size if is_product else n + p.size)
                else:
                    parts.append(p)
        if len(parts) == 1:
            return parts[0]
        return ex.Product(tuple(parts)) if is_product else ex.Sum(tuple(parts))

    def instantiate(
        self,
        expression: ex.Expression,
        atom: Callable[[ex.Atom], int],
        reason: object = "pinned in the spec",
        named: dict[str, int] | None = None,
    ) -> int:
        """A node for a frozen expression; ``atom`` gives the node of a named class.

        Pinned axes of one name are one node; ``named`` remembers them.
        """
        match expression:
            case ex.Pinned(n, name):
                if name is None or named is None or n == 1:
                    return self.pinned(n, reason)
                return named.setdefault(name, self.pinned(n, reason))
            case ex.Atom():
                return atom(expression)
            case ex.Product(parts):
                return self.product([self.instantiate(p, atom, reason, named) for p in parts])
            case ex.Sum(parts):
                return self.sum([self.instantiate(p, atom, reason, named) for p in parts])
