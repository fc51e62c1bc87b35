"""Names that a user may have meant."""

import pytest

from ifjax.spec.nearest import nearest_first

KNOWN = ["epsilon", "merge", "solver", "scores_on"]


@pytest.mark.parametrize(
    ("name", "first"), [("soler", "solver"), ("SOLVER", "solver"), ("eps", "epsilon")]
)
def test_what_is_much_alike_comes_first(name, first):
    found = nearest_first(name, KNOWN)
    assert found[0] == first
    assert sorted(found) == sorted(KNOWN)


@pytest.mark.parametrize("name", ["zzz", 3, None])
def test_the_order_stays_where_nothing_is_alike(name):
    assert nearest_first(name, KNOWN) == KNOWN
    assert nearest_first(name, []) == []
