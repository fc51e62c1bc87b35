"""Numbers that come from a width: read at one, they are right at any other."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifjax.jaxprs.width_number import FACTORS, HALF, SHAPES, Followed, Reading, is_common, readings

EPS = 1e-6


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(3, 4096), st.integers(3, 4096))
def test_what_was_made_of_a_width_is_among_its_readings(shape, n, other):
    power, less = map(Fraction, shape)
    made = lambda k: k ** float(power) * (k - 1.0) ** float(less)  # noqa: E731
    found = readings(made(n), n, EPS)
    assert Reading(1.0, power, less) in found
    assert Reading(1.0, power, less).at(other) == pytest.approx(made(other))
    for way in found:
        assert way.at(n) == pytest.approx(made(n), rel=EPS)


@pytest.mark.parametrize("factor", FACTORS)
def test_parts_of_a_width_are_read_where_they_are_asked_for(factor):
    number, part = 96 / factor, Reading(float(factor), Fraction(1))
    assert part in readings(number, 96, EPS, factors=True)
    assert part not in readings(number, 96, EPS)


@given(st.fractions(-2, 2, max_denominator=4), st.fractions(-1, 1, max_denominator=2))
def test_the_text_is_the_formula(power, less):
    way = Reading(2.0, power, less)
    text = way.text(12)
    value = eval(text, {"sqrt": math.sqrt, "log": math.log})
    assert value == pytest.approx(way.at(12))
    assert way.degree == power + less


def test_logarithms_common_numbers_and_what_is_none():
    assert readings(math.log(100), 100, EPS)[-1] == Reading(log=True)
    assert all(map(is_common, (1.0, 2.0, 0.5, 1e-5, 1000.0)))
    assert not any(map(is_common, (3.0, 12.0, 1 / 12)))
    for number, n in ((0.0, 8), (-3.0, 8), (math.inf, 8), (1.0, 1)):
        assert readings(number, n, EPS) == ()


def test_a_number_that_follows_is_what_it_is_at_the_small_width():
    sizes = {0: 5, 1: 3}
    one = Followed(1, (0, 1), Reading(1.0, Fraction(0), Fraction(1)))
    assert one.number(sizes.__getitem__) == 14
    assert Followed(1, (0,), Reading(1.0, HALF), negative=True).number(
        sizes.__getitem__
    ) == -math.sqrt(5)
    assert Followed(1, (0,), Reading(), known=7.0).number(sizes.__getitem__) == 7.0
    assert Followed(0, (0,), Reading(1.0, Fraction(-1))).is_count
    assert not one.is_count
