"""Hugging Face's config.json of a decoder: what it says, and what it has to say after a cut."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ifjax.models.decoder import DecoderConfig, FrequencyScaling, Rotary
from ifjax.models.decoder_widths import DecoderWidths


class Family(NamedTuple):
    """What a model type means where its config says nothing.

    Attributes:
      defaults: of keys that may be absent.
      gemma: norms of 1 + weight and embeddings times the root of the width.
      post_norms: norms on what attention and feed-forward part give.
      qk_norm: norms of queries and keys.
      biases: of query, key and value, whatever the config says.
      head_check: whether transformers 5 wants the hidden size to be a multiple of the heads.
    """

    defaults: Mapping[str, Any]
    gemma: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    biases: bool = False
    head_check: bool = False


_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
_GEMMA23 = _GEMMA | {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
FAMILIES = {
    "llama": Family({}, head_check=True),
    "mistral": Family({"sliding_window": 4096, "num_key_value_heads": 8}),
    "qwen2": Family({"num_attention_heads": 32, "num_key_value_heads": 32}, biases=True),
    "qwen3": Family(
        {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128}, qk_norm=True
    ),
    "gemma2": Family(
        _GEMMA23 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        gemma=True,
        post_norms=True,
        head_check=True,
    ),
    "gemma3_text": Family(
        _GEMMA23
        | {"vocab_size": 262_208, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
        | {"sliding_window_pattern": 6},
        gemma=True,
        post_norms=True,
        qk_norm=True,
        head_check=True,
    ),
}
"""The model types that are read and written."""

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}


def text_config(source: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that is about the text decoder.

    Raises:
      ValueError: for a model type that is not known.

    Example:
      >>> text_config({"model_type": "gemma3", "text_config": {"hidden_size": 8}})["model_type"]
      'gemma3_text'
    """
    found = dict(source)
    if isinstance(source.get("text_config"), Mapping):
        inner = dict(source["text_config"])
        found = inner | {"model_type": inner.get("model_type", f"{source.get('model_type')}_text")}
    _one_of(found.get("model_type"), "model_type", FAMILIES)
    return found


