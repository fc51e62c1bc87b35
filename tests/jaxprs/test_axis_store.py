"""The axis store by hand: what is cut, coupled and pinned, with the reason."""

from __future__ import annotations

import dataclasses

import pytest

from ifjax.jaxprs import axis_store as axes
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.structure import axis as ex
from tests.jaxprs.ledger import Ledger

# the checks of argument types cost thirty times what the store itself does
pytestmark = pytest.mark.usefixtures("unchecked")


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
