"""What stages leave behind; the stages themselves run in tests/test_train.py."""

from pathlib import Path

import jax
import numpy as np
import pytest

import ifjax
from ifjax import data
from ifjax.experiment.config import Config
from ifjax.experiment.errors import UserError
from ifjax.experiment.network import create
from ifjax.experiment.stages import read, save


def test_a_network_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    network = create(Config(model="mlp"), data.load("digits"))
    images = np.zeros((1, 8, 8, 1), np.float32)
    spec = ifjax.trace(network.apply_eval, network.variables, images).spec(0.0)
    other = jax.tree.map(lambda x: x + 1, network.variables)
    for variables in (network.variables, other):
        save(tmp_path / "net", variables, spec)
        found = read(network, tmp_path / "net").variables
        jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(variables))
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_network_that_is_not_there_is_told(tmp_path: Path) -> None:
    network = create(Config(model="mlp"), data.load("digits"))
    with pytest.raises(UserError, match="--out: "):
        read(network, tmp_path / "missing")