def value(source: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """A key of a text config, or what its absence means."""
    found = source.get(key)
    if found is None and key not in source:
        found = FAMILIES[source["model_type"]].defaults.get(key)
    return default if found is None else found


def _number(found: Any, where: str) -> float:
    """A positive number, not a string or a boolean; ``where`` is the key."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < 1e300:
        raise ValueError(f"{where}: expected a positive number, got {_said(found)}")
    return float(found)


def _integer(found: Any, where: str) -> int:
    """A positive integer, as `_number`."""
    if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < 2**31:
        raise ValueError(f"{where}: expected a positive integer, got {_said(found)}")
    return found


def _object(found: Any, where: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{where}: expected a JSON object, got {_said(found)}")
    return dict(found)


def _one_of(found: Any, where: str, known: Collection[str]) -> str:
    """One of the names that are known."""
    if not isinstance(found, str) or found not in known:
        raise ValueError(f"{where}: expected one of {', '.join(known)}, got {found!r}")
    return found


def _said(found: Any) -> str:
    given = "none" if found is None else textwrap.shorten(repr(found), 80)
    return f"{given}; write it as in the config.json that the weights came with"


def widths_in(source: Mapping[str, Any]) -> DecoderWidths:
    """The widths that a text config says.

    Raises:
      ValueError: naming a key that is missing or no positive number.

    Example:
      >>> source = {"model_type": "llama", "vocab_size": 11, "hidden_size": 8}
      >>> source |= {"intermediate_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
      >>> widths_in(source).head_dim
      2
    """

    def number(key: str, default: int | None = None) -> int:
        return _integer(value(source, key, default), key)

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    return DecoderWidths(
        vocabulary=number("vocab_size"),
        hidden=hidden,
        ffn=number("intermediate_size"),
        query_heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", hidden // heads),
        layers=number("num_hidden_layers"),
    )


def extra_leaves(source: Mapping[str, Any]) -> tuple[str, ...]:
    """The optional leaves of a decoder that a text config means."""
    kind, found = FAMILIES[source["model_type"]], []
    if kind.biases or value(source, "attention_bias"):
        found += ["query_bias", "key_bias", "value_bias"]
    if value(source, "attention_bias") and not kind.biases:
        found.append("out_bias")
    if value(source, "mlp_bias"):
        found += ["gate_bias", "up_bias", "down_bias"]
    if kind.qk_norm:
        found += ["query_norm", "key_norm"]
    if kind.post_norms:
        found += ["attention_post_norm", "ffn_post_norm"]
    return tuple(found)


def decoder_config(source: Mapping[str, Any], dtype: Any = np.float32) -> DecoderConfig:
    """The numbers of a decoder that a text config says.

    Args:
      source: the text config.
      dtype: of the weights; transformers rounds Gemma's embedding factor to it.

    Returns:
      The config.

    Raises:
      ValueError: for an activation or a kind of rotary positions that is not known, and for a key
        that is missing or of another kind, with its name.

    Example:
      >>> source = {"model_type": "llama", "vocab_size": 11, "hidden_size": 8, "rope_theta": 100.0}
      >>> source |= {"intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
      >>> decoder_config(source).logit_scale
      0.5
    """
    kind, widths = FAMILIES[source["model_type"]], widths_in(source)
    key = "hidden_activation" if kind.gemma else "hidden_act"
    activation = _one_of(value(source, key, "silu"), key, _ACTIVATIONS)
    windowed, window = _windowed(source, widths.layers), value(source, "sliding_window")
    gemma3 = source["model_type"] == "gemma3_text"

    def optional(key: str, is_read: bool) -> float | None:
        found = value(source, key) if is_read else None
        return None if found is None else _number(found, key)

    return DecoderConfig(
        logit_scale=logit_scale(source, widths.head_dim),
        eps=_number(value(source, "rms_norm_eps", 1e-6), "rms_norm_eps"),
        norm_offset=1.0 if kind.gemma else 0.0,
        embedding_scale=embedding_scale(source, widths.hidden, dtype),
        activation="gelu" if _ACTIVATIONS[activation] == "gelu" else "silu",
        rotary=_rotary(source, "full_attention"),
        local_rotary=_rotary(source, "sliding_attention") if gemma3 else None,
        window=_integer(window, "sliding_window") if any(windowed) else None,
        windowed=windowed,
        attention_cap=optional("attn_logit_softcapping", source["model_type"] == "gemma2"),
        output_cap=optional("final_logit_softcapping", kind.gemma),
    )


def logit_scale(source: Mapping[str, Any], head_dim: int) -> float:
    """What transformers multiplies the products of queries and keys by."""
    scalar = (
        value(source, "query_pre_attn_scalar") if FAMILIES[source["model_type"]].gemma else None
    )
    return _number(scalar or head_dim, "query_pre_attn_scalar") ** -0.5


def embedding_scale(source: Mapping[str, Any], hidden: int, dtype: Any) -> float:
    """What transformers multiplies embeddings by, in the dtype of the weights."""
    return (
        float(np.asarray(math.sqrt(hidden)).astype(dtype))
        if FAMILIES[source["model_type"]].gemma
        else 1.0
    )


def _windowed(source: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    types = source.get("layer_types")
    if types is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list | tuple) or len(types) != layers:
            raise ValueError(f"layer_types: expected a list of {layers} names, got {_said(types)}")
        for i, name in enumerate(types):
            _one_of(name, f"layer_types[{i}]", known)
        found = tuple(t == "sliding_attention" for t in types)
    else:
        found = tuple(_is_windowed(source, i) for i in range(layers))
    return found if any(found) and value(source, "sliding_window") else ()


def _is_windowed(source: Mapping[str, Any], i: int) -> bool:
    match source["model_type"]:
        case "mistral":
            return True
        case "qwen2" | "qwen3":
            first = value(source, "max_window_layers", 28)
            if isinstance(first, bool) or not isinstance(first, int):
                raise ValueError(f"max_window_layers: expected an integer, got {_said(first)}")
            return bool(value(source, "use_sliding_window")) and i >= first
        case "gemma2":
            return i % 2 == 0
        case "gemma3_text":
            key = "sliding_window_pattern"
            return (i + 1) % _integer(value(source, key), key) != 0
        case _:
            return False


def _rotary(source: Mapping[str, Any], layer_type: str) -> Rotary:
    """Rotary positions of one kind of layers, by the keys of transformers 4 or 5."""
    given, local = source.get("rope_parameters"), layer_type == "sliding_attention"
    where, key = "rope_scaling", "rope_local_base_freq" if local else "rope_theta"
    if given is not None:
        where, scaling = "rope_parameters", _object(given, "rope_parameters")
        if layer_type in scaling:
            where += f".{layer_type}"
            scaling = _object(scaling[layer_type], where)
        base, key = scaling.get("rope_theta"), f"{where}.rope_theta"
    else:
        base = value(source, key)
        scaling = {} if local else _object(source.get(where) or {}, where)
    if base is None:
        key = "rope_theta"
        base = value(source, key, 10_000.0)
    base = _number(base, key)

    def number(name: str) -> float:
        return _number(scaling.get(name), f"{where}.{name}")

    kind = scaling.get("rope_type", scaling.get("type", "default"))
    partial = scaling.get("partial_rotary_factor", source.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"partial_rotary_factor: expected 1, got {partial!r}")
    match kind:
        case "default":
            return Rotary(base)
        case "linear":
            return Rotary(base, factor=number("factor"))
        case "llama3":
            return Rotary(
                base,
                scaling=FrequencyScaling(
                    number("factor"),
                    number("low_freq_factor"),
                    number("high_freq_factor"),
                    int(number("original_max_position_embeddings")),
                ),
            )
        case _:
            known = "default, linear or llama3"
            raise ValueError(f"{where}.rope_type: expected {known}, got {kind!r}")


def cut_config(
    source: Mapping[str, Any],
    widths: DecoderWidths,
    windowed: Sequence[bool] = (),
    tied: bool | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """The text config of the network at other widths: nothing but these changes.

    Args:
      source: the text config before.
      widths: of the small network.
      windowed: whether each of its layers has the window; () for none.
      tied: whether the head is the embedding; None to leave it.
      dtype: of the weights, or None to leave it.

    Returns:
      The config.

    Raises:
      ValueError: for widths that the format cannot say, with the numbers that would do.

    Example:
      >>> source = {"model_type": "llama", "vocab_size": 11, "hidden_size": 8}
      >>> source |= {"intermediate_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
      >>> small = cut_config(source, DecoderWidths(11, 8, 12, 2, 2, 2, 2))
      >>> overrides(source, small)
      {'intermediate_size': 12, 'num_attention_heads': 2, 'num_key_value_heads': 2, 'head_dim': 2}
    """
    _check_widths(source, widths)
    found = dict(source) | {
        "hidden_size": widths.hidden,
        "intermediate_size": widths.ffn,
        "num_attention_heads": widths.query_heads,
        "num_key_value_heads": widths.kv_heads,
        "head_dim": widths.head_dim,
        "num_hidden_layers": widths.layers,
        "vocab_size": widths.vocabulary,
    }
    reads_types = source["model_type"] not in ("llama", "mistral")
    if found.get("layer_types") is not None or (any(windowed) and reads_types):
        local = list(windowed) or [False] * widths.layers
        found["layer_types"] = ["sliding_attention" if w else "full_attention" for w in local]
    if value(source, "use_sliding_window"):
        full = [i for i, w in enumerate(windowed) if not w]
        found["max_window_layers"] = full[-1] + 1 if full else 0
    if tied is not None:
        found["tie_word_embeddings"] = tied
    if dtype is not None:
        found["dtype" if "dtype" in found else "torch_dtype"] = dtype
    return found


def overrides(source: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config that have other values than before, in the order of the first."""
    order = [k for k in source if k in small] + [k for k in small if k not in source]
    return {k: small[k] for k in order if k not in source or source[k] != small[k]}


def _check_widths(source: Mapping[str, Any], widths: DecoderWidths) -> None:
    if widths.value_dim != widths.head_dim:
        raise ValueError(
            f"value_dim {widths.value_dim} and head_dim {widths.head_dim}: a config.json has one "
            f"head_dim for queries, keys and values; keep {widths.head_dim} values of every head"
        )
    hidden, heads = widths.hidden, widths.query_heads
    if FAMILIES[source["model_type"]].head_check and hidden % heads:
        would = [h for h in range(1, hidden + 1) if hidden % h == 0 and h % widths.kv_heads == 0]
        near = ", ".join(map(str, sorted(sorted(would, key=lambda h: abs(h - heads))[:2])))
        below, above = hidden // heads * heads, -(-hidden // heads) * heads
        raise ValueError(
            f"hidden width {hidden} and {heads} query heads: transformers loads a "
            f"{source['model_type']} only where the heads divide the hidden width; keep a hidden "
            f"width of {' or '.join(str(x) for x in (below, above) if x)}, or {near} heads"
        )
