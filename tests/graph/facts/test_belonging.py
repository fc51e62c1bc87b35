"""Which numbers belong to which sums: the table of `belongs`."""

from fractions import Fraction

import pytest

from ifjax.graph.facts.belonging import belongs, is_plain
from ifjax.graph.facts.sums import Sum
from ifjax.jaxprs.width_number import HALF, QUARTER, Reading

ONE, N = Fraction(1), 8
COUNT, LESS = Reading(power=ONE), Reading(less=ONE)
ROOT, FOURTH, LOG = Reading(power=HALF), Reading(power=QUARTER), Reading(log=True)


def of(way, degree, sign, *, of="one value", log=False, changed=None, statistic=False):
    return belongs(way.at(N), way, Sum((0,), degree, of, log), sign, changed, statistic)


@pytest.mark.parametrize(
    ("rank", "case"),
    [
        (4, of(COUNT, ONE, -1)),  # the n of a mean
        (4, of(COUNT, -ONE, 1)),  # undoes one over a sum
        (3, of(LESS, ONE, -1)),  # the n - 1 of a deviation
        (3, of(ROOT, HALF, -1)),  # sqrt(n) under the root of a sum
        (0, of(COUNT, ONE, 1)),  # grows once more
        (0, of(COUNT, None, -1)),  # nobody knows how it grows
        (0, of(COUNT, ONE, 0)),  # is added
        (0, of(COUNT, ONE, -1, of="a contraction")),  # n of a fan-in: a layer
        (0, of(ROOT, HALF, -1, of="two values")),  # sqrt(n) of attention
        (2, of(LOG, ONE, 0, log=True)),  # log n beside a logarithm
        (0, of(LOG, ONE, 0, log=True, changed=False)),
        (2, of(COUNT, HALF, -1, changed=True, statistic=True)),
        (1, of(ROOT, ONE, -1, changed=True, statistic=True)),
        (0, of(ROOT, ONE, -1, statistic=True)),
    ],
)
def test_a_number_belongs_where_it_undoes_how_the_sum_grows(rank, case):
    assert case == rank


def test_four_is_a_root_of_sixteen_only_where_it_changes():
    four = Reading(power=HALF)
    place = Sum((0,), HALF)
    assert belongs(4.0, four, place, -1, True, False) == 3
    assert belongs(4.0, four, place, -1, False, False) == 0


def test_widths_their_roots_and_their_inverses_are_plain():
    assert all(map(is_plain, (COUNT, ROOT, FOURTH, Reading(power=-ONE))))
    assert not any(map(is_plain, (LESS, LOG, Reading(power=Fraction(2)))))
