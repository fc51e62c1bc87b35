"""A decoder of language on bare arrays: the function of Llama, Qwen and Gemma checkpoints.

Every width is a shape of the parameters, every other number a field of `DecoderConfig`: the same
function serves a network before and after it is cut. Rotary positions are those of RoFormer
(arXiv 2104.09864), grouped queries of arXiv 2305.13245, the gated feed-forward part of arXiv
2002.05202.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class FrequencyScaling:
    """What Llama 3.1 does to the frequencies of rotary positions, by their wavelength.

    Attributes:
      factor: wavelengths above ``length / low`` positions grow by it.
      low: see there.
      high: wavelengths below ``length / high`` stay; between the two it is interpolated.
      length: the context of the training before, in tokens.
    """

    factor: float
    low: float
    high: float
    length: int


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions: pair j of a head turns by ``position / base^(2 j / head_dim)`` radians.

    Attributes:
      base: theta.
      factor: every frequency is divided by it (linear scaling of the positions).
      scaling: of Llama 3.1, or None.
      layout: which dimensions are a pair: ``"half"``, j and j + head_dim / 2, as Hugging Face and
        most of MaxText have it; ``"interleaved"``, 2 j and 2 j + 1, as MaxText's llama3.1.
    """

    base: float = 10_000.0
    factor: float = 1.0
    scaling: FrequencyScaling | None = None
    layout: Literal["half", "interleaved"] = "half"

    def frequencies(self, head_dim: int) -> NDArray[np.float32]:
        """Radians per position of every pair, ``[head_dim / 2]``.

        >>> Rotary(base=100.0).frequencies(4).tolist()
        [1.0, 0.10000000149011612]
        """
        if head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs of dimensions: expected an even head_dim, "
                f"got {head_dim}"
            )
        powers = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        found = 1.0 / np.power(np.float32(self.base), powers)
        if (s := self.scaling) is not None:
            turns = s.length * found / (2 * np.pi)
            smooth = np.clip((turns - s.low) / (s.high - s.low), 0.0, 1.0)
            found = (1 - smooth) * found / s.factor + smooth * found
        return np.asarray(found / self.factor, np.float32)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What the shapes of a decoder's parameters do not tell; hashable, a static argument.

    No field depends on a width, so that a cut network keeps its config; `with_layers` gives that of
    some of the layers.

    Attributes:
      logit_scale: the products of queries and keys are multiplied by it: ``head_dim ** -0.5`` of
        the network before any cut.
      eps: added to the mean square in every norm.
      norm_offset: norms multiply by ``norm_offset + weight``: 1 in Gemma, else 0.
      embedding_scale: what embeddings are multiplied by: ``sqrt(hidden)`` in Gemma.
      activation: of the gate, ``"silu"`` or ``"gelu"`` (the tanh form).
      rotary: positions in layers that see everything before them.
      local_rotary: positions in layers with a window; None where they have the same.
      window: how many positions a windowed layer sees, its own included.
      windowed: whether each layer has the window; () where none has.
      attention_cap: c of ``c tanh(x / c)`` on the logits of attention, or None.
      output_cap: the same on the logits of the network.

    Example:
      >>> DecoderConfig(logit_scale=64**-0.5).with_layers([0, 2]).windowed
      ()
    """

    logit_scale: float
    eps: float = 1e-6
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    activation: Literal["silu", "gelu"] = "silu"
    rotary: Rotary = Rotary()
    local_rotary: Rotary | None = None
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    attention_cap: float | None = None
    output_cap: float | None = None

    def __post_init__(self) -> None:
        """Checks the choices.

        Raises:
          ValueError: for an unknown activation or layout, or windows without a width.
        """
        if self.activation not in ("silu", "gelu"):
            raise ValueError(f"activation must be 'silu' or 'gelu'; got {self.activation!r}")
        for rotary in filter(None, (self.rotary, self.local_rotary)):
            if rotary.layout not in ("half", "interleaved"):
                raise ValueError(f"layout must be 'half' or 'interleaved'; got {rotary.layout!r}")
        if any(self.windowed) and (self.window is None or self.window < 1):
            raise ValueError(
                f"windowed layers need a window of at least one position; got {self.window}"
            )

    def local_layers(self, count: int) -> tuple[bool, ...]:
        """Whether each of so many layers has the window.

        Raises:
          ValueError: where ``windowed`` is of another number of layers.
        """
        if len(self.windowed) not in (0, count):
            raise ValueError(
                f"config.windowed is of {len(self.windowed)} layers, and the parameters are of "
                f"{count}; config.with_layers(kept) gives that of the layers that are kept"
            )
        return self.windowed or (False,) * count

    def with_layers(self, kept: Sequence[int]) -> DecoderConfig:
        """The config of the network that has only some of the layers."""
        if not self.windowed:
            return self
        return dataclasses.replace(self, windowed=tuple(self.windowed[i] for i in kept))


def decoder(
    config: DecoderConfig,
    params: Mapping[str, Any],
    tokens: Int[Array | np.ndarray, "batch length"],
) -> Float[Array, "batch length vocabulary"]:
    """Computes the logits of the next token at every position.

    The parameters are a tree of arrays; d is the hidden width, D of queries and keys, E of values:

    * ``embedding`` [vocabulary, d], ``norm`` [d], and ``head`` [d, vocabulary] unless tied to it;
    * ``layers``: a list of trees, or one tree of leaves stacked on axis 0, which is scanned, of
      ``attention_norm`` [d], ``query`` [d, heads, D], ``key`` [d, kv heads, D], ``value``
      [d, kv heads, E], ``out`` [heads, E, d], ``ffn_norm`` [d], ``gate`` and ``up`` [d, ffn],
      ``down`` [ffn, d]; where the network has them ``query_bias``, ``key_bias``, ``value_bias``
      [heads, D], ``out_bias`` [d], ``query_norm``, ``key_norm`` [D], and ``attention_post_norm``,
      ``ffn_post_norm`` [d] on what attention and feed-forward part give, ``gate_bias``,
      ``up_bias`` [ffn], ``down_bias`` [d].

    Query head h reads kv head ``h // (heads / kv heads)``. Norms and softmax compute in float32,
    everything else in the parameters' dtype.

    Args:
      config: the numbers that the shapes do not tell.
      params: the tree.
      tokens: indices into the vocabulary.

    Returns:
      The logits.

    Raises:
      ValueError: where ``config.windowed`` is not of as many layers, or query heads do not divide
        into the kv heads.

    Example:
      >>> from ifjax.models.decoder_widths import DecoderWidths, init_decoder
      >>> params = init_decoder(jax.random.key(0), DecoderWidths(11, 8, 16, 4, 2, 4, 2))
      >>> decoder(DecoderConfig(0.5), params, jnp.zeros((1, 3), int)).shape
      (1, 3, 11)
    """
    x = hidden_states(config, params, tokens)[-1]
    return logits(config, params, x)


def logits(
    config: DecoderConfig, params: Mapping[str, Any], x: Float[Array, "batch length d"]
) -> Float[Array, "batch length vocabulary"]:
    """Computes the logits from the residual stream behind the last layer.

    Args:
      config: as in `decoder`.
      params: as there.
      x: the stream.

    Returns:
      The logits.
    """
    x = rms_norm(config, x, params["norm"])
    if "head" in params:
        found = jnp.einsum("btd,dv->btv", x, params["head"])
    else:
        found = jnp.einsum("btd,vd->btv", x, params["embedding"])
    return _capped(found, config.output_cap)


def hidden_states(
    config: DecoderConfig,
    params: Mapping[str, Any],
    tokens: Int[Array | np.ndarray, "batch length"],
    every: bool = False,
) -> list[Float[Array, "batch length d"]]:
    """Computes the residual stream behind the last layer, or behind every layer.

    Args:
      config: as in `decoder`.
      params: as there.
      tokens: as there.
      every: whether behind every layer, the embedding first.

    Returns:
      One array, or layers + 1 of them.
    """
    layers = params["layers"]
    stacked = isinstance(layers, Mapping)
    count = layers["query"].shape[0] if stacked else len(layers)
    local = np.asarray(config.local_layers(count))
    x = jnp.asarray(params["embedding"])[tokens]
    if config.embedding_scale != 1.0:
        x = x * jnp.asarray(config.embedding_scale, x.dtype)
    if not stacked:
        found = [x]
        for layer, is_local in zip(layers, local, strict=True):
            found.append(decoder_layer(config, layer, found[-1], bool(is_local)))
        return found if every else found[-1:]
    if len(set(local.tolist())) == 1:  # one kind of layer: nothing to choose in the loop

        def step(x: Array, layer: Any) -> tuple[Array, Array | None]:
            x = decoder_layer(config, layer, x, bool(local[0]))
            return x, x if every else None

        last, states = jax.lax.scan(step, x, layers)
    else:

        def choose(x: Array, xs: Any) -> tuple[Array, Array | None]:
            x = decoder_layer(config, xs[0], x, xs[1])
            return x, x if every else None

        last, states = jax.lax.scan(choose, x, (layers, local))
    return [x, *states] if every and states is not None else [last]


def decoder_layer(
    config: DecoderConfig,
    layer: Mapping[str, Any],
    x: Float[Array, "batch length d"],
    local: bool | Array = False,
) -> Float[Array, "batch length d"]:
    """Computes the residual stream after one layer.

    Args:
      config: as in `decoder`.
      layer: the leaves of one layer.
      x: the stream before it.
      local: whether the layer has the window; may be traced.

    Returns:
      The stream.
    """
    y = rms_norm(config, x, layer["attention_norm"])
    y = _project("bthd,hdc->btc", heads(config, layer, y, local), layer, "out")
    if "attention_post_norm" in layer:
        y = rms_norm(config, y, layer["attention_post_norm"])
    x = x + y
    y = rms_norm(config, x, layer["ffn_norm"])
    gate = _project("btd,df->btf", y, layer, "gate")
    up = _project("btd,df->btf", y, layer, "up")
    gate = jax.nn.silu(gate) if config.activation == "silu" else jax.nn.gelu(gate)
    y = _project("btf,fd->btd", gate * up, layer, "down")
    if "ffn_post_norm" in layer:
        y = rms_norm(config, y, layer["ffn_post_norm"])
    return x + y


def rms_norm(
    config: DecoderConfig, x: Float[Array, "*axes n"], weight: Float[Array | np.ndarray, " n"]
) -> Float[Array, "*axes n"]:
    """Computes ``x / sqrt(mean(x^2) + eps) (norm_offset + weight)`` in float32, in x's dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + config.eps)
    if config.norm_offset:  # Gemma rounds after the product
        return (wide * (config.norm_offset + weight.astype(wide.dtype))).astype(x.dtype)
    return wide.astype(x.dtype) * weight


