"""Axis expressions: values that go through JSON and jit."""

from __future__ import annotations

import jax
import pytest
from hypothesis import given, settings

from ifjax.structure import axis as ex
from tests.structure.expressions import EXPRESSIONS

pytestmark = pytest.mark.usefixtures("unchecked")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(EXPRESSIONS)
def test_json_and_renaming_round_trip(e):
    assert ex.from_json(ex.to_json(e)) == e
    there = ex.rename(e, {"a": "x", "b": "a"})
    assert set(ex.atoms(there)) <= {"x", "a", "c"}
    assert ex.rename(there, {"x": "a", "a": "b"}) == e
    assert [*ex.atoms(e)] == [*ex.atoms(ex.from_json(ex.to_json(e)))]


@pytest.mark.parametrize("value", [[], ["atom", 3, 3], ["sum", 4], ["pinned", "4"], "pinned", None])
def test_other_json_is_an_error(value):
    with pytest.raises(ValueError, match="an axis expression is a list like"):
        ex.from_json(value)


def test_expressions_are_static_in_jitted_functions():
    e = ex.Product((ex.Atom("a", 3), ex.Pinned(2)))
    assert jax.tree.leaves({"e": e}) == []
    assert hash(e) == hash(ex.Product((ex.Atom("a", 3), ex.Pinned(2))))


def test_atoms_are_replaced_wherever_they_are():
    e = ex.Sum((ex.Atom("a", 3), ex.Product((ex.Pinned(2), ex.Atom("b", 4)))))
    found = ex.mapped(e, lambda a: ex.Pinned(a.size, a.name))
    assert found == ex.Sum((ex.Pinned(3, "a"), ex.Product((ex.Pinned(2), ex.Pinned(4, "b")))))
    assert ex.mapped(ex.Pinned(2), lambda a: ex.Pinned(0)) == ex.Pinned(2)
