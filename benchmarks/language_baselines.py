"""What language_model.py puts `ifjax.compress` beside, for a decoder of Llama's form.

`readings` runs the dense network over the calibration windows once; everything else is arithmetic
on its sums and on the weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ifjax.fusion.transport_maps import transport_maps
from ifjax.models.decoder import DecoderConfig, heads, rms_norm
from ifjax.models.decoder_widths import unstack_layers
from ifjax.spec.spec import FusionSpec

READ_BY = {"attention": ("query", "key", "value"), "stream": ("gate", "up")}


class Readings(NamedTuple):
    """Sums over the calibration windows, of every layer.

    Attributes:
      mean: of ``attention`` and ``stream``, what the two parts of a layer read, ``[layers, d]``; of
        ``heads``, ``[layers, heads, E]``; of ``ffn``, ``[layers, ffn]``.
      square: of their squares.
      gram: ``[d, d]``, of the normed residual stream, over all norms.
      influence: ``[layers]``, one minus the cosine between the stream before and behind a layer.
    """

    mean: dict[str, np.ndarray]
    square: dict[str, np.ndarray]
    gram: np.ndarray
    influence: np.ndarray

    def variance(self) -> dict[str, np.ndarray]:
        """How far the values fluctuate."""
        return {k: self.square[k] - self.mean[k] ** 2 for k in self.mean}


def readings(config: DecoderConfig, params: Any, windows: np.ndarray) -> Readings:
    """What every layer reads on some windows.

    Args:
      config: of the decoder.
      params: its tree.
      windows: tokens ``[count, length]``.

    Returns:
      The sums.
    """

    def normed(x: Any) -> Any:
        return rms_norm(config, x, jnp.full(x.shape[-1], 1 - config.norm_offset))

    def gram(x: Any) -> Any:
        return jnp.einsum("btc,btd->cd", normed(x), normed(x))

    @jax.jit
    def step(layer: Any, x: Any) -> Any:
        first = rms_norm(config, x, layer["attention_norm"])
        seen = heads(config, layer, first)
        y = x + jnp.einsum("bthd,hdc->btc", seen, layer["out"])
        second = rms_norm(config, y, layer["ffn_norm"])
        h = jax.nn.silu(second @ layer["gate"]) * (second @ layer["up"])
        z = y + h @ layer["down"]
        found = {"attention": first, "heads": seen, "stream": second, "ffn": h}
        lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(z, axis=-1)
        influence = jnp.mean(1 - jnp.sum(x * z, -1) / lengths)
        means = {k: v.mean((0, 1)) for k, v in found.items()}
        squares = {k: jnp.square(v).mean((0, 1)) for k, v in found.items()}
        return z, (means, squares, gram(x) + gram(y), influence)

    streams = [jnp.asarray(params["embedding"])[tokens[None]] for tokens in windows]
    layers = []
    for layer in unstack_layers(params)["layers"]:
        found = [step(layer, x) for x in streams]
        streams = [x for x, _ in found]
        parts = [sums for _, sums in found]
        layers.append(jax.tree.map(lambda *x: np.mean(np.asarray(x, np.float64), 0), *parts))
    means, squares, grams, influence = jax.tree.map(lambda *x: np.stack(x), *layers)
    last = np.mean([gram(x) for x in streams], 0, dtype=np.float64)
    return Readings(means, squares, grams.sum(0) + last, influence)


def scores(params: Any, square: dict[str, np.ndarray], groups: dict[str, str]) -> dict[str, Any]:
    """The root of what values and weights contribute to the consumers' outputs, one by one.

    Args:
      params: the dense parameters.
      square: mean squares as `Readings` has them, or variances.
      groups: kind of width by group name: ``ffn``, ``query_heads`` or ``hidden``.

    Returns:
      Scores by group name.
    """
    layers = params["layers"]
    found = {}
    for name, kind in groups.items():
        if kind == "ffn":
            total = square["ffn"] * np.square(layers["down"]).sum(-1)
        elif kind == "query_heads":
            total = (square["heads"] * np.square(layers["out"]).sum(-1)).sum(-1)
            total = total.reshape(len(total), layers["key"].shape[2], -1)
        else:
            parts = [
                square[what] * np.square(layers[leaf]).reshape(*square[what].shape, -1).sum(-1)
                for what, leaves in READ_BY.items()
                for leaf in leaves
            ]
            total = np.sum(parts, (0, 1))
        found[name] = jnp.asarray(np.sqrt(total), jnp.float32)
    return found


def biases(
    params: Any, found: Readings, spec: FusionSpec, worth: dict[str, Any], groups: dict[str, str]
) -> dict[str, np.ndarray]:
    """What the neurons that go gave on average, as biases of their consumers.

    Args:
      params: the dense parameters.
      found: the readings.
      spec: how many stay.
      worth: their scores.
      groups: kind of width by group name.

    Returns:
      Leaves of the layers.
    """
    layers, made = params["layers"], {}
    for name, plan in transport_maps(params, spec, worth).items():
        gone = np.ones(worth[name].shape, np.float32)
        np.put_along_axis(gone, np.asarray(plan.targets), 0, -1)
        if groups[name] == "ffn":
            made["down_bias"] = np.einsum("lf,lfd->ld", gone * found.mean["ffn"], layers["down"])
        elif groups[name] == "query_heads":
            lost = gone.reshape(*found.mean["heads"].shape[:2], 1) * found.mean["heads"]
            made["out_bias"] = np.einsum("lhe,lhed->ld", lost, layers["out"])
        else:
            for what, leaves in READ_BY.items():
                for leaf in leaves:
                    lost = gone * found.mean[what]
                    made[f"{leaf}_bias"] = np.einsum("ld,ld...->l...", lost, layers[leaf])
    return {k: v.astype(np.float32) for k, v in made.items()}


def sliced(params: Any, gram: np.ndarray, width: int) -> dict[str, Any]:
    """The stream turned to its principal axes, of which some stay (SliceGPT, arXiv 2401.15024).

    The scales of the norms go into the matrices that read them. All layers have one rotation: the
    paper's, one per layer, need two more matrices in every layer. The head is its own afterwards.

    Args:
      params: the dense parameters, norms without an offset.
      gram: of the normed stream.
      width: how many axes stay.

    Returns:
      The parameters.
    """
    _, vectors = np.linalg.eigh(gram)
    q = np.ascontiguousarray(vectors[:, ::-1][:, :width], np.float32)
    gain = np.float32(np.sqrt(len(q) / width))  # the mean square is over fewer, and their sum less
    layers, small = params["layers"], {}
    for leaf in ("query", "key", "value", "gate", "up"):
        norm = layers["ffn_norm" if leaf in READ_BY["stream"] else "attention_norm"]
        small[leaf] = np.einsum("ld,ld...,dm->lm...", norm, layers[leaf], q, optimize=True)
    for leaf in ("out", "down"):
        small[leaf] = layers[leaf] @ q
    for leaf in ("attention_norm", "ffn_norm"):
        small[leaf] = np.full((len(layers[leaf]), width), gain)
    return {
        "embedding": params["embedding"] @ q,
        "head": ((params["embedding"] * params["norm"]) @ q).T,
        "norm": np.full(width, gain),
        "layers": small,
    }