def _project(equation: str, x: Array, layer: Mapping[str, Any], name: str) -> Array:
    y = jnp.einsum(equation, x, layer[name])
    return y + layer[f"{name}_bias"] if f"{name}_bias" in layer else y


def heads(
    config: DecoderConfig,
    layer: Mapping[str, Any],
    x: Float[Array, "batch length d"],
    local: bool | Array = False,
) -> Float[Array, "batch length heads E"]:
    """Computes what the query heads of a layer gather, before the output projection.

    Args:
      config: as in `decoder`.
      layer: the leaves of one layer.
      x: the stream behind the norm before attention.
      local: as in `decoder_layer`.

    Returns:
      One vector of value dimensions per head.
    """
    q = _project("btd,dhk->bthk", x, layer, "query")
    k = _project("btd,dhk->bthk", x, layer, "key")
    v = _project("btd,dhk->bthk", x, layer, "value")
    count, groups = q.shape[2], k.shape[2]
    if count % groups:
        raise ValueError(
            f"expected as many query heads for every kv head, got {count} for {groups}"
        )
    if "query_norm" in layer:
        q = rms_norm(config, q, layer["query_norm"])
        k = rms_norm(config, k, layer["key_norm"])
    cos, sin = _turns(config, x.shape[1], q.shape[-1], local)
    layout = config.rotary.layout
    q, k = _rotated(q, cos, sin, layout), _rotated(k, cos, sin, layout)
    q = q.reshape(*q.shape[:2], groups, count // groups, q.shape[-1])
    scores = jnp.einsum("btkgd,bskd->bkgts", q * jnp.asarray(config.logit_scale, q.dtype), k)
    scores = _capped(scores, config.attention_cap)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    seen = _seen(config, x.shape[1], local)
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30)).astype(v.dtype)
    y = jnp.einsum("bkgts,bskd->btkgd", weights, v)
    return y.reshape(*y.shape[:2], count, y.shape[-1])


