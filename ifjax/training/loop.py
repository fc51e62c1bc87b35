"""The epoch loop: feed batches, show progress, stop at the first loss that is not a number."""

import math
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from ifjax.data import Batch
from ifjax.training.state import TrainState
from ifjax.training.step import Metrics, TrainStep


class Divergence(FloatingPointError):
    """The loss became NaN or infinite; nothing that follows would mean anything.

    Attributes:
        step: the step whose loss it was, counted from 0.
        loss: NaN, or plus or minus infinity.
        learning_rate: at that step.
    """

    def __init__(self, step: int, loss: float, learning_rate: float) -> None:
        """Say where it happened, and what helps."""
        self.step, self.loss, self.learning_rate = step, loss, learning_rate
        super().__init__(
            f"the loss is {loss} at step {step} (learning rate {learning_rate:.3g}); "
            "lower the learning rate or lengthen the warm-up, and check the inputs for NaN"
        )


class EpochMeans(NamedTuple):
    """Means over the batches of an epoch, each taken before its step.

    Attributes:
        loss: mean loss.
        accuracy: fraction of the examples classified correctly.
    """

    loss: float
    accuracy: float


def fit(
    state: TrainState,
    train_step: TrainStep,
    batches: Callable[[int], Iterable[Batch]],
    *,
    epochs: int,
    steps_per_epoch: int,
    schedule: optax.Schedule,
    description: str = "train",
    progress: bool = True,
) -> tuple[TrainState, EpochMeans | None]:
    """Run ``epochs`` epochs.

    The loss of a step is read after the next step was dispatched, so an accelerator is never kept
    waiting; a loss that is not finite ends the run one step later.

    Args:
        state: where to begin; donated.
        train_step: as ``make_train_step`` returns it.
        batches: the batches of an epoch, given its number from 0, such as
            :func:`ifjax.data.train_batches` makes them; their masks are not read.
        epochs: how often to go over the data; 0 returns the state as it is.
        steps_per_epoch: how many batches an epoch has, for the progress bar.
        schedule: the optimizer's learning rate, for the progress bar and the error.
        description: the progress bar's label.
        progress: whether to show the bar (on stderr).

    Returns:
        The last state, and the means over the last epoch (None without an epoch).

    Raises:
        Divergence: if a loss is NaN or infinite.

    Example:
        >>> import optax, jax.numpy as jnp, numpy as np
        >>> from ifjax.training import create_state, make_train_step
        >>> optimizer = optax.sgd(1.0)
        >>> state = create_state({"params": {"w": jnp.zeros((3, 2))}}, optimizer)
        >>> step = make_train_step(lambda v, x: (x @ v["params"]["w"], {}), optimizer)
        >>> data = [Batch(np.eye(3, dtype=np.float32), np.array([0, 1, 1]), np.ones(3, bool))]
        >>> state, last = fit(state, step, lambda epoch: data, epochs=3, steps_per_epoch=1,
        ...                   schedule=optax.constant_schedule(1.0), progress=False)
        >>> int(state.step), last.accuracy
        (3, 1.0)
    """
    step = int(state.step)
    last_epoch: EpochMeans | None = None
    with tqdm(
        total=epochs * steps_per_epoch,
        desc=description,
        unit="step",
        disable=not progress,
        # A terminal gets a bar that moves, a log file a line now and then.
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    ) as bar:
        for epoch in range(epochs):
            history: list[Metrics] = []
            for batch in batches(epoch):
                state, metrics = train_step(state, batch.images, batch.labels)
                history.append(metrics)
                if len(history) > 1:
                    _require_finite(history[-2], step - 1, schedule)
                step += 1
                bar.update()
            if not history:
                raise ValueError(f"epoch {epoch} has no batch")
            _require_finite(history[-1], step - 1, schedule)
            losses, accuracies = zip(*jax.device_get(history), strict=True)
            last_epoch = EpochMeans(float(np.mean(losses)), float(np.mean(accuracies)))
            bar.set_postfix(
                loss=f"{last_epoch.loss:.4f}",
                accuracy=f"{last_epoch.accuracy:.2%}",
                rate=f"{_rate(schedule, step - 1):.2g}",
            )
    return state, last_epoch


def _require_finite(metrics: Metrics, step: int, schedule: optax.Schedule) -> None:
    loss = float(metrics.loss)
    if not math.isfinite(loss):
        raise Divergence(step, loss, _rate(schedule, step))


def _rate(schedule: optax.Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))
