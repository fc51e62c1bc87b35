"""Results say what they were made with."""

import json

import jax

from ifjax import report


def test_provenance_names_versions_and_machine() -> None:
    found = report.provenance("python train.py --seed 1")
    assert found["command"] == "python train.py --seed 1"
    assert found["versions"]["jax"] == jax.__version__
    assert found["machine"]["devices"]
    assert (
        json.loads(report.to_json([report.Row(0.0, "dense", 1, 2, 0.5)], found))["machine"]
        == found["machine"]
    )
