"""A decoder without some of its layers, chosen by what each does to the output."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ifjax.models.decoder import DecoderConfig, decoder


def keep_layers(
    config: DecoderConfig, params: Mapping[str, Any], kept: Sequence[int]
) -> tuple[DecoderConfig, dict[str, Any]]:
    """The decoder of some of the layers.

    Args:
      config: of the whole decoder.
      params: its tree, layers stacked or in a list.
      kept: indices of the layers that stay, in ascending order.

    Returns:
      Config and parameters; windows go with their layers.

    Raises:
      ValueError: for no layers, or indices that are not ascending or not there.

    Example:
      >>> from ifjax.models import DecoderWidths, init_decoder
      >>> params = init_decoder(jax.random.key(0), DecoderWidths(11, 8, 16, 4, 2, 4, layers=3))
      >>> config, small = keep_layers(DecoderConfig(0.5), params, [0, 2])
      >>> small["layers"]["up"].shape
      (2, 8, 16)
    """
    layers, indices = params["layers"], [*kept]
    count = _count(layers)
    if not indices or indices != sorted({*indices}) or indices[0] < 0 or indices[-1] >= count:
        raise ValueError(f"expected ascending indices of layers, 0 to {count - 1}, got {indices}")
    if isinstance(layers, Mapping):
        some: Any = {name: leaf[np.asarray(indices)] for name, leaf in layers.items()}
    else:
        some = [layers[i] for i in indices]
    return config.with_layers(indices), {**params, "layers": some}


def silence_layers(params: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The same decoder, of which some layers add nothing to the stream.

    What `ifjax.compress` takes as ``altered``, for the other layers to make up for these, which
    `keep_layers` then leaves out.

    Args:
      params: its tree, layers stacked or in a list.
      layers: indices of those that are to be silent.

    Returns:
      Parameters of the same shapes.

    Raises:
      ValueError: for indices that are not there.

    Example:
      >>> from ifjax.models import DecoderWidths, init_decoder
      >>> params = init_decoder(jax.random.key(0), DecoderWidths(11, 8, 16, 4, 2, 4, layers=3))
      >>> silent = silence_layers(params, [1])
      >>> [bool(x.any()) for x in silent["layers"]["down"]]
      [True, False, True]
    """
    writing, count = ("out", "out_bias", "down", "down_bias"), _count(params["layers"])
    if any(i not in range(count) for i in layers):
        raise ValueError(f"expected indices of layers, 0 to {count - 1}, got {[*layers]}")
    if isinstance(params["layers"], Mapping):
        at = np.asarray(layers, int)
        found: Any = {
            name: jnp.asarray(x).at[at].set(0) if name in writing else x
            for name, x in params["layers"].items()
        }
    else:
        found = [
            {k: jnp.zeros_like(x) if i in layers and k in writing else x for k, x in layer.items()}
            for i, layer in enumerate(params["layers"])
        ]
    return {**params, "layers": found}


def _count(layers: Any) -> int:
    """How many layers there are, stacked or in a list."""
    return len(next(iter(layers.values()))) if isinstance(layers, Mapping) else len(layers)


def layer_divergence(
    config: DecoderConfig,
    params: Mapping[str, Any],
    tokens: Int[Array | np.ndarray, "batch length"],
) -> Float[np.ndarray, " layers"]:
    """What leaving out each layer alone does to the predictions: the mean divergence, in nats.

    KL from the dense network's predictions to those without the layer, over all positions. One
    evaluation per layer.

    Args:
      config: of the decoder.
      params: its tree; stacked layers compile once where all have one kind of attention.
      tokens: inputs.

    Returns:
      One number per layer; the lowest can be left out first.

    Example:
      >>> from ifjax.models import DecoderWidths, init_decoder
      >>> params = init_decoder(jax.random.key(0), DecoderWidths(11, 8, 16, 4, 2, 4, layers=3))
      >>> idle = {name: params["layers"][name].at[1].set(0) for name in ("out", "down")}
      >>> params["layers"] |= idle
      >>> layer_divergence(DecoderConfig(0.5), params, jnp.zeros((1, 3), int)).argmin().item()
      1
    """

    @functools.partial(jax.jit, static_argnames="config")
    def predictions(config: DecoderConfig, params: Any) -> Array:
        scores = decoder(config, params, tokens)
        return jax.nn.log_softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)))

    dense = predictions(config, params)
    layers = params["layers"]
    count = _count(layers)
    found = []
    for left in range(count):
        without = predictions(*keep_layers(config, params, [i for i in range(count) if i != left]))
        found.append(jnp.sum(jnp.exp(dense) * (dense - without), axis=-1).mean().item())
    return np.asarray(found)
