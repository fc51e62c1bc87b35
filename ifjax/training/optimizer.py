"""Optimizer and learning-rate schedule from one frozen configuration."""

import dataclasses
import math
from itertools import pairwise
from typing import Literal

import jax
import optax
from jaxtyping import PyTree


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What optimizes, and how fast.

    Attributes:
        name: ``sgd`` (Nesterov momentum; weight decay joins the gradient) or ``adamw`` (it does
            not).
        learning_rate: the peak, reached after the warm-up.
        momentum: of ``sgd``; ``adamw`` does not read it.
        weight_decay: on kernels only, that is on leaves with two axes or more.
        schedule: ``cosine`` to zero, ``step`` (times ``gamma`` at every milestone) or ``constant``.
        warmup: the part of all steps that rises linearly from zero to the peak, in ``[0, 1)``.
        milestones: steps of the run, rising, at which ``step`` falls; by default at half and at
            three quarters of what follows the warm-up.
        gamma: what ``step`` multiplies the rate by.
        clip_norm: gradients whose norm over all leaves is larger are scaled down to it; None for
            no clipping.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = 0.05
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Refuses values no optimizer can run with."""
        if not (self.learning_rate >= 0.0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be finite and >= 0, got {self.learning_rate}")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not (self.weight_decay >= 0.0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}")
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")
        if not (self.clip_norm is None or 0.0 < self.clip_norm < math.inf):
            raise ValueError(f"clip_norm must be positive and finite, got {self.clip_norm}")
        if self.milestones and self.schedule != "step":
            raise ValueError(f"milestones are for the schedule 'step', got {self.schedule!r}")
        if any(later <= earlier for earlier, later in pairwise((0, *self.milestones))):
            raise ValueError(f"milestones must be positive and rise, got {self.milestones}")
        if self.name not in ("sgd", "adamw"):
            raise ValueError(f"unknown optimizer {self.name!r}; known: 'sgd', 'adamw'")
        if self.schedule not in ("cosine", "step", "constant"):
            raise ValueError(
                f"unknown schedule {self.schedule!r}; known: 'cosine', 'step', 'constant'"
            )


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, over a run of ``steps`` steps.

    The warm-up takes ``w = floor(config.warmup * steps)`` steps, from zero at step 0 to the peak at
    step ``w``; what follows spans the ``steps - w`` steps that are left.

    Args:
        config: peak, schedule and warm-up.
        steps: the length of the whole run, at least 1.

    Returns:
        A function from the step (Python or traced integer) to the learning rate.

    Raises:
        ValueError: if ``steps`` is not positive, or a milestone lies in the warm-up or beyond the
            run.

    Example:
        >>> rate = make_schedule(OptimizerConfig(learning_rate=1.0, warmup=0.1), steps=100)
        >>> [round(float(rate(t)), 3) for t in (0, 5, 10, 55, 100)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, got {steps}")
    peak, warmup = config.learning_rate, int(config.warmup * steps)
    rest = steps - warmup
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest)
    elif config.schedule == "step":
        falls = config.milestones or (warmup + rest // 2, warmup + 3 * rest // 4)
        if config.milestones and not warmup < falls[0] <= falls[-1] < steps:
            raise ValueError(
                f"milestones must lie between the warm-up's {warmup} steps and the run's {steps}, "
                f"got {falls}"
            )
        main = optax.piecewise_constant_schedule(
            peak, {fall - warmup: config.gamma for fall in falls}
        )
    else:
        main = optax.constant_schedule(peak)
    if warmup == 0:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def make_optimizer(
    config: OptimizerConfig, schedule: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """Builds the optax transformation of a configuration.

    Args:
        config: which optimizer, its momentum and weight decay.
        schedule: a learning rate, or a schedule as :func:`make_schedule` gives it.

    Returns:
        An optax transformation for a tree of parameters.

    Example:
        >>> config = OptimizerConfig(name="adamw")
        >>> optimizer = make_optimizer(config, make_schedule(config, steps=10))
    """
    if config.name == "adamw":
        optimizer = optax.adamw(schedule, weight_decay=config.weight_decay, mask=_is_kernel)
    else:
        optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=_is_kernel),
            optax.sgd(schedule, momentum=config.momentum, nesterov=config.momentum > 0.0),
        )
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def _is_kernel(params: PyTree) -> PyTree:
    """Decay shrinks kernels; biases, offsets and scales stay free."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
