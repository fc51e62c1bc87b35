"""The equations that an axis store was given, and the axes that they are about."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable

import numpy as np

from ifjax.jaxprs.axis_store import AxisStore
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays


def product_positions(parts: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Flat positions of a merged axis from those of its factors; the outermost comes first."""
    flat = [
        sum(i * math.prod(sizes[k + 1 :]) for k, i in enumerate(index))
        for index in itertools.product(*parts)
    ]
    return np.asarray(flat, int)


def sum_positions(parts: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    offsets = np.cumsum([0, *sizes[:-1]]) if sizes else []
    return np.concatenate(
        [np.zeros(0, int), *(np.asarray(p, int) + o for p, o in zip(parts, offsets, strict=True))]
    )


def permutation(made: np.ndarray, node: np.ndarray, order: list[int]) -> list[int]:
    """Where the positions that a permuted axis keeps stand among those of the axis itself."""
    assert len(made) == len(node)
    kept = node.tolist()
    return [kept.index(order[i]) for i in made]


@dataclasses.dataclass
class Ledger:
    """Axes and the equations stated about them."""

    store: AxisStore = dataclasses.field(default_factory=AxisStore)
    nodes: list[int] = dataclasses.field(default_factory=list)
    fixed: list[int] = dataclasses.field(default_factory=list)
    equal: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    products: list[tuple[int, list[int]]] = dataclasses.field(default_factory=list)
    sums: list[tuple[int, list[int]]] = dataclasses.field(default_factory=list)
    orders: list[tuple[int, int, list[int]]] = dataclasses.field(default_factory=list)

    def add(self, node: int) -> int:
        self.nodes.append(node)
        return node

    def fresh(self, n: int) -> int:
        return self.add(self.store.fresh(n))

    def pinned(self, n: int) -> int:
        node = self.add(self.store.pinned(n, "pinned by the test"))
        self.fixed.append(node)
        return node

    def product(self, parts: list[int]) -> int:
        node = self.add(self.store.product(parts))
        self.products.append((node, parts))
        return node

    def sum(self, parts: list[int]) -> int:
        node = self.add(self.store.sum(parts))
        self.sums.append((node, parts))
        return node

    def cut(self, node: int, at: int) -> None:
        parts = [self.add(p) for p in self.store.cut(node, at)]
        self.sums.append((node, parts))

    def permuted(self, node: int, order: list[int]) -> int:
        made = self.add(self.store.permuted(node, order))
        self.orders.append((made, node, order))
        return made

    def unify(self, a: int, b: int) -> None:
        self.store.unify(a, b)
        self.equal.append((a, b))

    def pin(self, node: int) -> None:
        self.store.pin(node, "pinned by the test")
        self.fixed.append(node)

    def classes(self, nodes: Iterable[int] | None = None) -> dict[int, int]:
        """Every free class, or those along some axes, and its size."""
        store = self.store
        return {c: store.size(c) for n in nodes or self.nodes for c in store.classes(n)}

    def positions(self, node: int, selections: dict[str, np.ndarray]) -> np.ndarray:
        expression = self.store.resolve(node, str)
        assert ex.size(expression) == self.store.size(node)
        return np.asarray(axis_arrays.indices(expression, selections), int)

    def check(self, selections: dict[str, np.ndarray]) -> None:
        """Every equation holds where the classes keep, in this order, the selected neurons."""
        kept = {n: self.positions(n, selections) for n in self.nodes}
        for node in self.fixed:
            np.testing.assert_array_equal(kept[node], np.arange(self.store.size(node)))
        for a, b in self.equal:
            np.testing.assert_array_equal(kept[a], kept[b])
        for stated, combine in (
            (self.products, product_positions),
            (self.sums, sum_positions),
        ):
            for node, parts in stated:
                sizes = [self.store.size(p) for p in parts]
                np.testing.assert_array_equal(kept[node], combine([kept[p] for p in parts], sizes))
        first = {name: np.arange(len(index)) for name, index in selections.items()}
        for made, node, order in self.orders:
            index = permutation(kept[made], kept[node], order)
            alike = (self.positions(n, first) for n in (made, node))
            np.testing.assert_array_equal(index, permutation(*alike, order))
            if len(index) == len(order):
                np.testing.assert_array_equal(index, order)

    def check_all(self, seed: int = 0) -> None:
        """Permutations and subsets of every class alone, and of all at once."""
        rng = np.random.default_rng(seed)
        together: dict[str, np.ndarray] = {}
        for root, n in self.classes().items():
            assert n > 1
            self.check({str(root): np.roll(np.arange(n), 1)})
            self.check({str(root): np.sort(rng.permutation(n)[: max(1, n // 2)])})
            together[str(root)] = rng.permutation(n)[: rng.integers(1, n + 1)]
        self.check(together)

    def free(self, node: int) -> int:
        """How many positions along an axis belong to a free class."""

        def count(e: ex.Expression) -> int:
            match e:
                case ex.Atom(_, n):
                    return n
                case ex.Sum(parts):
                    return sum(map(count, parts))
                case ex.Product(parts):
                    return ex.size(e) if any(map(count, parts)) else 0
                case ex.Ordered(inside, _):
                    return count(inside)
            return 0

        return count(self.store.resolve(node, str))
