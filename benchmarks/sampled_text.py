"""Text that a decoder of Llama's form makes up: calibration for who has no text."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ifjax.models.decoder import DecoderConfig, _rotated, _turns, logits, rms_norm
from ifjax.models.decoder_widths import unstack_layers


def sampled(
    config: DecoderConfig, params: Any, count: int, length: int, start: int, seed: int = 0
) -> np.ndarray:
    """Windows sampled token by token, at temperature 1.

    Args:
      config: of the decoder.
      params: its tree.
      count: number of windows, all at once.
      length: tokens in each.
      start: the first token of all.
      seed: of the random numbers.

    Returns:
      Tokens ``[count, length]``.
    """
    params = jax.tree.map(jnp.asarray, unstack_layers(params))
    first = jnp.full(count, start, jnp.int32)
    tokens = _rest(config, params, first, jax.random.key(seed), length)
    return np.asarray(jnp.concatenate([first[None], tokens]).T)


@functools.partial(jax.jit, static_argnames=("config", "length"))
def _rest(config: DecoderConfig, params: Any, first: Any, key: Any, length: int) -> Any:
    """Tokens 2 to the last, ``[length - 1, count]``."""
    key_shape = params["layers"][0]["key"].shape[1:]
    value_shape = params["layers"][0]["value"].shape[1:]
    dtype = params["embedding"].dtype
    caches = [
        tuple(jnp.zeros((len(first), length, *shape), dtype) for shape in (key_shape, value_shape))
        for _ in params["layers"]
    ]
    cos, sin = _turns(config, length, key_shape[-1], False)

    def step(carry: Any, t: Any) -> Any:
        token, caches = carry
        turn = cos[t][None], sin[t][None]
        x, kept = params["embedding"][token][:, None], []
        for layer, cache in zip(params["layers"], caches, strict=True):
            x, cache = _layer(config, layer, x, cache, t, turn)
            kept.append(cache)
        scores = logits(config, params, x)[:, 0]
        token = jax.random.categorical(jax.random.fold_in(key, t), scores).astype(jnp.int32)
        return (token, kept), token

    return jax.lax.scan(step, (first, caches), jnp.arange(length - 1))[1]


def _layer(config: DecoderConfig, layer: Any, x: Any, cache: Any, t: Any, turn: Any) -> Any:
    """The stream of one position behind a layer, and the keys and values up to there."""
    y = rms_norm(config, x, layer["attention_norm"])
    q, k, v = (jnp.einsum("btd,dhk->bthk", y, layer[n]) for n in ("query", "key", "value"))
    q, k = (_rotated(z, turn[0], turn[1], config.rotary.layout) for z in (q, k))
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=t, axis=1)
    keys, values = put(cache[0], k), put(cache[1], v)
    groups = keys.shape[2]
    q = q.reshape(len(q), groups, -1, q.shape[-1]) * config.logit_scale
    scores = jnp.einsum("bkgd,bskd->bkgs", q, keys)
    seen = jnp.arange(keys.shape[1]) <= t
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30))
    heads = jnp.einsum("bkgs,bskd->bkgd", weights, values)
    x = x + jnp.einsum("bhd,hdc->bc", heads.reshape(len(q), -1, v.shape[-1]), layer["out"])[:, None]
    y = rms_norm(config, x, layer["ffn_norm"])
    return x + (jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])) @ layer["down"], (keys, values)
