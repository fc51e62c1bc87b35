"""The axis store: classes of axes that must be cut together, found by unification.

Every axis of every array is a node. A node is free (a class of neurons), pinned, or bound to a
product or a sum of smaller nodes, or to another node in another order. Rules only ever unify two
nodes of equal size, cut one at an offset, or permute one; so an equation holds in both directions,
and the order of the equations does not matter: what a later reshape splits is split everywhere at
once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np

from ifjax.jaxprs.axis_nodes import (
    AxisNodes,
    Factors,
    Fixed,
    Free,
    Permuted,
    Segments,
)

FUEL = 512  # steps per unification, and segments per axis; beyond it both sides are pinned
EXHAUSTED = "too many segments"
TIED = "the same neurons meet in two orders"
MIXED = "a part is taken of neurons that a permutation mixes"


class AxisStore(AxisNodes):
    """Axis nodes that are unified and cut. The only mutable object of the graph package."""

    def __init__(self) -> None:
        super().__init__()
        self._fuel = FUEL
        self._tied: Callable[[], object] = lambda: TIED

    def copy(self) -> AxisStore:
        """A store of its own with the same nodes."""
        other = AxisStore()
        other._parent = list(self._parent)
        other._size = list(self._size)
        other._form = list(self._form)
        return other

    def unify(
        self,
        a: int,
        b: int,
        reason: object = "regrouped by coprime factors",
        tied: Callable[[], object] = lambda: TIED,
    ) -> None:
        """States that two axes of equal size hold the same neurons in the same order.

        Args:
          a: one axis.
          b: the other.
          reason: why axes are pinned that no common refinement exists for.
          tied: gives the reason why axes are pinned whose neurons meet others of the same axis.

        Raises:
          ValueError: if the sizes differ.
        """
        if self.size(a) != self.size(b):
            raise ValueError(f"axes of sizes {self.size(a)} and {self.size(b)} cannot be one axis")
        self._fuel, self._tied = FUEL, tied
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
        if isinstance(form_a, Permuted):
            self._unify_permuted(b, a, form_a, reason)
        elif isinstance(form_b, Permuted):
            self._unify_permuted(a, b, form_b, reason)
        elif isinstance(form_a, Free | Fixed) or isinstance(form_b, Free | Fixed):
            if isinstance(form_a, Fixed):
                self.pin(b, form_a.reason)
            elif isinstance(form_b, Fixed):
                self.pin(a, form_b.reason)
            # the bound side represents the class
            keep, drop = (b, a) if isinstance(form_a, Free | Fixed) else (a, b)
            self._parent[drop] = keep
            return
        elif isinstance(form_a, Factors) and isinstance(form_b, Factors):
            self._unify_products(a, b, reason)
        else:
            self._unify_piecewise(a, b, reason)
        self._join(a, b)

    def _join(self, a: int, b: int) -> None:
        """Makes one class of two axes whose parts have been unified."""
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        form_a, form_b = self._form[a], self._form[b]
        if isinstance(form_a, Permuted):
            a, b, form_a, form_b = b, a, form_b, form_a
        if isinstance(form_b, Permuted):
            base = form_a.node if isinstance(form_a, Permuted) else a
            if form_b.node == base and (a == base or form_a != form_b):  # the parts said otherwise
                self.pin(base, self._tied())
            a, b = self.find(a), self.find(b)
        if a != b:
            self._parent[b] = a

    def _unify_permuted(self, a: int, b: int, form: Permuted, reason: object) -> None:
        """Unifies with ``b``, which is another axis in another order; ``a`` may be one too."""
        own, base = self._form[a], form.node
        if isinstance(own, Permuted) and own.node != base:
            back = np.argsort(own.order)
            self._unify(own.node, self.permuted(base, np.take(form.order, back)), reason)
        elif isinstance(own, Permuted) or a == base:
            if not isinstance(own, Permuted) or own.order != form.order:
                self.pin(base, self._tied())
        elif isinstance(own, Fixed):
            self.pin(base, own.reason)
        elif isinstance(own, Free):
            self._parent[a] = b
        else:
            if isinstance(own, Segments):
                bound = self._blocks(a, form)
            else:
                bound = self._grid(form, self.size(self.factors(a)[0]))
            if bound is not None:
                self._unify(a, bound, reason)
                return
            back = Permuted(a, tuple(np.argsort(form.order).tolist()))
            inner = self._form[base]
            bound = self._blocks(base, back) if isinstance(inner, Segments) else None
            if isinstance(inner, Free):
                self._form[base] = back
            elif bound is not None:
                self._unify(base, bound, reason)
            else:
                self.pin(a, MIXED)
                self.pin(base, MIXED)

    def _blocks(self, like: int, form: Permuted) -> int | None:
        """A permuted axis as the sum of parts as long as those of ``like``; None where these mix.

        Every part must hold a stretch of what the axis is an order of, in any order.
        """
        bounds = [0, *self._bounds(like), self.size(like)]
        parts = [np.asarray(form.order[a:b]) for a, b in itertools.pairwise(bounds)]
        if any(part.max() - part.min() >= len(part) for part in parts):
            return None
        return self.sum([self._stretch(form.node, part) for part in parts])

    def _stretch(self, node: int, part: np.ndarray) -> int:
        """The axis that holds the given neighbouring positions of another one."""
        start, stop = int(part.min()), int(part.max()) + 1
        if stop < self.size(node):
            node, _ = self.cut(node, stop)
        if start:
            _, node = self.cut(node, start)
        return self.permuted(node, part - start)

    def _grid(self, form: Permuted, rows: int) -> int | None:
        """A permuted axis as permuted rows, so many, times permuted columns; None if it is none."""
        order = np.asarray(form.order).reshape(rows, -1)
        outer, inner = order[:, 0] // order.shape[1], order[0] % order.shape[1]
        if not np.array_equal(order, outer[:, None] * order.shape[1] + inner):
            return None
        parts = self.fresh(order.shape[0]), self.fresh(order.shape[1])
        self._unify(form.node, self.product(parts), self._tied())
        return self.product([self.permuted(parts[0], outer), self.permuted(parts[1], inner)])

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
        if isinstance(form, Permuted):
            grid = self._grid(form, outer)
            if grid is not None:
                self._parent[root] = grid
                return
            form = self._reordered(root, form)
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

    def _reordered(self, root: int, form: Permuted) -> Free | Fixed:
        """A permuted axis that is to be taken apart: what it is an order of becomes one of it.

        Not so where that is bound, which pins both.
        """
        if isinstance(self._form[form.node], Free):
            self._form[form.node] = Permuted(root, tuple(np.argsort(form.order).tolist()))
            self._form[root] = Free()
            return Free()
        self.pin(form.node, MIXED)
        self._form[root] = Fixed(MIXED)
        return Fixed(MIXED)

    def number_by(self, nodes: Iterable[int]) -> None:
        """Makes free classes stand in the order of the given axes, where these are all of one."""
        for node in nodes:
            root = self.find(node)
            form = self._form[root]
            if isinstance(form, Permuted) and isinstance(self._form[form.node], Free):
                self._reordered(root, form)

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
        if isinstance(form, Permuted):
            parts = [np.asarray(form.order[:at]), np.asarray(form.order[at:])]
            if all(part.max() - part.min() < len(part) for part in parts):
                left, right = (self._stretch(form.node, part) for part in parts)
                self._form[root] = Segments((left, right))
                return left, right
            form = self._reordered(root, form)
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
