"""Static indices that rearrange a whole axis: blocks in another order, repeats, permutations.

An index array that the function computes from constants alone is a reshape, a repeat or a
concatenation in disguise: key heads shared by groups of queries, a channel shuffle, swapped halves.
Any other permutation gives the neurons another order (`ifjax.structure.axis.Ordered`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ifjax.jaxprs.rules.rule import Resize
from ifjax.jaxprs.walk import Context

MOST_BLOCKS = 64


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks ``[start, stop)`` of an axis, one after the other; one may come several times."""

    bounds: tuple[tuple[int, int], ...]

    def of(self, context: Context, node: int) -> tuple[int, tuple[int, ...]]:
        """The axis that is made of another one, and the axes that it was made with."""
        parts = []
        for start, stop in self.bounds:
            part = node
            if stop < context.store.size(node):
                part, _ = context.store.cut(part, stop)
            parts.append(context.store.cut(part, start)[1] if start else part)
        return context.store.sum(parts), ()

    def small(self, resize: Resize, node: int, made: tuple[int, ...]) -> np.ndarray:
        """The index at the small widths."""
        del made
        rows = []
        for bounds in self.bounds:
            before, inside, _ = resize.pieces(node, bounds)
            rows.append(np.arange(before, before + inside))
        return np.concatenate(rows)


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Every position ``times`` times, one after the other, or the whole axis so often."""

    times: int
    whole: bool

    def of(self, context: Context, node: int) -> tuple[int, tuple[int, ...]]:
        """The axis that is made of another one, and the axes that it was made with."""
        again = context.store.fresh(self.times)
        pair = (again, node) if self.whole else (node, again)
        return context.store.product(pair), (again,)

    def small(self, resize: Resize, node: int, made: tuple[int, ...]) -> np.ndarray:
        """The index at the small widths."""
        index, times = np.arange(resize.size(node)), resize.size(made[0])
        return np.tile(index, times) if self.whole else np.repeat(index, times)


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """The axis as ``outer`` rows, read by columns: a channel shuffle."""

    outer: int

    def of(self, context: Context, node: int) -> tuple[int, tuple[int, ...]]:
        """The axis that is made of another one, and the axes that it was made with."""
        store = context.store
        rows, columns = store.fresh(self.outer), store.fresh(store.size(node) // self.outer)
        context.unify(node, store.product((rows, columns)))
        return store.product((columns, rows)), (rows, columns)

    def small(self, resize: Resize, node: int, made: tuple[int, ...]) -> np.ndarray:
        """The index at the small widths."""
        shape = tuple(map(resize.size, made))
        return np.arange(resize.size(node)).reshape(shape).T.ravel()


@dataclasses.dataclass(frozen=True)
class Permutation:
    """All positions once, in another order."""

    order: tuple[int, ...]

    def of(self, context: Context, node: int) -> tuple[int, tuple[int, ...]]:
        """The axis that is made of another one, and the axes that it was made with."""
        if context.store.is_pinned(node):
            made = context.pinned([len(self.order)], "permuted")[0]
        else:
            made = context.store.permuted(node, self.order)
        return made, (made,)

    def small(self, resize: Resize, node: int, made: tuple[int, ...]) -> np.ndarray:
        """The index at the small widths, the same whichever neurons are kept.

        Those that are kept of one class stand in the same order on either side.
        """
        wanted = np.asarray(self.order)[resize.kept(made[0])]
        place = np.zeros(len(self.order), int)
        kept = resize.kept(node)
        place[kept] = np.arange(len(kept))
        return place[wanted]


Rearrangement = Blocks | Repeated | Shuffled | Permutation


def rearrangement(index: np.ndarray, n: int) -> Rearrangement | None:
    """How an index array rearranges an axis of ``n`` positions; None where it cannot be said.

    >>> rearrangement(np.array([0, 0, 1, 1]), 2), rearrangement(np.array([2, 3, 0, 1]), 4)
    (Repeated(times=2, whole=False), Blocks(bounds=((2, 4), (0, 2))))
    >>> rearrangement(np.array([2, 0, 1]), 3)
    Permutation(order=(2, 0, 1))
    """
    if n < 2 or len(index) < 2 or index.min() < 0 or index.max() >= n:
        return None
    times, rest = divmod(len(index), n)
    if times > 1 and not rest:
        for whole, wanted in ((False, np.repeat), (True, np.tile)):
            if np.array_equal(index, wanted(np.arange(n), times)):
                return Repeated(times, whole)
    if times == 1 and not rest:
        for outer in (d for d in range(2, n // 2 + 1) if n % d == 0):
            if np.array_equal(index, np.arange(n).reshape(outer, -1).T.ravel()):
                return Shuffled(outer)
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    starts = index[np.concatenate([[0], breaks])].tolist()
    sizes = np.diff(np.concatenate([[0], breaks, [len(index)]])).tolist()
    if len(starts) > MOST_BLOCKS or min(sizes) < 2:  # single positions cannot be cut
        is_whole = len(index) == n and np.array_equal(np.sort(index), np.arange(n))
        return Permutation(tuple(index.tolist())) if is_whole else None
    return Blocks(tuple((s, s + size) for s, size in zip(starts, sizes, strict=True)))
