"""The axis store against the equations it was given, position by position.

What a free class means: any permutation of its neurons, applied wherever the class lies, is a
symmetry of every equation. The oracle keeps the equations (this axis is the product of those two,
these two are one axis, this one was cut there) and checks them on the positions themselves, with
nothing of the store's own reasoning.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifjax.jaxprs import axis_store as axes
from ifjax.jaxprs.axis_store import AxisStore
from tests.jaxprs.ledger import Ledger

# the checks of argument types cost thirty times what the store itself does
pytestmark = pytest.mark.usefixtures("unchecked")

# On a busy machine drawing examples is slow, which says nothing of what is tested.
STEADY = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow],
}

Step = tuple[str, tuple[int, ...]]
SIZES = (0, 1, 2, 3, 4, 5, 6, 8, 12)
KINDS = ("fresh", "pinned", "product", "sum", "cut", "same", "same", "regroup", "twice", "permuted")


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
        elif kind == "permuted" and n > 1:
            orders = [np.arange(n)[::-1], np.roll(np.arange(n), 1 + j % (n - 1))]
            orders.append(np.random.default_rng(k).permutation(n))
            ledger.permuted(node, orders[m % 3].tolist())
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
        for made, node, order in ledger.orders:
            stated.unify(twin[made], stated.permuted(twin[node], order))
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
    stated += [("permuted", made, node, order) for made, node, order in ledger.orders]

    def state(equations) -> tuple[Ledger, dict[int, int]]:
        again = Ledger()
        twin = {n: again.fresh(ledger.store.size(n)) for n in dict.fromkeys(ledger.nodes)}
        for kind, node, *rest in equations:
            if kind == "pin":
                again.pin(twin[node])
            elif kind == "equal":
                again.unify(twin[node], twin[rest[0]])
            elif kind == "permuted":
                again.unify(twin[node], again.permuted(twin[rest[0]], rest[1]))
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


@settings(max_examples=40, **STEADY)
@given(steps(8))
def test_instantiating_a_resolved_axis_gives_the_same_axis(recipe):
    ledger = build(recipe)
    for node in ledger.nodes:
        frozen = ledger.store.resolve(node, str)
        other = AxisStore()
        atoms: dict[str, int] = {}
        again = other.instantiate(frozen, atoms)
        names = {str(n): name for name, n in atoms.items()}
        assert other.resolve(again, lambda root, names=names: names[str(root)]) == frozen
