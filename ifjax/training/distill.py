"""Recovery after compression: the small network learns from the one that it was cut from.

Hinton, Vinyals and Dean: Distilling the Knowledge in a Neural Network (arXiv 1503.02531).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ifjax.training.loss import cross_entropy
from ifjax.training.state import TrainState
from ifjax.training.step import Prepare, TrainStep, step_of

ApplyTeacher = Callable[[PyTree, Array], Any]
"""``(variables, inputs) -> logits``, or ``(logits, features)``."""


def distillation_loss(
    student: Float[Array, "*b k"], teacher: Float[Array, "*b k"], temperature: float = 1.0
) -> Float[Array, "*b"]:
    r"""The divergence of the student's softened predictions from the teacher's, in float32.

    $$\ell = T^2 \, \mathrm{KL}\left(
      \mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(s / T)\right),$$

    whose gradient has the scale of the cross-entropy's at every temperature $T$.

    Args:
        student: logits $s$.
        teacher: logits $t$.
        temperature: $T > 0$.

    Returns:
        One number per prediction, in nats.

    Raises:
        ValueError: for a temperature that is not positive, or different numbers of classes.

    Example:
        >>> import jax.numpy as jnp
        >>> f"{distillation_loss(jnp.zeros(2), jnp.array([0.0, 100.0])).item():.4f}"
        '0.6931'
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected logits of one shape, got {student.shape} of the student and "
            f"{teacher.shape} of the teacher; both have to know the same classes"
        )
    s, t = (
        jax.nn.log_softmax(x.astype(jnp.promote_types(x.dtype, jnp.float32)) / temperature)
        for x in (student, teacher)
    )
    return temperature**2 * jnp.sum(jnp.exp(t) * (t - s), axis=-1)


def feature_loss(
    student: Sequence[Array], teacher: Sequence[Array], kind: str = "cosine"
) -> Float[Array, ""]:
    """The mean distance between features of equal width; the others are left out.

    Args:
        student: arrays ``[..., width]``.
        teacher: as many.
        kind: ``"cosine"``, one minus the cosine; or ``"l2"``, the mean squared difference over the
            mean square of the teacher's.

    Returns:
        The mean over features and positions.

    Raises:
        ValueError: where their numbers differ, or none are of equal width.

    Example:
        >>> import jax.numpy as jnp
        >>> x = [jnp.ones((2, 3)), jnp.ones((2, 4))]
        >>> feature_loss(x, [jnp.ones((2, 5)), -jnp.ones((2, 4))]).item()
        2.0
    """
    if kind not in ("cosine", "l2"):
        raise ValueError(f"kind: expected 'cosine' or 'l2', got {kind!r}")
    if len(student) != len(teacher):
        raise ValueError(
            f"expected as many features of the student as of the teacher, got {len(student)} and "
            f"{len(teacher)}; where layers were cut, leave theirs out of the teacher's"
        )
    pairs = [(s, t) for s, t in zip(student, teacher, strict=True) if s.shape == t.shape]
    if not pairs:
        shapes = [(s.shape, t.shape) for s, t in zip(student, teacher, strict=True)][:3]
        raise ValueError(f"no features are of equal width, such as {shapes}; set feature_weight=0")
    return jnp.mean(jnp.stack([_distance(s, t, kind) for s, t in pairs]))


def make_distill_step(
    apply_student: Callable[[PyTree, Array], tuple[Any, PyTree]],
    apply_teacher: ApplyTeacher,
    teacher: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    temperature: float = 2.0,
    label_weight: float = 0.0,
    feature_weight: float = 0.0,
    feature_kind: str = "cosine",
    prepare: Prepare | None = None,
) -> TrainStep:
    r"""Builds the ordinary training step with a teacher in it; no labels are needed.

    The loss is $(1 - a)\, T^2\, \mathrm{KL} + a\, \mathrm{CE} + b\, \mathrm{features}$.

    Args:
        apply_student: the small network in train mode, ``(variables, inputs) -> (logits,
            updates)``, as for :func:`make_train_step`; with a feature weight ``((logits,
            features), updates)``.
        apply_teacher: the network before, ``(variables, inputs) -> logits``, or
            ``(logits, features)``.
        teacher: its variables; they are an argument of the compiled step, not copied into it.
        optimizer: the transformation that ``create_state`` was given.
        temperature: $T$.
        label_weight: $a$ in ``[0, 1]``; at 0 the labels only count for the accuracy.
        feature_weight: $b$, for features whose widths agree.
        feature_kind: see :func:`feature_loss`.
        prepare: as for :func:`make_train_step`.

    Returns:
        The step ``(state, inputs, labels) -> (state, metrics)``, for :func:`fit` like any other;
        labels have the shape of the logits without their last axis.

    Raises:
        ValueError: for weights outside of their range.

    Example:
        >>> import optax, jax.numpy as jnp
        >>> from ifjax.training import create_state
        >>> optimizer = optax.sgd(1.0)
        >>> state = create_state({"params": {"w": jnp.zeros((3, 2))}}, optimizer)
        >>> teacher = {"w": jnp.ones((3, 2)) * jnp.array([0.0, 1.0])}
        >>> step = make_distill_step(
        ...     lambda v, x: (x @ v["params"]["w"], {}), lambda v, x: x @ v["w"], teacher, optimizer
        ... )
        >>> for _ in range(100):
        ...     state, metrics = step(state, jnp.eye(3), jnp.ones(3, int))
        >>> metrics.loss.item() < 1e-3
        True
    """
    if not 0.0 <= label_weight <= 1.0:
        raise ValueError(f"label_weight: expected a number in [0, 1], got {label_weight}")
    if feature_weight < 0.0:
        raise ValueError(f"feature_weight: expected at least 0, got {feature_weight}")

    def outputs(found: Any) -> tuple[Array, Sequence[Array]]:
        logits, features = found if isinstance(found, tuple) else (found, ())
        return logits, features

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, inputs: Array, labels: Array, teacher: PyTree) -> Any:
        def objective(params: PyTree, variables: PyTree, inputs: Array, labels: Array) -> Any:
            found, updates = apply_student({**variables, "params": params}, inputs)
            (logits, features), (wanted, known) = (
                outputs(found),
                outputs(jax.lax.stop_gradient(apply_teacher(teacher, inputs))),
            )
            loss = (1 - label_weight) * distillation_loss(logits, wanted, temperature).mean()
            if label_weight:
                loss = loss + label_weight * _labels_loss(logits, labels)
            if feature_weight:
                loss = loss + feature_weight * feature_loss(features, known, feature_kind)
            return loss, (updates, jnp.mean(logits.argmax(axis=-1) == labels))

        return step_of(objective, optimizer, prepare)(state, inputs, labels)

    return lambda state, inputs, labels: step(state, inputs, labels, teacher)


def _labels_loss(logits: Float[Array, "*b k"], labels: Int[Array, "*b"]) -> Float[Array, ""]:
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)).mean()


def _distance(student: Array, teacher: Array, kind: str) -> Array:
    s, t = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (student, teacher))
    if kind == "l2":
        return jnp.square(s - t).mean() / jnp.maximum(jnp.square(t).mean(), 1e-12)
    lengths = jnp.square(s).sum(-1) * jnp.square(t).sum(-1)
    return jnp.mean(1 - jnp.sum(s * t, axis=-1) * jax.lax.rsqrt(jnp.maximum(lengths, 1e-24)))
