"""Training and evaluation as a configuration wants them: resumable, with curves."""

import contextlib
import dataclasses
import functools
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Int

from ifjax import data
from ifjax.experiment.config import Config
from ifjax.experiment.curves import add, open_curves
from ifjax.experiment.journal import Journal
from ifjax.experiment.network import Network
from ifjax.training.checkpoints import Feed, open_checkpoints
from ifjax.training.distributed import is_first
from ifjax.training.evaluate import EvalStep, Evaluation, evaluate, make_eval_step
from ifjax.training.feeding import SplitBatch
from ifjax.training.layout import Layout
from ifjax.training.loop import Every, Means, fit
from ifjax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from ifjax.training.signals import deferred
from ifjax.training.state import TrainState
from ifjax.training.step import Prepare, TrainStep, make_train_step

Test = Callable[[Any], Evaluation | list[Evaluation]]  # of variables


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


class Split(NamedTuple):
    """Folds whose models are trained side by side.

    Attributes:
        layout: which device trains which.
        folds: indices of the training images of each.
        feed: their batches, as :func:`ifjax.training.feeding.make_feed` gives them.
    """

    layout: Layout
    folds: Sequence[Int[np.ndarray, " _"]]
    feed: Callable[[int, int], Iterator[SplitBatch]]


def optimization(
    config: Config,
    dataset: data.ImageDataset,
    epochs: int | float,
    learning_rate: float,
    milestones: tuple[int, ...] = (),
    steps_per_epoch: int | None = None,
) -> Optimization:
    """Builds optimizer and schedule of a training of so many epochs.

    Args:
        config: the optimizer and its settings.
        dataset: gives the number of images.
        epochs: passes over them, whole or not.
        learning_rate: the peak.
        milestones: epochs after which the schedule ``step`` falls.
        steps_per_epoch: by default those of a pass over all training images.

    Returns:
        All that :func:`train` needs.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> optimization(Config(), data.load("digits"), 2.5, 0.1).steps
        55
    """
    per_epoch = steps_per_epoch or dataset.num_train // config.batch_size
    steps = round(epochs * per_epoch)
    falls = tuple(epoch * per_epoch for epoch in milestones)
    chosen = optimizer_config(config, learning_rate, falls)
    schedule = make_schedule(chosen, max(1, steps))
    return Optimization(steps, per_epoch, schedule, make_optimizer(chosen, schedule))


def optimizer_config(
    config: Config, learning_rate: float, milestones: tuple[int, ...] = ()
) -> OptimizerConfig:
    """Picks the optimizer's part of a configuration.

    Args:
        config: the configuration.
        learning_rate: the peak.
        milestones: steps at which the schedule ``step`` falls.

    Returns:
        What :func:`ifjax.training.make_optimizer` takes.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> optimizer_config(Config(), 0.3).learning_rate
        0.3
    """
    return OptimizerConfig(
        name=config.optimizer,
        learning_rate=learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        warmup=config.warmup,
        milestones=milestones,
        gamma=config.gamma,
        clip_norm=config.clip_norm,
    )


def train_step(
    config: Config, dataset: data.ImageDataset, network: Network, by: Optimization
) -> TrainStep:
    """Builds the step of a network; it compiles on its first call.

    Args:
        config: label smoothing and whether to augment.
        dataset: how images are augmented and normalised.
        network: the network, small or not.
        by: its optimizer.

    Returns:
        The step.
    """
    prepare = preparation(config, dataset)
    return make_train_step(network.apply_train, by.optimizer, config.label_smoothing, prepare)


def preparation(config: Config, dataset: data.ImageDataset) -> Prepare:
    """Builds ``(key, images) -> images``, from stored ones to the input of a training step.

    Args:
        config: whether to augment.
        dataset: how images are augmented and normalised.

    Returns:
        The function.
    """

    def prepare(key: jax.Array, images: jax.Array) -> jax.Array:
        return dataset.normalize(dataset.augment(key, images) if config.augment else images)

    return prepare


