"""Derived options are the numbers and names that they are derived as."""

import json
import pickle

import pytest

from ifjax.spec.derived import DerivedName, DerivedNumber, given


@pytest.mark.parametrize(("derived", "plain"), [(DerivedNumber(0.1), 0.1), (DerivedName("a"), "a")])
def test_a_derived_option_is_its_value_and_was_not_given(derived, plain):
    assert (derived, hash(derived), repr(derived)) == (plain, hash(plain), repr(plain))
    assert json.dumps([derived]) == json.dumps([plain])
    assert (given(derived), given(plain), given(None)) == (None, plain, None)
    again = pickle.loads(pickle.dumps(derived))
    assert (again, given(again)) == (plain, None)
