"""Structures through JSON, and specs that an older version wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ifjax
from ifjax.structure.serialise import from_dict, to_dict
from tests.structure.test_names import GRAPH

OLD = Path(__file__).parents[1] / "fixtures" / "spec_schema_2.json"


def test_a_structure_survives_json():
    assert from_dict(json.loads(json.dumps(to_dict(GRAPH.structure)))) == GRAPH.structure


def test_a_spec_of_schema_2_loads_with_the_names_of_today():
    """Written by version 0.1.0 of the network of test_names, with ``include="up@*"``."""
    text = OLD.read_text()
    assert json.loads(text)["version"] == 2
    assert "layers/attn_q@0:12=2x2x3.0" in text
    spec = ifjax.FusionSpec.from_json(text)
    assert spec == GRAPH.spec(0.5, include="up*")
    assert ifjax.FusionSpec.from_json(spec.to_json()) == spec


def test_what_is_missing_and_other_versions_are_named():
    value = to_dict(GRAPH.structure)
    with pytest.raises(KeyError, match="groups"):
        from_dict({k: v for k, v in value.items() if k != "groups"})
    with pytest.raises(ValueError, match="schema version 2 or 3, got 1"):
        from_dict({**value, "version": 1})
