"""Trainings that break off and go on, and epochs as steps."""

import dataclasses
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from ifjax import data
from ifjax.experiment.config import Config
from ifjax.experiment.curves import read
from ifjax.experiment.journal import Journal
from ifjax.experiment.network import create
from ifjax.experiment.runner import Split, evaluator, optimization, train, train_step
from ifjax.training import TrainState, create_state
from ifjax.training.feeding import fold_steps, make_feed
from ifjax.training.layout import make_layout
from ifjax.training.signals import Interrupted
from ifjax.training.split import (
    create_split_state,
    evaluate_folds,
    make_split_eval_step,
    make_split_step,
)

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


def test_a_signal_saves_what_was_done_and_the_training_goes_on_bit_for_bit(
    digits: data.Dataset, tmp_path: Path
) -> None:
    network, by = create(CONFIG, digits), optimization(CONFIG, digits, 2.5, 0.1)
    step = train_step(CONFIG, digits, network, by)
    done = []

    def asked(state: TrainState, images: object, labels: object):
        done.append(int(state.step))
        if len(done) == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(state, images, labels)

    def run(name: str, step: object) -> TrainState:
        state = create_state(network.variables, by.optimizer, 3)
        with Journal(tmp_path / name, {}, {}) as journal:
            return train(CONFIG, digits, journal, "dense", state, step, by)

    with pytest.raises(Interrupted) as stop:
        run("asked", asked)
    assert stop.value.code == 143
    broken, whole = run("asked", asked), run("whole", step)
    assert done == list(range(10)), "no step is done twice"
    jax.tree.map(np.testing.assert_array_equal, broken.variables, whole.variables)


def test_folds_are_trained_checkpointed_and_have_curves_of_their_own(
    digits: data.Dataset, tmp_path: Path
) -> None:
    folds = data.make_folds(digits, 2)
    layout = make_layout(2, 32, jax.devices()[:1])
    network = create(CONFIG, digits)
    by = optimization(CONFIG, digits, 3, 0.1, (), fold_steps(folds, 32))
    assert (by.steps, by.steps_per_epoch) == (6, 2)
    step = make_split_step(
        network.apply_train, by.optimizer, layout, prepare=lambda key, x: digits.normalize(x)
    )
    batch = data.Batch(digits.test_images[:64], digits.test_labels[:64], np.ones(64, bool))
    evaluate = make_split_eval_step(network.apply_eval, layout)
    done = []

    def breaking(state: TrainState, images: object, labels: object):
        done.append(int(np.asarray(state.step)[0, 0]))
        if len(done) == 5:
            raise Interruption
        return step(state, images, labels)

    def run(name: str, step: object, folds: list) -> TrainState:
        with Journal(tmp_path / name, {}, {}) as journal:
            return train(
                CONFIG,
                digits,
                journal,
                "folds",
                create_split_state([network.variables] * 2, by.optimizer, layout),
                step,
                by,
                test=lambda variables: evaluate_folds(evaluate, variables, [batch], layout),
                split=Split(layout, folds, make_feed(digits, folds, layout, 32)),
            )

    whole = run("whole", step, folds)
    with pytest.raises(Interruption):
        run("broken", breaking, folds)
    with pytest.raises(ValueError, match="of another run at step 3: folds is"):
        run("broken", breaking, data.make_folds(digits, 2, seed=1))
    broken = run("broken", breaking, folds)
    assert done == [0, 1, 2, 3, 4, 3, 4, 5]
    jax.tree.map(np.testing.assert_array_equal, broken.variables, whole.variables)
    curves = read(tmp_path / "whole" / "tensorboard" / "folds")
    assert list(curves["train/loss/fold-1"]) == [2, 4, 6]
    assert list(curves["test/accuracy/fold-0"]) == [2, 4, 6]
    found = evaluate_folds(evaluate, whole.variables, [batch], layout)
    for fold, one in enumerate(found):
        assert curves[f"test/loss/fold-{fold}"][6] == np.float32(one.loss)
