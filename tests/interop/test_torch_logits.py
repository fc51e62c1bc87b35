"""Imported networks compute the logits that torch computes."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from benchmarks import torch_logits

TOLERANCE = 1e-5  # of the largest logit; 2.3e-6 is the most that was found

CASES = [
    pytest.param(case, marks=() if case in torch_logits.QUICK else pytest.mark.slow)
    for case in torch_logits.CASES
]


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_that_torch_gave(case):
    shapes, expected = torch_logits.fixture(case)
    assert torch_logits.difference(case, shapes, expected) <= TOLERANCE


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs torch: pip install 'ifjax[torch]'"
)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_that_torch_gives(case):
    shapes, found = torch_logits.torch_logits(case)
    kept, expected = torch_logits.fixture(case)
    assert json.loads(json.dumps(shapes)) == kept
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert torch_logits.difference(case, shapes, found) <= TOLERANCE


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs torch: pip install 'ifjax[torch]'"
)
@pytest.mark.parametrize("case", CASES[:5:4] + CASES[8:9])
def test_torch_loads_what_is_exported(case):
    import torch

    from ifjax import interop

    family, arguments, side = torch_logits.CASES[case]
    shapes, _ = torch_logits.fixture(case)
    state = {key: torch_logits.draw(key, tuple(shape)) for key, shape in shapes.items()}
    _, variables = torch_logits.imported(case, state)
    exported = getattr(interop, f"{family}_to_torch")(variables)
    network = torch_logits.torch_network(family, arguments, side)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()})
    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value.numpy(), state[key], err_msg=key)


def test_the_recipe_depends_on_the_name_alone():
    first = torch_logits.uniform("conv1.weight", (2, 3))
    np.testing.assert_array_equal(first, torch_logits.uniform("conv1.weight", (6,)).reshape(2, 3))
    assert np.abs(first - torch_logits.uniform("conv2.weight", (2, 3))).min() > 1e-6
    many = torch_logits.uniform("many", (100_000,))
    assert -1 <= many.min() < -0.999 < 0.999 < many.max() < 1
    # five standard errors
    assert abs(many.mean()) < 5 / np.sqrt(3 * many.size)
