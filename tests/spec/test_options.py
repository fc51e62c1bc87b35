"""Names, values, numbers, and what follows from them; there and back through JSON."""

import dataclasses
import fractions
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.importance import IMPORTANCES, L1, Metric, Random
from ifjax.spec import options
from ifjax.spec.options import (
    DerivedName,
    DerivedNumber,
    given,
    is_real,
    nearest_first,
    plain_number,
)
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
    assert options.plain_name(L1(), IMPORTANCES) == "l1"
    assert options.plain_name(Random(seed=3), IMPORTANCES) is None
    assert options.plain_name(Power(), IMPORTANCES) is None
    assert options.plain_name(Sinkhorn(0.5), SOLVERS) is None
    assert options.plain_name(Sinkhorn(0.5), SOLVERS, apart="epsilon") == "sinkhorn"
    assert options.plain_name(Exact(), SOLVERS, apart="epsilon") == "exact"


def test_subclasses_have_no_name_of_their_parent():
    class Other(L1):
        pass

    assert options.plain_name(Other(), IMPORTANCES) is None
    with pytest.raises(ValueError, match=r"IMPORTANCES\['other'\] = Other"):
        options.to_json("importance", Other(), IMPORTANCES, WHERE)


def test_json_goes_there_and_back():
    registry = IMPORTANCES | {"power": Power}
    for value in ("l1", Random(seed=3), Power(p=2.0, ranks=(3, 4))):
        text = options.to_json("importance", value, registry, WHERE)
        assert options.from_json("importance", text, registry) == value


def test_classes_without_a_name_say_how_they_get_one():
    with pytest.raises(ValueError, match=r"Power has no name there.*IMPORTANCES\['power'\] ="):
        options.to_json("importance", Power(), IMPORTANCES, WHERE)
    text = options.to_json("importance", Power(), IMPORTANCES | {"power": Power}, WHERE)
    with pytest.raises(ValueError, match="no class is registered as 'power'; known: l1, "):
        options.from_json("importance", text, IMPORTANCES)


def test_options_that_json_has_not_are_refused():
    registry = IMPORTANCES | {"power": Power}
    with pytest.raises(ValueError, match="its option p to be a number, a string"):
        options.to_json("importance", Power(p=L1()), registry, WHERE)


def test_values_are_hashable():
    with pytest.raises(TypeError, match=r"importance: expected a hashable value.* frozen"):
        options.check_hashable("importance", Power(ranks=[1]))


@pytest.mark.parametrize(("derived", "plain"), [(DerivedNumber(0.1), 0.1), (DerivedName("a"), "a")])
def test_a_derived_option_is_its_value_and_was_not_given(derived, plain):
    assert (derived, hash(derived), repr(derived)) == (plain, hash(plain), repr(plain))
    assert json.dumps([derived]) == json.dumps([plain])
    assert (given(derived), given(plain), given(None)) == (None, plain, None)
    again = pickle.loads(pickle.dumps(derived))
    assert (again, given(again)) == (plain, None)


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


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.float32(0.1), 0.1),
        (np.float64(0.1), 0.1),
        (jnp.bfloat16(0.5), 0.5),
        (jnp.int32(3), 3),
        (np.bool_(True), True),
        (2, 2),
        ("a", "a"),
        (None, None),
    ],
)
def test_a_number_is_python_s(value, plain):
    found = plain_number(value)
    assert (found, type(found)) == (plain, type(plain))


def test_arrays_and_tracers_are_themselves():
    array = np.ones(1)
    assert plain_number(array) is array
    assert jax.eval_shape(lambda x: x if plain_number(x) is x else None, 1.0) is not None


def test_real_numbers():
    assert all(map(is_real, (1, 0.5, float("nan"), fractions.Fraction(1, 2))))
    assert not any(map(is_real, (True, "1", None, 1j, np.ones(1))))
