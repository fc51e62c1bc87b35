"""Trainings that break off and go on, and epochs as steps."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from ifjax import data
from ifjax.training import TrainState, create_state
from ifjax.training.config import Config
from ifjax.training.curves import read
from ifjax.training.journal import Journal
from ifjax.training.network import create
from ifjax.training.runner import evaluator, optimization, train, train_step

CONFIG = Config(
    model="mlp",
    batch_size=32,
    train_images=128,
    checkpoint_every=3,
    log_every=2,
    eval_every=1,
    progress=False,
)


class Interruption(BaseException):
    """As if the user had pressed Control-C."""


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    whole = data.load("digits")
    images, labels = whole.train_images[:128], whole.train_labels[:128]
    return dataclasses.replace(whole, train_images=images, train_labels=labels)


def test_a_training_that_breaks_off_goes_on_bit_for_bit(
    digits: data.Dataset, tmp_path: Path
) -> None:
    network, by = create(CONFIG, digits), optimization(CONFIG, digits, 2.5, 0.1)
    assert (by.steps, by.steps_per_epoch) == (10, 4)
    step = train_step(CONFIG, digits, network, by)
    test = evaluator(CONFIG, digits, network)
    done = []

    def breaking(state: TrainState, images: object, labels: object):
        done.append(int(state.step))
        if len(done) == 8:
            raise Interruption
        return step(state, images, labels)

    def run(name: str, step: object) -> TrainState:
        state = create_state(network.variables, by.optimizer, 3)
        with Journal(tmp_path / name, {}, {}) as journal:
            return train(CONFIG, digits, journal, "dense", state, step, by, test=test)

    whole = run("whole", step)
    with pytest.raises(Interruption):
        run("broken", breaking)
    done.clear()
    broken = run("broken", breaking)
    assert done == [6, 7, 8, 9], "from the last checkpoint on"
    jax.tree.map(np.testing.assert_array_equal, broken.variables, whole.variables)
    jax.tree.map(np.testing.assert_array_equal, broken.opt_state, whole.opt_state)

    curves = [read(tmp_path / name / "tensorboard" / "dense") for name in ("whole", "broken")]
    assert curves[0] == curves[1]
    assert list(curves[0]["train/loss"]) == [2, 4, 6, 8, 10]
    assert list(curves[0]["test/accuracy"]) == [4, 8, 10]
    assert curves[0]["test/accuracy"][10] == np.float32(test(whole.variables).accuracy)
    done.clear()
    run("broken", breaking)
    assert done == [], "nothing is left to do"


def test_milestones_are_epochs(digits: data.Dataset) -> None:
    config = dataclasses.replace(CONFIG, schedule="step", gamma=0.5, warmup=0.0)
    by = optimization(config, digits, 4, 1.0, (1, 3))
    found = [float(by.schedule(step)) for step in (0, 3, 5, 11, 13)]
    np.testing.assert_allclose(found, [1.0, 1.0, 0.5, 0.5, 0.25], rtol=1e-6)
