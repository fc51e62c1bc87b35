"""Imported decoders compute the logits that transformers computes, before and after a cut."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from benchmarks import decoder_logits

pytest.importorskip("safetensors", reason="needs safetensors: pip install 'ifjax[llm]'")

TOLERANCE = 1e-4  # of the largest logit; 2.1e-5 is the most that was found


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("case", decoder_logits.CASES)
def test_logits_are_those_that_transformers_gave(case, scan, tmp_path):
    found = decoder_logits.difference(case, tmp_path, scan)
    assert found["dense"] <= TOLERANCE
    assert found["small"] <= TOLERANCE


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None,
    reason="needs torch and transformers: pip install 'ifjax[torch]'",
)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", decoder_logits.CASES)
def test_logits_are_those_that_transformers_gives(case, tmp_path):
    found, kept = decoder_logits.transformers_case(case, tmp_path), decoder_logits.fixture(case)
    for name in ("dense", "small"):
        np.testing.assert_allclose(found[name], kept[name], rtol=0, atol=1e-4)
