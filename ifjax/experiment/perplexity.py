"""How well a decoder predicts text."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ifjax.models.decoder import DecoderConfig, hidden_states, logits


@functools.partial(jax.jit, static_argnames="config")
def token_losses(
    config: DecoderConfig, params: Any, tokens: Int[Array | np.ndarray, "batch length"]
) -> Float[Array, "batch length-1"]:
    """The negative log-likelihood of every token but the first of each window, in nats.

    The logits of one window at a time are held.

    Args:
      config: of the decoder.
      params: its tree.
      tokens: the windows.

    Returns:
      One number per predicted token.
    """
    streams = hidden_states(config, params, tokens)[-1]

    def one(window: tuple[Array, Array]) -> Array:
        stream, wanted = window
        scores = logits(config, params, stream[None])[0, :-1]
        scores = jax.nn.log_softmax(scores.astype(jnp.float32))
        return -jnp.take_along_axis(scores, wanted[1:, None], axis=-1)[:, 0]

    return jax.lax.map(one, (streams, jnp.asarray(tokens)))


def perplexity(
    config: DecoderConfig,
    params: Mapping[str, Any],
    windows: Int[np.ndarray, "count length"],
    *,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """The exponential of the mean negative log-likelihood of tokens 2 to the last of every window.

    Args:
      config: of the decoder.
      params: its tree.
      windows: of tokens, see `ifjax.data.text.windows`.
      batch: windows computed at once.
      progress: told how many windows of how many are done.

    Returns:
      The perplexity.

    Raises:
      ValueError: for tokens that are not in the vocabulary.
    """
    vocabulary = params["embedding"].shape[0]
    if windows.min() < 0 or windows.max() >= vocabulary:
        raise ValueError(
            f"expected tokens below {vocabulary}, the size of the vocabulary, got "
            f"{int(windows.max())}: tokenizer and network are not of one checkpoint"
        )
    params, total = jax.tree.map(jnp.asarray, dict(params)), 0.0
    for start in range(0, len(windows), batch):
        found = token_losses(config, params, windows[start : start + batch])
        total += float(np.asarray(found, np.float64).sum())
        if progress is not None:
            progress(min(start + batch, len(windows)), len(windows))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))
