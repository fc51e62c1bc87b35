"""The training loop: feed batches, call hooks, stop at the first loss that is not a number."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Sequence
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


class Means(NamedTuple):
    """Means over batches, each taken before its step.

    Attributes:
        loss: mean loss.
        accuracy: fraction of the examples classified correctly.
    """

    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Every:
    """What is to happen after every so many steps, such as writing a checkpoint.

    Attributes:
        steps: happens after each step whose number, counted from 1, is a multiple, and after the
            last step.
        call: is given the number of steps done, the state (which the next step donates) and the
            means over the batches since the last call.
    """

    steps: int
    call: Callable[[int, TrainState, Means], None]

    def __post_init__(self) -> None:
        """Refuse what never happens."""
        if self.steps < 1:
            raise ValueError(f"a hook is called every 1 or more steps, got {self.steps}")


def fit(
    state: TrainState,
    train_step: TrainStep,
    batches: Callable[[int, int], Iterable[Batch]],
    *,
    steps: int,
    steps_per_epoch: int,
    schedule: optax.Schedule,
    hooks: Sequence[Every] = (),
    description: str = "train",
    progress: bool = True,
) -> tuple[TrainState, Means | None]:
    """Go on to step ``steps`` from wherever the state is.

    Epoch and position in the data follow from the state's step, so that a run which continues from
    a saved state sees the batches that the unbroken run would have seen. The loss of a step is read
    after the next step was dispatched, so an accelerator is never kept waiting; a loss that is not
    finite ends the run one step later, and no hook is called with what came of it.

    Args:
        state: where to begin; donated.
        train_step: as ``make_train_step`` returns it.
        batches: given the number of an epoch, from 0, and of the batches to leave out, the rest of
            the epoch's batches, as ``train_batches`` of a data set gives them; their masks are not
            read.
        steps: the step to end at; a state that is there already is returned as it is.
        steps_per_epoch: how many batches of an epoch are used.
        schedule: the optimizer's learning rate, for the progress bar and the error.
        hooks: called in their order.
        description: the progress bar's label.
        progress: whether to show the bar (on stderr).

    Returns:
        The last state, and the means over the batches of the last epoch (None without a step).

    Raises:
        Divergence: if a loss is NaN or infinite.
        ValueError: if an epoch has too few batches.

    Example:
        >>> import optax, jax.numpy as jnp, numpy as np
        >>> from ifjax.training import create_state, make_train_step
        >>> optimizer = optax.sgd(1.0)
        >>> state = create_state({"params": {"w": jnp.zeros((3, 2))}}, optimizer)
        >>> step = make_train_step(lambda v, x: (x @ v["params"]["w"], {}), optimizer)
        >>> data = [Batch(np.eye(3, dtype=np.float32), np.array([0, 1, 1]), np.ones(3, bool))]
        >>> state, last = fit(state, step, lambda epoch, skip: data[skip:], steps=3,
        ...                   steps_per_epoch=1, schedule=optax.constant_schedule(1.0),
        ...                   progress=False)
        >>> int(state.step), last.accuracy
        (3, 1.0)
    """
    step = int(state.step)
    last_epoch: Means | None = None
    since: list[list[Metrics]] = [[] for _ in hooks]
    with tqdm(
        total=steps,
        initial=min(step, steps),
        desc=description,
        unit="step",
        disable=not progress,
        # A terminal gets a bar that moves, a log file a line now and then.
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    ) as bar:
        while step < steps:
            epoch, skip = divmod(step, steps_per_epoch)
            count = min(steps_per_epoch - skip, steps - step)
            history: list[Metrics] = []
            for batch in itertools.islice(batches(epoch, skip), count):
                state, metrics = train_step(state, batch.images, batch.labels)
                if history:
                    _require_finite(history[-1], step - 1, schedule)
                history.append(metrics)
                step += 1
                bar.update()
                for hook, pending in zip(hooks, since, strict=True):
                    pending.append(metrics)
                    if step % hook.steps == 0 or step == steps:
                        _require_finite(metrics, step - 1, schedule)
                        hook.call(step, state, _means(pending))
                        pending.clear()
            if len(history) < count:
                raise ValueError(
                    f"epoch {epoch} has no batch {skip + len(history)}: expected {steps_per_epoch}"
                )
            _require_finite(history[-1], step - 1, schedule)
            last_epoch = _means(history)
            bar.set_postfix(
                loss=f"{last_epoch.loss:.4f}",
                accuracy=f"{last_epoch.accuracy:.2%}",
                rate=f"{_rate(schedule, step - 1):.2g}",
            )
    return state, last_epoch


def _means(history: Sequence[Metrics]) -> Means:
    losses, accuracies = zip(*jax.device_get(history), strict=True)
    return Means(float(np.mean(losses)), float(np.mean(accuracies)))


def _require_finite(metrics: Metrics, step: int, schedule: optax.Schedule) -> None:
    loss = float(metrics.loss)
    if not math.isfinite(loss):
        raise Divergence(step, loss, _rate(schedule, step))


def _rate(schedule: optax.Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))
