"""Sums and their powers, against what the value grows like."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifjax.graph.facts.sums import Sum, Value, added, close, computed, constant, multiplied, powered

A, B = (0,), (1,)  # axes, n and m long
ONE = Fraction(1)
DEGREES = st.fractions(-2, 2, max_denominator=4)


def grown(sums, n=4.0, m=9.0):
    """What a product of such sums is where every term is one."""
    return math.prod({A: n, B: m}[s.over] ** float(s.degree) for s in sums)


@given(DEGREES, DEGREES, DEGREES, DEGREES)
def test_products_and_powers_grow_as_numbers_do(a, b, c, power):
    x, y = (Sum(A, a), Sum(B, b)), (Sum(A, c),)
    assert grown(multiplied(x, y)) == pytest.approx(grown(x) * grown(y))
    assert grown(powered(x, power)) == pytest.approx(grown(x) ** float(power))


def test_of_what_is_added_only_equal_degrees_are_known():
    one = Value(sums=(Sum(A, ONE),))
    assert added([one, one]).sums == one.sums
    (found,) = added([one, Value(sums=(Sum(A, 2 * ONE),))]).sums
    assert found.degree is None
    (found,) = added([one, Value()]).sums  # grows in one of the terms alone
    assert found.degree is None
    (shift,) = added([Value(sums=(Sum(A, ONE, log=True),)), Value()]).sums
    assert shift.degree == 1  # of a logarithm a factor


def test_a_sum_of_products_of_two_values_is_told():
    (found,) = Value(paired=True).summed(A).sums
    assert (found.of, found.degree) == ("two values", 1)
    again = Value(sums=(Sum(A, ONE),)).summed(A)
    assert grown(again.sums) == pytest.approx(4.0**2)
    assert powered((Sum(A, ONE, "a contraction"),), ONE) == ()


@pytest.mark.parametrize(("name", "function"), [("add", np.add), ("pow", np.power), ("max", max)])
def test_numbers_are_computed_at_both_widths(name, function):
    found = computed(name, [Value(2.0, 4.0), Value(3.0)])
    assert found.number == function(2.0, 3.0)
    assert found.other == function(4.0, 3.0)
    assert computed(name, [Value(2.0), Value(3.0)]).other is None


def test_constants_are_scalars_that_are_real():
    assert constant(np.float32(0.5)).number == 0.5
    assert constant(3).number == 3.0
    for value in (np.ones(2), 1j, True):
        assert constant(value) == Value()
    assert close(1.0, 1.0 + 1e-9, 1e-8)
    assert close(math.nan, math.nan, 0.0)
    assert not close(1.0, 1.1, 1e-8)
