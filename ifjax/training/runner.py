"""Training and evaluation as a configuration wants them: resumable, with curves."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from ifjax import data
from ifjax.training.checkpoints import open_checkpoints, restore_state, save_state
from ifjax.training.config import Config, optimizer_config
from ifjax.training.curves import add, open_curves
from ifjax.training.evaluate import Evaluation, evaluate, make_eval_step
from ifjax.training.journal import Journal
from ifjax.training.loop import Every, Means, fit
from ifjax.training.network import Network
from ifjax.training.optimizer import make_optimizer, make_schedule
from ifjax.training.state import TrainState
from ifjax.training.step import TrainStep, make_train_step


class Optimization(NamedTuple):
    """What is the same for all networks of one training schedule.

    Attributes:
        steps: how many in all.
        steps_per_epoch: batches in a pass over the training images.
        schedule: learning rate by step.
        optimizer: the transformation.
    """

    steps: int
    steps_per_epoch: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation


def optimization(
    config: Config,
    dataset: data.ImageDataset,
    epochs: int | float,
    learning_rate: float,
    milestones: tuple[int, ...] = (),
) -> Optimization:
    """Build optimizer and schedule of a training of so many epochs.

    Args:
        config: the optimizer and its settings.
        dataset: gives the number of images.
        epochs: passes over them, whole or not.
        learning_rate: the peak.
        milestones: epochs after which the schedule ``step`` falls.

    Returns:
        All that :func:`train` needs.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> optimization(Config(), data.load("digits"), 2.5, 0.1).steps
        55
    """
    per_epoch = dataset.num_train // config.batch_size
    steps = round(epochs * per_epoch)
    falls = tuple(epoch * per_epoch for epoch in milestones)
    chosen = optimizer_config(config, learning_rate, falls)
    schedule = make_schedule(chosen, max(1, steps))
    return Optimization(steps, per_epoch, schedule, make_optimizer(chosen, schedule))


def train_step(
    config: Config, dataset: data.ImageDataset, network: Network, by: Optimization
) -> TrainStep:
    """Build the step of a network; it compiles on its first call.

    Args:
        config: label smoothing and whether to augment.
        dataset: how images are augmented and normalised.
        network: the network, small or not.
        by: its optimizer.

    Returns:
        The step.
    """

    def prepare(key: jax.Array, images: jax.Array) -> jax.Array:
        return dataset.normalize(dataset.augment(key, images) if config.augment else images)

    return make_train_step(network.apply_train, by.optimizer, config.label_smoothing, prepare)


def train(
    config: Config,
    dataset: data.ImageDataset,
    journal: Journal,
    stage: str,
    state: TrainState,
    step: TrainStep,
    by: Optimization,
    *,
    until: int | None = None,
    part: str = "all",
    description: str = "train",
    test: Callable[[Any], Evaluation] | None = None,
) -> TrainState:
    """Train from a state, or from the checkpoint that an interrupted process left of this stage.

    Args:
        config: how often to log, evaluate and write checkpoints.
        dataset: the images.
        journal: of the run; knows where checkpoints and curves go.
        stage: what the training belongs to.
        state: where it begins; donated.
        step: as :func:`train_step` gives it.
        by: schedule and number of steps.
        until: the step to end at, by default the last.
        part: tells trainings of one stage apart.
        description: of the progress bar.
        test: evaluates variables; for the curve over the epochs.

    Returns:
        The last state.

    Raises:
        FloatingPointError: if the loss or a parameter becomes NaN or infinite; the last good
            checkpoint stays.
    """
    until = by.steps if until is None else until
    with open_checkpoints(journal.checkpoints(stage) / part) as manager:
        state = restore_state(manager, state) or state
        with open_curves(journal.logs(stage), int(state.step) + 1) as curves:

            def log(done: int, state: TrainState, means: Means) -> None:
                rate = float(np.asarray(by.schedule(done - 1)))
                named = {"loss": means.loss, "accuracy": means.accuracy, "learning_rate": rate}
                add(curves, done, {f"train/{name}": value for name, value in named.items()})

            def measure(done: int, state: TrainState, means: Means) -> None:
                assert test is not None
                found = test(state.variables)
                add(curves, done, {"test/loss": found.loss, "test/accuracy": found.accuracy})

            hooks = [Every(config.log_every, log)]
            if test is not None and config.eval_every:
                hooks.append(Every(config.eval_every * by.steps_per_epoch, measure))
            hooks.append(
                Every(
                    config.checkpoint_every, lambda done, state, means: save_state(manager, state)
                )
            )

            def batches(epoch: int, skip: int):
                return dataset.train_batches(
                    config.batch_size, seed=config.seed, epoch=epoch, skip=skip
                )

            state, _ = fit(
                state,
                step,
                batches,
                steps=until,
                steps_per_epoch=by.steps_per_epoch,
                schedule=by.schedule,
                hooks=hooks,
                description=description,
                progress=config.progress,
            )
    return state


def evaluator(
    config: Config, dataset: data.ImageDataset, network: Network
) -> Callable[[Any], Evaluation]:
    """Build ``variables -> evaluation`` on the test images; it compiles on its first call.

    Args:
        config: the batch size.
        dataset: the images.
        network: the network, small or not.

    Returns:
        The function.

    Example:
        >>> from ifjax.training.network import create
        >>> config, dataset = Config(model="mlp"), data.load("digits")
        >>> network = create(config, dataset)
        >>> evaluator(config, dataset, network)(network.variables).count
        359
    """
    step = make_eval_step(network.apply_eval, dataset.normalize)
    size = min(config.eval_batch_size, dataset.num_test)
    return lambda variables: evaluate(step, variables, dataset.eval_batches(size))
