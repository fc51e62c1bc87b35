"""One training step of any classifier."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ifjax.training.loss import cross_entropy
from ifjax.training.state import TrainState

ApplyTrain = Callable[[PyTree, Array], tuple[Array, PyTree]]
"""``(variables, images) -> (logits, updates)``, with ``updates`` e.g. ``{"batch_stats": ...}``."""

Prepare = Callable[[Key[Array, ""], Array], Array]
"""``(key, images) -> images``: augmentation and normalisation."""


class Metrics(NamedTuple):
    """What a step reports, still on the device.

    Attributes:
        loss: mean over the batch, before the step.
        accuracy: fraction of the batch classified correctly, before the step.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


Objective = Callable[[PyTree, PyTree, Array, Array], tuple[Array, tuple[PyTree, Array]]]
"""``(params, variables, images, labels) -> (loss, (updates, accuracy))``."""

TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]
"""``(state, images, labels) -> (state, metrics)``."""


def make_train_step(
    apply_train: ApplyTrain,
    optimizer: optax.GradientTransformation,
    label_smoothing: float = 0.0,
    prepare: Prepare | None = None,
) -> TrainStep:
    """Builds a jitted step ``(state, images, labels) -> (state, metrics)`` that donates its state.

    Args:
        apply_train: the network in train mode, ``(variables, images) -> (logits, updates)``, where
            ``updates`` replaces entries of ``variables`` (``{"batch_stats": ...}``, or ``{}``). For
            a compressed network pass ``ifjax.shrink(apply_train, spec)``.
        optimizer: the transformation that ``create_state`` was given.
        label_smoothing: see ``cross_entropy``.
        prepare: ``(key, images) -> images``, what turns stored images into the network's input:
            augmentation with the key, a new one every step, and normalisation.

    Returns:
        The step. Its first argument must not be used again after the call.

    Example:
        >>> import optax, jax.numpy as jnp
        >>> from ifjax.training import create_state
        >>> optimizer = optax.sgd(1.0)
        >>> state = create_state({"params": {"w": jnp.zeros((3, 2))}}, optimizer)
        >>> step = make_train_step(lambda v, x: (x @ v["params"]["w"], {}), optimizer)
        >>> state, metrics = step(state, jnp.eye(3), jnp.array([0, 1, 1]))
        >>> round(float(metrics.loss), 4)
        0.6931
    """
    step = plain_train_step(apply_train, optimizer, label_smoothing, prepare)
    return jax.jit(step, donate_argnums=0)


def plain_train_step(
    apply_train: ApplyTrain,
    optimizer: optax.GradientTransformation,
    label_smoothing: float = 0.0,
    prepare: Prepare | None = None,
    average: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> TrainStep:
    """Builds the step that :func:`make_train_step` compiles, to be transformed in other ways.

    Args:
        apply_train: as for :func:`make_train_step`.
        optimizer: as there.
        label_smoothing: as there.
        prepare: as there.
        average: of gradients, metrics and ``updates`` over the devices that share a batch.

    Returns:
        A pure function ``(state, images, labels) -> (state, metrics)``.

    Example:
        >>> import optax, jax.numpy as jnp
        >>> from ifjax.training import create_state
        >>> optimizer = optax.sgd(1.0)
        >>> state = create_state({"params": {"w": jnp.zeros((3, 2))}}, optimizer)
        >>> step = plain_train_step(lambda v, x: (x @ v["params"]["w"], {}), optimizer)
        >>> int(step(state, jnp.eye(3), jnp.array([0, 1, 1]))[0].step)
        1
    """

    def loss_fn(params: PyTree, variables: PyTree, images: Array, labels: Int[Array, " b"]):
        logits, updates = apply_train({**variables, "params": params}, images)
        loss = cross_entropy(logits, labels, label_smoothing).mean()
        return loss, (updates, jnp.mean(logits.argmax(axis=-1) == labels))

    return step_of(loss_fn, optimizer, prepare, average)


def step_of(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    prepare: Prepare | None = None,
    average: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> TrainStep:
    """Builds the step of any loss.

    Args:
        objective: the loss, and what the network's train mode changes.
        optimizer: as for :func:`make_train_step`.
        prepare: as there.
        average: as for :func:`plain_train_step`.

    Returns:
        A pure function ``(state, images, labels) -> (state, metrics)``.

    Example:
        >>> import optax, jax.numpy as jnp
        >>> from ifjax.training import create_state
        >>> optimizer = optax.sgd(0.5)
        >>> state = create_state({"params": {"w": jnp.zeros(2)}}, optimizer)
        >>> def loss(params, variables, x, y):
        ...     return jnp.square(x @ params["w"] - y).mean(), ({}, jnp.zeros(()))
        >>> step_of(loss, optimizer)(state, jnp.eye(2), jnp.ones(2))[1].loss.item()
        1.0
    """

    def train_step(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Metrics]:
        if prepare is not None:
            images = prepare(jax.random.fold_in(state.key, state.step), images)
        params = state.variables["params"]
        (loss, (updates, accuracy)), grads = jax.value_and_grad(objective, has_aux=True)(
            params, state.variables, images, labels
        )
        loss, updates, accuracy, grads = average((loss, updates, accuracy, grads))
        change, opt_state = optimizer.update(grads, state.opt_state, params)
        variables = {
            **state.variables,
            **updates,
            "params": optax.apply_updates(params, change),
        }
        new_state = TrainState(state.step + 1, variables, opt_state, state.key)
        return new_state, Metrics(loss, accuracy)

    return train_step
