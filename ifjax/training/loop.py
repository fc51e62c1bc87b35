"""The training loop: feed batches, call hooks, stop at the first loss that is not a number."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float

from ifjax.data.progress import progress as show_progress
from ifjax.training.layout import Layout
from ifjax.training.state import TrainState
from ifjax.training.step import Metrics, TrainStep

AHEAD = 8
"""Steps that are dispatched before the loss of the first one is read."""


class Divergence(FloatingPointError):
    """The loss became NaN or infinite; nothing that follows would mean anything.

    Attributes:
        step: the step whose loss it was, counted from 0.
        loss: NaN, or plus or minus infinity.
        learning_rate: at that step.
        fold: whose loss it was, where several are trained.
    """

    def __init__(
        self, step: int, loss: float, learning_rate: float, fold: int | None = None
    ) -> None:
        """Says where it happened, and what helps."""
        self.step, self.loss, self.learning_rate, self.fold = step, loss, learning_rate, fold
        whose = "" if fold is None else f" of fold {fold}"
        super().__init__(
            f"the loss{whose} is {loss} at step {step} (learning rate {learning_rate:.3g}); "
            "lower the learning rate or lengthen the warm-up, and check the inputs for NaN"
        )


class Means(NamedTuple):
    """Means over batches, each taken before its step; of every local fold where there are folds.

    Attributes:
        loss: mean loss.
        accuracy: fraction of the examples classified correctly.
    """

    loss: float | Float[np.ndarray, " folds"]
    accuracy: float | Float[np.ndarray, " folds"]


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
        """Refuses what never happens."""
        if self.steps < 1:
            raise ValueError(f"a hook is called every 1 or more steps, got {self.steps}")


def fit(
    state: TrainState,
    train_step: TrainStep,
    batches: Callable[[int, int], Iterable[Any]],
    *,
    steps: int,
    steps_per_epoch: int,
    schedule: optax.Schedule,
    hooks: Sequence[Every] = (),
    description: str = "train",
    progress: bool = True,
    layout: Layout | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, Means | None]:
    """Goes on to step ``steps`` from wherever the state is.

    Epoch and position in the data follow from the state's step, so that a run which continues from
    a saved state sees the batches that the unbroken run would have seen. The loss of a step is read
    once a few more steps are dispatched, so an accelerator is never kept waiting; a loss that is
    not finite ends the run these few steps later, and no hook is called with what came of it.

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
        progress: whether to show it on stderr: a bar on a terminal, else one line at the end.
        layout: of the folds, where the state is a split state.
        stop: asked after every step whether to end the training there.

    Returns:
        The last state, and the means over the batches of the last epoch (None without a step).

    Raises:
        Divergence: if a loss is NaN or infinite.
        ValueError: if an epoch has too few batches.

    Example:
        >>> import optax, jax.numpy as jnp, numpy as np
        >>> from ifjax.data import Batch
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
    step = int(np.asarray(state.step).flat[0])
    last_epoch: Means | None = None
    stopped = False
    since: list[list[Metrics]] = [[] for _ in hooks]
    with show_progress(steps, description, "steps", done=min(step, steps), shown=progress) as bar:
        while step < steps and not stopped:
            epoch, skip = divmod(step, steps_per_epoch)
            count = min(steps_per_epoch - skip, steps - step)
            history: list[Metrics] = []
            unread: deque[tuple[int, Metrics]] = deque()

            def settle(leave: int = 0, unread: deque[tuple[int, Metrics]] = unread) -> None:
                while len(unread) > leave:
                    at, metrics = unread.popleft()
                    _require_finite(metrics, at, schedule, layout)

            for batch in itertools.islice(batches(epoch, skip), count):
                state, metrics = train_step(state, batch.images, batch.labels)
                unread.append((step, metrics))
                settle(leave=AHEAD)
                history.append(metrics)
                step += 1
                bar.update()
                for hook, pending in zip(hooks, since, strict=True):
                    pending.append(metrics)
                    if step % hook.steps == 0 or step == steps:
                        settle()
                        hook.call(step, state, _means(pending, layout))
                        pending.clear()
                stopped = stop()
                if stopped:
                    break
            if len(history) < count and not stopped:
                raise ValueError(
                    f"epoch {epoch} has no batch {skip + len(history)}: expected {steps_per_epoch}"
                )
            settle()
            last_epoch = _means(history, layout)
            bar.set_postfix(
                loss=_shown(last_epoch.loss, ".4f"),
                accuracy=_shown(last_epoch.accuracy, ".2%"),
                rate=f"{_rate(schedule, step - 1):.2g}",
            )
    return state, last_epoch


def _losses(metrics: Metrics, layout: Layout | None) -> np.ndarray:
    """One number, or one for each local fold."""
    loss = np.asarray(metrics.loss)
    return loss if layout is None else layout.of_local_folds(loss)


def _means(history: Sequence[Metrics], layout: Layout | None) -> Means:
    columns = zip(*jax.device_get(history), strict=True)
    if layout is None:
        loss, accuracy = (float(np.mean(column)) for column in columns)
    else:
        loss, accuracy = (layout.of_local_folds(np.mean(column, axis=0)) for column in columns)
    return Means(loss, accuracy)


def _shown(value: Any, form: str) -> str:
    """A number, or the mean over the folds and its range."""
    mean = format(np.mean(value), form)
    if np.size(value) == 1:
        return mean
    return f"{mean} ({format(np.min(value), form)} to {format(np.max(value), form)})"


def _require_finite(
    metrics: Metrics, step: int, schedule: optax.Schedule, layout: Layout | None
) -> None:
    losses = _losses(metrics, layout)
    if not np.isfinite(losses).all():
        at = int(np.flatnonzero(~np.isfinite(losses))[0])
        fold = None if layout is None else layout.local_folds[at]
        raise Divergence(step, float(losses.flat[at]), _rate(schedule, step), fold)


def _rate(schedule: optax.Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))