def _turns(
    config: DecoderConfig, length: int, head_dim: int, local: bool | Array
) -> tuple[Array, Array]:
    """Cosine and sine of the angle of every pair at every position, ``[length, head_dim / 2]``."""
    table = config.rotary.frequencies(head_dim)
    if config.local_rotary is not None:
        near = config.local_rotary.frequencies(head_dim)
        table = (
            (near if local else table) if isinstance(local, bool) else jnp.where(local, near, table)
        )
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * table
    return jnp.cos(angles), jnp.sin(angles)


def _rotated(x: Array, cos: Array, sin: Array, layout: str) -> Array:
    """Heads ``[batch, length, heads, head_dim]`` turned by their positions."""
    cos, sin = (z[:, None].astype(x.dtype) for z in (cos, sin))
    if layout == "interleaved":
        a, b = x[..., 0::2], x[..., 1::2]
        pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1)
        return pairs.reshape(x.shape)
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _seen(config: DecoderConfig, length: int, local: bool | Array) -> Array:
    """Which position, by row, sees which."""
    at = jnp.arange(length)
    back = at[:, None] - at[None, :]
    seen = back >= 0
    if local is False or config.window is None:
        return seen
    near = back < config.window
    return seen & (near if local is True else near | ~jnp.asarray(local))


def _capped(x: Array, cap: float | None) -> Array:
    return x if cap is None else cap * jnp.tanh(x / cap)
