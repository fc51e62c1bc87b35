from __future__ import annotations

import jax
import numpy as np
import pytest

from ifjax.interop import vgg_from_torch, vgg_to_torch
from ifjax.models import VGG
from tests.models.compression import drawn, struct

MODEL = VGG(((3, 5), (4,), (2, 6)), 3)


@pytest.fixture
def variables():
    return drawn(struct(MODEL, 8, 8, 2))


def test_round_trip_is_exact(variables):
    state = vgg_to_torch(variables)
    module, again = vgg_from_torch(
        {f"module.{name}": value for name, value in state.items()}
        | {"module.features.1.num_batches_tracked": np.array(3)}
    )
    assert module == MODEL
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))
    assert vgg_to_torch(again).keys() == state.keys()


def test_modules_are_numbered_through(variables):
    """Each convolution with its norm and ReLU takes three numbers, each max-pool one."""
    state = vgg_to_torch(variables)
    convolutions = {name for name, value in state.items() if value.ndim == 4}
    assert convolutions == {f"features.{n}.weight" for n in (0, 3, 7, 11, 14)}
    norms = {name for name in state if name.endswith("running_var")}
    assert norms == {f"features.{n}.running_var" for n in (1, 4, 8, 12, 15)}
    assert state["classifier.weight"].shape == (3, 6)
    kernel = np.asarray(variables["params"]["conv2_1"]["kernel"])
    np.testing.assert_array_equal(state["features.7.weight"][3, 1], kernel[:, :, 1, 3])


def test_every_wrong_entry_is_named(variables):
    state = vgg_to_torch(variables)
    del state["features.4.running_var"]
    state["features.2.weight"] = np.zeros(3, np.float32)
    state["features.7.bias"] = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match="not that of a VGG") as caught:
        vgg_from_torch(state)
    assert str(caught.value).split("\n  ")[1:] == [
        "features.2.weight: unexpected, shape (3,)",
        "features.4.running_var: missing, expected shape (5,)",
        "features.7.bias: expected shape (4,), got (5,)\n"
        "pass model.state_dict() of one, with all of its parameters and buffers",
    ]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("features.0.weight", "at features.0.weight, got it at features.3.weight"),
        ("features.7.weight", "at features.6.weight or features.7.weight, got it at features.11"),
        ("classifier.weight", "classifier.weight: missing, expected 2 axes"),
    ],
)
def test_what_cannot_be_inferred_is_named(variables, missing, message):
    state = vgg_to_torch(variables)
    del state[missing]
    with pytest.raises(ValueError, match=message):
        vgg_from_torch(state)


def test_empty_and_foreign_state_dicts():
    with pytest.raises(ValueError, match=r"features.0.weight: missing.*\(the dict has nothing\)"):
        vgg_from_torch({})
    with pytest.raises(ValueError, match=r"conv1.weight: unexpected, shape \(2, 3, 3, 3\)"):
        vgg_from_torch({"conv1.weight": np.zeros((2, 3, 3, 3), np.float32)})


def test_export_refuses_what_is_no_vgg():
    with pytest.raises(ValueError, match="leaves of a VGG, got 'params/fc1/kernel'"):
        vgg_to_torch({"params": {"fc1": {"kernel": np.zeros((2, 2))}}})
