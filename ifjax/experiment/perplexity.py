"""How well a decoder predicts text."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ifjax.models.decoder import DecoderConfig, decoder_layer, hidden_states, logits


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
    return _losses(config, params, hidden_states(config, params, tokens)[-1], tokens)


def _losses(config: DecoderConfig, params: Any, streams: Any, tokens: Any) -> Array:
    """The same, from the streams behind the last layer."""

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
      params: its tree. Where leaves are memory maps a layer at a time is held, and the streams of
        all windows.
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
    total = 0.0
    if is_mapped(params):
        losses = _streamed(
            config, params, [windows[i : i + batch] for i in _starts(windows, batch)]
        )
    else:
        params = jax.tree.map(jnp.asarray, dict(params))
        parts = (windows[i : i + batch] for i in _starts(windows, batch))
        losses = (token_losses(config, params, tokens) for tokens in parts)
    for start, found in zip(_starts(windows, batch), losses, strict=True):
        total += float(np.asarray(found, np.float64).sum())
        if progress is not None:
            progress(min(start + batch, len(windows)), len(windows))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def is_mapped(params: Mapping[str, Any]) -> bool:
    """Whether the layers are a list, and parts of files."""
    layers = params["layers"]
    return isinstance(layers, list) and any(
        isinstance(x, np.memmap) for x in jax.tree.leaves(params)
    )


def _starts(windows: np.ndarray, batch: int) -> range:
    return range(0, len(windows), batch)


_layer = jax.jit(decoder_layer, static_argnames=("config", "local"))
_last = jax.jit(_losses, static_argnames="config")


def _streamed(
    config: DecoderConfig, params: Mapping[str, Any], parts: list[np.ndarray]
) -> Iterator[Array]:
    """The losses of all batches of windows, layer after layer."""
    table = params["embedding"]
    streams = [jnp.asarray(table[tokens]) for tokens in parts]
    if config.embedding_scale != 1.0:
        streams = [x * jnp.asarray(config.embedding_scale, x.dtype) for x in streams]
    layers = params["layers"]
    for layer, local in zip(layers, config.local_layers(len(layers)), strict=True):
        there = jax.tree.map(jnp.asarray, layer)
        streams = [_layer(config, there, x, local) for x in streams]
    ends = {name: jnp.asarray(x) for name, x in params.items() if name != "layers"}
    for x, tokens in zip(streams, parts, strict=True):
        yield _last(config, ends, x, tokens)
