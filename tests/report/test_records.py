from __future__ import annotations

import math

import pytest

from ifjax.report.records import check_records, short_names


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "at least one record"),
        ([{"layer": "a", "divergence": 1}, {"layer": 3, "divergence": 1}], "'layer' of record 1"),
        ([{"layer": "a"}], "finite number as 'divergence' of record 0, got None"),
        ([{"layer": "a", "divergence": math.nan}], "got nan"),
        ([{"layer": "a", "divergence": True}], "got True"),
    ],
)
def test_what_is_wrong_is_named(records, message):
    with pytest.raises(ValueError, match=message):
        check_records(records, {"layer": str, "divergence": float})


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["params/a/kernel"], ["params/a/kernel"]),
        (["p/a/k", "p/b/k", "p/a/k"], ["a", "b"]),
        (["p/a/x/k", "p/k"], ["a/x/k", "k"]),
        (["p/a/k", "p/a/b/k"], ["k", "b/k"]),
        ([], []),
    ],
)
def test_names_are_shortened_and_stay_apart(names, short):
    found = short_names(names)
    assert list(found) == list(dict.fromkeys(names))
    assert len(set(found.values())) == len(found)
    assert list(found.values()) == short