class _Curves(NamedTuple):
    """Where the points of a training go; nowhere in the processes that do not draw."""

    curves: Any
    by: Optimization
    folds: Sequence[int]

    def log(self, done: int, state: TrainState, means: Means) -> None:
        """Loss, accuracy and learning rate of the last steps."""
        del state
        if self.curves is not None:
            points = _points("train/loss", means.loss, self.folds)
            points |= _points("train/accuracy", means.accuracy, self.folds)
            rate = float(np.asarray(self.by.schedule(done - 1)))
            add(self.curves, done, points | {"train/learning_rate": rate})

    def measure(
        self, test: Test, several: bool, done: int, state: TrainState, means: Means
    ) -> None:
        """Loss and accuracy on the test images, of every fold."""
        del means
        found = test(state.variables)
        if self.curves is not None:
            each = found if isinstance(found, list) else [found]
            points = {}
            for name in ("loss", "accuracy"):
                values = [getattr(one, name) for one in each]
                value = values if several else values[0]
                points |= _points(f"test/{name}", value, range(len(values)))
            add(self.curves, done, points)


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
    test: Test | None = None,
    split: Split | None = None,
) -> TrainState:
    """Trains from a state, or from the checkpoint that an interrupted process left of this stage.

    On SIGTERM or Control-C the step in hand is finished and a checkpoint written. On several hosts
    every process has to call this; the files are those of process 0.

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
        test: evaluates variables (of all folds); for the curve over the epochs.
        split: the folds, where ``state`` and ``step`` are those of several models.

    Returns:
        The last state.

    Raises:
        FloatingPointError: if the loss or a parameter becomes NaN or infinite; the last good
            checkpoint stays.
        Interrupted: after a signal, once the checkpoint is written.
        ValueError: if the checkpoint is of a run with other images or another network.
    """
    until = by.steps if until is None else until
    layout, folds = (None, ()) if split is None else (split.layout, split.layout.local_folds)
    with (
        open_checkpoints(
            journal.checkpoints(stage) / part, _feed(config, dataset, by, split), layout
        ) as checkpoints,
        contextlib.ExitStack() as stack,
    ):
        state = checkpoints.restore(state) or state
        begin = int(np.asarray(state.step).flat[0])
        curves = None
        if is_first():
            curves = stack.enter_context(open_curves(journal.logs(stage), begin + 1))

        drawn = _Curves(curves, by, folds)
        hooks = [Every(config.log_every, drawn.log)]
        if test is not None and config.eval_every:
            measure = functools.partial(drawn.measure, test, split is not None)
            hooks.append(Every(config.eval_every * by.steps_per_epoch, measure))
        hooks.append(
            Every(config.checkpoint_every, lambda done, state, means: checkpoints.save(state))
        )
        request = stack.enter_context(deferred())
        state, _ = fit(
            state,
            step,
            split.feed if split else _batches(config, dataset),
            steps=until,
            steps_per_epoch=by.steps_per_epoch,
            schedule=by.schedule,
            hooks=hooks,
            description=description,
            progress=config.progress and is_first(),
            layout=layout,
            stop=request.is_due,
        )
        if request.due:
            checkpoints.save(state)
            checkpoints.wait()
        journal.seconds[stage] = journal.seconds.get(stage, 0.0) + checkpoints.seconds
    return state


def _batches(
    config: Config, dataset: data.ImageDataset
) -> Callable[[int, int], Iterator[data.Batch]]:
    return lambda epoch, skip: dataset.train_batches(
        config.batch_size, seed=config.seed, epoch=epoch, skip=skip
    )


def _feed(
    config: Config, dataset: data.ImageDataset, by: Optimization, split: Split | None
) -> Feed:
    """What a checkpoint notes of the images."""
    folds = ""
    if split is not None:
        crc = [zlib.crc32(np.asarray(fold, np.int64).tobytes()) for fold in split.folds]
        folds = " ".join(f"{digest:08x}" for digest in crc)
    return Feed(
        dataset.name, dataset.num_train, config.batch_size, by.steps_per_epoch, config.seed, folds
    )


def _points(name: str, value: Any, folds: Sequence[int]) -> dict[str, float]:
    """A point of a curve, or of one for each fold."""
    if np.ndim(value) == 0:
        return {name: float(value)}
    return {f"{name}/fold-{fold}": float(one) for fold, one in zip(folds, value, strict=True)}


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates variables on the test images; it compiles on its first call.

    Attributes:
        step: evaluates a batch.
        batches: gives the test images anew.
    """

    step: EvalStep
    batches: Callable[[], Iterator[data.Batch]]

    def __call__(self, variables: Any) -> Evaluation:
        """What the network reaches with these variables."""
        return evaluate(self.step, variables, self.batches())

    def latency(self, variables: Any, calls: int = 7) -> float:
        """Milliseconds that a batch of test images takes, the median of several calls."""
        batch = next(iter(self.batches()))
        jax.block_until_ready(self.step(variables, *batch))
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            jax.block_until_ready(self.step(variables, *batch))
            times.append(time.perf_counter() - began)
        return 1e3 * statistics.median(times)


def evaluator(config: Config, dataset: data.ImageDataset, network: Network) -> Evaluator:
    """Builds what evaluates a network on the test images.

    Args:
        config: the batch size.
        dataset: the images.
        network: the network, small or not.

    Returns:
        The function.

    Example:
        >>> from ifjax.experiment.network import create
        >>> config, dataset = Config(model="mlp"), data.load("digits")
        >>> network = create(config, dataset)
        >>> evaluator(config, dataset, network)(network.variables).count
        359
    """
    step = make_eval_step(network.apply_eval, dataset.normalize)
    size = min(config.eval_batch_size, dataset.num_test)
    return Evaluator(step, lambda: iter(dataset.eval_batches(size)))
