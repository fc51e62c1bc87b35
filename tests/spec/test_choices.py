"""Values, names and JSON."""

import dataclasses

import pytest

from ifjax.importance import IMPORTANCES, L1, Metric, Random
from ifjax.spec import choices
from ifjax.transport import SOLVERS, Exact, Sinkhorn

WHERE = "ifjax.importance.IMPORTANCES"


@dataclasses.dataclass(frozen=True)
class Power(Metric):
    """A metric of somebody's own."""

    p: float = 3.0
    ranks: tuple[int, ...] = (1, 2)

    def member(self, x, axis):
        return x.sum(axis=tuple(i for i in range(x.ndim) if i != axis)) ** self.p


def test_a_value_has_a_plain_name_where_its_options_are_the_defaults():
    assert choices.plain_name(L1(), IMPORTANCES) == "l1"
    assert choices.plain_name(Random(seed=3), IMPORTANCES) is None
    assert choices.plain_name(Power(), IMPORTANCES) is None
    assert choices.plain_name(Sinkhorn(0.5), SOLVERS) is None
    assert choices.plain_name(Sinkhorn(0.5), SOLVERS, apart="epsilon") == "sinkhorn"
    assert choices.plain_name(Exact(), SOLVERS, apart="epsilon") == "exact"


def test_subclasses_have_no_name_of_their_parent():
    class Other(L1):
        pass

    assert choices.plain_name(Other(), IMPORTANCES) is None
    with pytest.raises(ValueError, match=r"IMPORTANCES\['other'\] = Other"):
        choices.to_json("importance", Other(), IMPORTANCES, WHERE)


def test_json_goes_there_and_back():
    registry = IMPORTANCES | {"power": Power}
    for value in ("l1", Random(seed=3), Power(p=2.0, ranks=(3, 4))):
        text = choices.to_json("importance", value, registry, WHERE)
        assert choices.from_json("importance", text, registry) == value


def test_classes_without_a_name_say_how_they_get_one():
    with pytest.raises(ValueError, match=r"Power has no name there.*IMPORTANCES\['power'\] ="):
        choices.to_json("importance", Power(), IMPORTANCES, WHERE)
    text = choices.to_json("importance", Power(), IMPORTANCES | {"power": Power}, WHERE)
    with pytest.raises(ValueError, match="no class is registered as 'power'; known: l1, "):
        choices.from_json("importance", text, IMPORTANCES)


def test_options_that_json_has_not_are_refused():
    registry = IMPORTANCES | {"power": Power}
    with pytest.raises(ValueError, match="its option p to be a number, a string"):
        choices.to_json("importance", Power(p=L1()), registry, WHERE)


def test_values_are_hashable():
    with pytest.raises(TypeError, match=r"importance: expected a hashable value.* frozen"):
        choices.check_hashable("importance", Power(ranks=[1]))
