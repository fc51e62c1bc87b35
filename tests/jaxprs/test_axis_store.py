"""The axis store against the equations it was given, position by position.

What a free class means: any permutation of its neurons, applied wherever the class lies, is a
symmetry of every equation. The oracle keeps the equations (this axis is the product of those two,
these two are one axis, this one was cut there) and checks them on the positions themselves, with
nothing of the store's own reasoning.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifjax.jaxprs import axis_store as axes
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays

# the checks of argument types cost thirty times what the store itself does
pytestmark = pytest.mark.usefixtures("unchecked")

# On a busy machine drawing examples is slow, which says nothing of what is tested.
STEADY = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow],
}


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


@dataclasses.dataclass
class Ledger:
    """Axes and the equations stated about them."""

    store: AxisStore = dataclasses.field(default_factory=AxisStore)
    nodes: list[int] = dataclasses.field(default_factory=list)
    fixed: list[int] = dataclasses.field(default_factory=list)
    equal: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    products: list[tuple[int, list[int]]] = dataclasses.field(default_factory=list)
    sums: list[tuple[int, list[int]]] = dataclasses.field(default_factory=list)

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
            return 0

        return count(self.store.resolve(node, str))


Step = tuple[str, tuple[int, ...]]
SIZES = (0, 1, 2, 3, 4, 5, 6, 8, 12)
KINDS = ("fresh", "pinned", "product", "sum", "cut", "same", "same", "regroup", "twice")


def steps(most: int) -> st.SearchStrategy[list[Step]]:
    """Random steps, as a kind and numbers that `build` reads choices from."""
    numbers = st.tuples(*[st.integers(0, 719)] * 4)
    return st.lists(st.tuples(st.sampled_from(KINDS), numbers), min_size=3, max_size=most)


def build(recipe: list[Step], limit: int = 72) -> Ledger:
    """States the equations of a recipe: half of the unifications are what a reshape does."""
    ledger = Ledger()
    for n in (4, 6, 12):
        ledger.fresh(n)
    for kind, (i, j, k, m) in recipe:
        nodes, size = ledger.nodes, ledger.store.size
        node = nodes[i % len(nodes)]
        n = size(node)
        if kind in ("fresh", "pinned"):
            getattr(ledger, kind)(SIZES[i % len(SIZES)])
        elif kind in ("product", "sum"):
            parts = [nodes[x % len(nodes)] for x in (i, j, k)][: 1 + m % 3]
            sizes = [size(p) for p in parts]
            if kind == "product" and math.prod(sizes) <= limit:
                ledger.product(parts)
            elif kind == "sum" and sum(sizes) <= limit:
                ledger.sum(parts)
        elif kind == "cut" and n > 1:
            ledger.cut(node, 1 + j % (n - 1))
        elif kind == "same":
            same = [other for other in nodes if size(other) == n]
            ledger.unify(node, same[j % len(same)])
        elif kind in ("regroup", "twice") and n > 1:
            if kind == "twice" and n * n <= limit:  # a class that is several factors of one axis
                node, n = ledger.product([node, node]), n * n
            outer = [d for d in range(1, n + 1) if n % d == 0]
            a = outer[j % len(outer)]
            rest = [d for d in range(1, n // a + 1) if n // a % d == 0]
            b = rest[k % len(rest)]
            ledger.unify(node, ledger.product([ledger.fresh(x) for x in (a, b, n // a // b)]))
    return ledger


@settings(max_examples=500, **STEADY)
@given(steps(20))
def test_a_class_of_neurons_is_a_symmetry_of_every_equation(recipe):
    build(recipe).check_all()


@settings(max_examples=60, **STEADY)
@given(steps(16), st.integers(0, 12))
def test_running_out_of_fuel_pins_and_never_couples_wrongly(recipe, fuel):
    ledger = build(recipe)
    stated = Ledger()
    axes_fuel = axes.FUEL
    axes.FUEL = fuel
    try:  # say it all again under a small limit
        twin = {n: stated.fresh(ledger.store.size(n)) for n in dict.fromkeys(ledger.nodes)}
        for node in ledger.fixed:
            stated.pin(twin[node])
        for node, parts in ledger.products:
            stated.unify(twin[node], stated.product([twin[p] for p in parts]))
        for node, parts in ledger.sums:
            stated.unify(twin[node], stated.sum([twin[p] for p in parts]))
        for a, b in ledger.equal:
            stated.unify(twin[a], twin[b])
    finally:
        axes.FUEL = axes_fuel
    stated.check_all()


@settings(max_examples=60, **STEADY)
@given(steps(8), st.randoms(use_true_random=False))
def test_the_order_of_the_equations_does_not_matter(recipe, random):
    """Free positions are the same in any order, unless coprime parts were pinned in between."""
    ledger = build(recipe)
    stated = [("product", *e) for e in ledger.products]
    stated += [("sum", *e) for e in ledger.sums] + [("equal", *e) for e in ledger.equal]
    stated += [("pin", n) for n in ledger.fixed]

    def state(equations) -> tuple[Ledger, dict[int, int]]:
        again = Ledger()
        twin = {n: again.fresh(ledger.store.size(n)) for n in dict.fromkeys(ledger.nodes)}
        for kind, node, *rest in equations:
            if kind == "pin":
                again.pin(twin[node])
            elif kind == "equal":
                again.unify(twin[node], twin[rest[0]])
            else:
                make = again.product if kind == "product" else again.sum
                again.unify(twin[node], make([twin[p] for p in rest[0]]))
        return again, twin

    one, twin = state(stated)
    shuffled = list(stated)
    random.shuffle(shuffled)
    two, other = state(shuffled)
    two.check_all()
    if "regrouped by coprime factors" in {r for n in one.nodes for r in one.store.reasons(n)} | {
        r for n in two.nodes for r in two.store.reasons(n)
    }:
        return
    assert sorted(one.classes(twin.values()).values()) == sorted(
        two.classes(other.values()).values()
    )


# The equations by hand


def expression(ledger: Ledger, node: int) -> ex.Expression:
    """The axis with its classes named a, b, c, ... in the order of appearance."""
    names: dict[str, str] = {}
    e = ledger.store.resolve(node, str)
    for found in ex.atoms(e):
        names.setdefault(found, "abcdefgh"[len(names)])
    return ex.rename(e, names)


def test_equal_factors_unify_and_unequal_ones_split_at_their_gcd():
    ledger = Ledger()
    left = ledger.product([ledger.fresh(12), ledger.fresh(2)])
    right = ledger.product([ledger.fresh(8), ledger.fresh(3)])
    ledger.unify(left, right)
    # 12 x 2 = 8 x 3: outer 4 in common, then 3 x 2 = 2 x 3, coprime from either end
    assert expression(ledger, left) == ex.Product((ex.Atom("a", 4), ex.Pinned(6)))
    assert expression(ledger, right) == ex.Product((ex.Atom("a", 4), ex.Pinned(6)))
    ledger.check_all()


def test_the_inner_end_is_used_where_the_outer_is_coprime():
    ledger = Ledger()
    left = ledger.product([ledger.fresh(3), ledger.fresh(10)])
    right = ledger.product([ledger.fresh(2), ledger.fresh(15)])
    ledger.unify(left, right)
    assert expression(ledger, left) == ex.Product((ex.Pinned(6), ex.Atom("a", 5)))
    ledger.check_all()


def test_a_shuffle_with_coprime_factors_is_pinned_with_the_reason():
    ledger = Ledger()
    a, b = ledger.fresh(4), ledger.fresh(9)
    ledger.store.unify(ledger.product([a, b]), ledger.product([b, a]), "shuffled")
    assert ledger.free(a) == ledger.free(b) == 0
    assert ledger.store.reasons(a) == ledger.store.reasons(b) == ["shuffled"]


def test_a_factor_that_occurs_twice_keeps_its_factorisation():
    """a x a = 2 x 4 x 2 splits a once, as 2 x 2, for both of its places."""
    ledger = Ledger()
    a = ledger.fresh(4)
    parts = [ledger.fresh(n) for n in (2, 4, 2)]
    ledger.unify(ledger.product([a, a]), ledger.product(parts))
    b, _, d = parts
    assert expression(ledger, a) == ex.Product((ex.Atom("a", 2), ex.Atom("b", 2)))
    outer, inner = ledger.store.classes(a)
    assert ledger.store.classes(b) == [outer]
    assert ledger.store.classes(d) == [inner]
    ledger.check_all()


@pytest.mark.parametrize("at", range(1, 12))
def test_a_product_is_cut_at_any_offset(at):
    ledger = Ledger()
    node = ledger.product([ledger.fresh(3), ledger.fresh(4)])
    ledger.cut(node, at)
    ledger.check_all()
    # what neither lies in the cut row nor is cut itself stays free
    assert ledger.free(node) == 12 if at % 4 == 0 or at % 4 in (2,) else ledger.free(node) >= 3
    if at % 4 == 0:
        inner = ex.Atom("z", 4)
        found = ledger.store.resolve(node, str)
        assert isinstance(found, ex.Product)
        assert found.factors[-1] == dataclasses.replace(inner, name=found.factors[-1].name)


def test_nested_sums_in_products_are_cut_where_they_meet():
    ledger = Ledger()
    a, b, c = ledger.fresh(2), ledger.fresh(3), ledger.fresh(2)
    left = ledger.product([ledger.sum([a, b]), c])
    right = ledger.sum([ledger.fresh(4), ledger.fresh(6)])
    ledger.unify(left, right)
    assert expression(ledger, right) == ex.Product(
        (ex.Sum((ex.Atom("a", 2), ex.Atom("b", 3))), ex.Atom("c", 2))
    )
    ledger.check_all()


def test_a_repeated_segment_is_one_class():
    ledger = Ledger()
    x = ledger.fresh(4)
    both = ledger.sum([x, x])
    y, z = ledger.fresh(4), ledger.fresh(4)
    ledger.unify(both, ledger.sum([y, z]))
    assert ledger.store.find(y) == ledger.store.find(z) == ledger.store.find(x)
    assert expression(ledger, both) == ex.Sum((ex.Atom("a", 4), ex.Atom("a", 4)))
    ledger.check_all()


def test_a_shift_by_one_pins_or_couples_everything():
    """x[1:] + x[:-1]: every neuron is its neighbour, so none can move."""
    ledger = Ledger()
    x = ledger.fresh(6)
    _, tail = ledger.store.cut(x, 1)
    head, _ = ledger.store.cut(x, 5)
    ledger.unify(head, tail)
    assert ledger.free(x) == 0
    assert ledger.store.reasons(x)


def test_a_shift_by_two_couples_even_and_odd():
    ledger = Ledger()
    x = ledger.fresh(6)
    _, tail = ledger.store.cut(x, 2)
    head, _ = ledger.store.cut(x, 4)
    ledger.unify(head, tail)
    assert expression(ledger, x) == ex.Sum((ex.Atom("a", 2),) * 3)


def test_axes_of_size_one_and_zero_are_pinned_and_vanish_from_products():
    store = AxisStore()
    assert store.fresh(1) == store.pinned(1, "any") == store.one
    assert store.is_pinned(store.fresh(0))
    a = store.fresh(3)
    assert store.product([store.one, a, store.one]) == a
    assert store.sum([store.fresh(0), a, store.fresh(0)]) == a
    assert store.product([]) == store.one
    with_one = store.sum([store.one, a])
    assert store.resolve(with_one, str) == ex.Sum((ex.Pinned(1), ex.Atom(str(a), 3)))
    assert store.reasons(with_one) == []


def test_an_axis_cut_into_single_positions_has_a_reason():
    store = AxisStore()
    a = store.fresh(3)
    store.cut(a, 1)
    store.cut(a, 2)
    assert store.is_pinned(a)
    assert store.reasons(a) == ["cut into single positions"]


def test_adjacent_pinned_segments_merge():
    store = AxisStore()
    a = store.fresh(4)
    node = store.sum([store.pinned(2, "r"), store.pinned(3, "s"), a, store.pinned(1, "t")])
    want = ex.Sum((ex.Pinned(5), ex.Atom(str(a), 4), ex.Pinned(1)))
    assert store.resolve(node, str) == want
    assert store.reasons(node) == ["r", "s"]


def test_pinning_spreads_through_equations_with_the_first_reason():
    store = AxisStore()
    a, b, c = store.fresh(4), store.fresh(3), store.fresh(7)
    store.unify(c, store.sum([a, b]))
    store.pin(a, "first")
    store.pin(c, "second")
    assert store.reasons(a) == ["first"]
    assert store.reasons(b) == ["second"]
    assert store.reasons(c) == ["first", "second"]


def test_sizes_that_differ_are_an_error():
    store = AxisStore()
    with pytest.raises(ValueError, match="sizes 3 and 4 cannot be one axis"):
        store.unify(store.fresh(3), store.fresh(4))


def test_too_many_segments_pin_both_sides(monkeypatch):
    monkeypatch.setattr(axes, "FUEL", 8)
    ledger = Ledger()
    left = ledger.sum([ledger.fresh(2) for _ in range(30)])
    right = ledger.sum([ledger.fresh(3) for _ in range(20)])
    ledger.unify(left, right)
    assert ledger.free(left) == ledger.free(right) == 0
    assert set(ledger.store.reasons(left)) == {"too many segments"}


def test_many_segments_need_no_deep_recursion(monkeypatch):
    monkeypatch.setattr(axes, "FUEL", 10_000)
    store = AxisStore()
    x = store.fresh(2400)
    for at in range(2, 2400, 2):  # ever further to the right: each cut binds the last segment
        store.cut(x, at)
    assert len(store.segments(x)) == len(store.classes(x)) == 1200
    assert ex.size(store.resolve(x, str)) == 2400
    grown = store.fresh(2)
    for _ in range(1100):  # a trunk that every layer appends to
        grown = store.sum([grown, store.fresh(2)])
    assert len(store.classes(grown)) == 1101


def test_a_product_without_positions_is_not_its_own_factor():
    store = AxisStore()
    x, none = store.fresh(4), store.fresh(0)
    product = store.product([x, none])
    store.unify(product, none)
    assert ex.size(store.resolve(product, str)) == 0
    assert store.classes(x) == [x]


def test_an_axis_cut_too_often_is_pinned(monkeypatch):
    monkeypatch.setattr(axes, "FUEL", 20)
    store = AxisStore()
    x = store.fresh(120)
    parts = [store.cut(x, at) for at in range(2, 120, 2)]
    assert store.is_pinned(x)
    assert store.reasons(x) == ["too many segments"]
    assert all(store.is_pinned(part) for pair in parts for part in pair)


@settings(max_examples=40, **STEADY)
@given(steps(8))
def test_instantiating_a_resolved_axis_gives_the_same_axis(recipe):
    ledger = build(recipe)
    for node in ledger.nodes:
        frozen = ledger.store.resolve(node, str)
        other = AxisStore()
        atoms: dict[str, int] = {}

        def atom(a: ex.Atom, atoms=atoms, other=other) -> int:
            return atoms.setdefault(a.name, other.fresh(a.size))

        again = other.instantiate(frozen, atom)
        names = {str(n): name for name, n in atoms.items()}
        assert other.resolve(again, lambda root, names=names: names[str(root)]) == frozen
