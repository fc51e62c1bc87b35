"""A few steps of distillation: what the reconstructed network still learns from the dense one."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ifjax.models.decoder import DecoderConfig, decoder
from ifjax.training import create_state, make_distill_step


def distilled(
    config: DecoderConfig, dense: Any, small: Any, windows: np.ndarray, rate: float
) -> tuple[Any, list[float]]:
    """One step per window, with Adam, a tenth of the steps rising and the rest falling linearly.

    Args:
      config: of both networks.
      dense: parameters of the teacher.
      small: those to begin with.
      windows: tokens ``[steps, length]``.
      rate: the highest learning rate.

    Returns:
      The parameters, and the divergence before each step.
    """
    steps = len(windows)
    rising = max(1, steps // 10)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(rate / rising, rate, rising),
            optax.linear_schedule(rate, 0.0, steps - rising),
        ],
        [rising],
    )
    optimizer = optax.adam(schedule)
    step = make_distill_step(
        lambda variables, x: (decoder(config, variables["params"], x), {}),
        functools.partial(decoder, config),
        jax.tree.map(jnp.asarray, dense),
        optimizer,
        temperature=1.0,
    )
    state = create_state({"params": jax.tree.map(jnp.array, small)}, optimizer)
    losses = []
    for window in jnp.asarray(windows)[:, None]:
        state, metrics = step(state, window, window)
        losses.append(float(metrics.loss))
        print(f"step {len(losses)} of {steps}: {losses[-1]:.4f}", flush=True)
    return state.variables["params"], losses
