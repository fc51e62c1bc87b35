"""Parameters in MaxText's layout: into a decoder of ours, and back into the same layout.

A tree of MaxText needs no conversion to be compressed by its own function: `ifjax.trace` sees
through boxes and stacked layers. This is for networks whose function is not at hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ifjax.interop.huggingface import uniform_widths
from ifjax.models.decoder import DecoderConfig, FrequencyScaling, Rotary
from ifjax.models.decoder_widths import layer_widths
from ifjax.parallel.sharding import laid_like
from ifjax.tree import leaves_by_path

_TOP = {
    "token_embedder/embedding": "embedding",
    "decoder/decoder_norm/scale": "norm",
    "decoder/logits_dense/kernel": "head",
}
_INSIDE = {
    "self_attention/query/kernel": "query",
    "self_attention/key/kernel": "key",
    "self_attention/value/kernel": "value",
    "self_attention/out/kernel": "out",
    "self_attention/query/bias": "query_bias",
    "self_attention/key/bias": "key_bias",
    "self_attention/value/bias": "value_bias",
    "self_attention/query_norm/scale": "query_norm",
    "self_attention/key_norm/scale": "key_norm",
    "mlp/wi_0/kernel": "gate",
    "mlp/wi_1/kernel": "up",
    "mlp/wo/kernel": "down",
    "pre_self_attention_layer_norm/scale": "attention_norm",
    "post_self_attention_layer_norm/scale": "ffn_norm",
}
_LAYER = re.compile(r"decoder/layers(?:_(\d+))?/(.*)")
# Query scale in the weights, or at run time.
_FOLDED = {"llama2": True, "mistral": True, "qwen2": False, "qwen3": False}


class _Leaf(NamedTuple):
    """Where a leaf of MaxText belongs: the layer's number, None outside or where stacked."""

    name: str
    layer: int | None
    stacked: bool


def maxtext_config(settings: Mapping[str, Any]) -> DecoderConfig:
    """The numbers of a decoder that MaxText's configuration says.

    Args:
      settings: the values that MaxText runs with: ``decoder_block`` (``llama2``, ``mistral``,
        ``qwen2`` or ``qwen3``), ``head_dim`` of the network before any cut,
        ``rope_max_timescale``, and where they are not the defaults ``rope_type``, ``model_name``,
        ``normalization_layer_epsilon``, ``logits_via_embedding``, ``normalize_embedding_logits``,
        ``mlp_activations``.

    Returns:
      The config.

    Raises:
      ValueError: for a block that is not known, or numbers that the decoder does not have.

    Example:
      >>> settings = {"decoder_block": "llama2", "head_dim": 64, "rope_max_timescale": 1e5}
      >>> maxtext_config(settings).logit_scale  # D^-1/2 is folded into the queries
      1.0
    """
    block = settings.get("decoder_block")
    if block not in _FOLDED:
        raise ValueError(
            f"decoder_block: expected one of {', '.join(_FOLDED)}, got {block!r}; other networks "
            "are compressed by their own function, which ifjax.trace reads"
        )
    if settings.get("logits_via_embedding") and settings.get("normalize_embedding_logits", True):
        raise ValueError(
            "normalize_embedding_logits: expected false for tied embeddings of a "
            f"{block} block, got true: the logits would be divided by the root of the width"
        )
    activation = [*settings.get("mlp_activations", ("silu", "linear"))]
    if activation != ["silu", "linear"]:
        raise ValueError(f"mlp_activations: expected ['silu', 'linear'], got {activation}")
    kinds = (str(settings.get("rope_type", "")), str(settings.get("model_name", "")))
    llama31 = any(kind.startswith("llama3.1") for kind in kinds)
    return DecoderConfig(
        logit_scale=1.0 if _FOLDED[block] else settings["head_dim"] ** -0.5,
        eps=float(settings.get("normalization_layer_epsilon", 1e-5)),
        rotary=Rotary(
            float(settings.get("rope_max_timescale", 10_000)),
            scaling=FrequencyScaling(8.0, 1.0, 4.0, 8192) if llama31 else None,
            layout="interleaved" if llama31 else "half",
        ),
    )


def from_maxtext(tree: PyTree, *, scan_axis: int | None = None) -> dict[str, Any]:
    """The parameters of a decoder from a tree of MaxText.

    Args:
      tree: nested dicts of arrays or structs, from ``params/params`` or any level of it; leaves
        may be boxed (``nn.LogicallyPartitioned``, nnx variables).
      scan_axis: the axis along which scanned layers are stacked; None to tell it from the shapes.

    Returns:
      A tree for `ifjax.models.decoder`, with layers stacked on axis 0, or a list of them where
      the tree was not scanned.

    Raises:
      ValueError: for a leaf that has no place, or where the shapes do not tell the axis.

    Example:
      >>> tree = {"decoder": {"decoder_norm": {"scale": jnp.ones(2)}}}
      >>> tree["token_embedder"] = {"embedding": jnp.ones((5, 2))}
      >>> from_maxtext(tree)
      Traceback (most recent call last):
        ...
      ValueError: layers: expected at least one, got none
    """
    found = {path: (_leaf_of(path), x) for path, x in leaves_by_path(tree).items()}
    top = {leaf.name: x for leaf, x in found.values() if leaf.layer is None and not leaf.stacked}
    stacked = {leaf.name: x for leaf, x in found.values() if leaf.stacked}
    if stacked:
        axis = _scan_axis(top, stacked) if scan_axis is None else scan_axis
        layers: Any = {name: _moved(x, axis, 0) for name, x in stacked.items()}
    else:
        numbers = sorted({leaf.layer for leaf, _ in found.values() if leaf.layer is not None})
        layers = [
            {leaf.name: x for leaf, x in found.values() if leaf.layer == number}
            for number in numbers
        ]
    params = {**top, "layers": layers}
    layer_widths(params)  # says what is missing or does not fit
    return params


def to_maxtext(params: Mapping[str, Any], like: PyTree, *, scan_axis: int | None = None) -> PyTree:
    """The tree of MaxText from the parameters of a decoder, dense or cut.

    Args:
      params: of the decoder, as `from_maxtext` gives them; layers stacked or not as there.
      like: the tree that they came from: its structure and boxes are kept, and of its shardings
        every mesh axis that divides the small width (a warning names the others).
      scan_axis: as in `from_maxtext`.

    Returns:
      A tree of the structure of ``like``.

    Raises:
      ValueError: where layers are not of one width, the leaves are not the same, or ``like`` has
        another number of layers and is not scanned.
    """
    uniform_widths(params)
    places = {path: _leaf_of(path) for path in leaves_by_path(like)}
    layers = params["layers"]
    scanned = isinstance(layers, Mapping)
    if scanned != any(leaf.stacked for leaf in places.values()):
        raise ValueError(
            "expected stacked layers where the tree of MaxText has them, and a list where it has "
            "not; see stack_layers and unstack_layers of ifjax.models.decoder_widths"
        )
    axis = scan_axis
    if scanned and axis is None:
        full = {leaf.name: x for leaf, x in zip(places.values(), _arrays(like), strict=True)}
        axis = _scan_axis(full, {k: full[k] for k in layers if k in full})
    made = []
    for path, (name, number, stacked) in places.items():
        try:
            leaf = (
                params[name]
                if not (stacked or number is not None)
                else (
                    layers[name] if stacked else layers[number][name]  # type: ignore[index]
                )
            )
        except (KeyError, IndexError):
            raise ValueError(f"{path}: the parameters have no {name} for it") from None
        made.append(_moved(leaf, 0, axis or 0) if stacked else leaf)
    count = len(layers[next(iter(layers))]) if scanned else len(layers)
    numbers = {leaf.layer for leaf in places.values()} - {None}
    if not scanned and len(numbers) != count:
        raise ValueError(
            f"the parameters have {count} layers, the tree of MaxText {len(numbers)} that are not "
            "stacked: give one with as many"
        )
    return laid_like(jax.tree.unflatten(jax.tree.structure(like), made), like)


def maxtext_overrides(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, int]:
    """The settings of MaxText that a cut changes.

    Args:
      before: parameters of the decoder before, arrays or structs.
      after: those of the small network.

    Returns:
      New values by key; with a ``model_name`` MaxText wants ``override_model_config=true`` beside
      them.

    Raises:
      ValueError: where layers are not of one width, or values and queries not of one head_dim.

    Example:
      >>> from ifjax.models import DecoderWidths, decoder_shapes
      >>> dense, small = (decoder_shapes(DecoderWidths(11, 8, f, 4, 2, 4, 3)) for f in (16, 12))
      >>> maxtext_overrides(dense, small)
      {'base_mlp_dim': 12}
    """
    keys = {
        "hidden": "base_emb_dim",
        "ffn": "base_mlp_dim",
        "query_heads": "base_num_query_heads",
        "kv_heads": "base_num_kv_heads",
        "layers": "base_num_decoder_layers",
        "head_dim": "head_dim",
        "vocabulary": "vocab_size",
    }
    old, new = uniform_widths(before), uniform_widths(after)
    if new.value_dim != new.head_dim:
        raise ValueError(
            f"value_dim {new.value_dim} and head_dim {new.head_dim}: MaxText has one head_dim for "
            f"queries, keys and values; keep {new.head_dim} values of every head"
        )
    return {
        key: getattr(new, kind)
        for kind, key in keys.items()
        if getattr(new, kind) != getattr(old, kind)
    }


def _leaf_of(path: str) -> _Leaf:
    """Where a leaf belongs, by its path with or without prefixes and the end of a box."""
    plain = re.sub(r"/(value|raw_value)$", "", path)
    while plain.startswith("params/"):
        plain = plain.removeprefix("params/")
    if plain in _TOP:
        return _Leaf(_TOP[plain], None, False)
    match = _LAYER.fullmatch(plain)
    if match is None or match[2] not in _INSIDE:
        raise ValueError(
            f"{path}: no leaf of a dense decoder of MaxText ({', '.join(_FOLDED)} blocks); "
            "compress the network by its own function, which ifjax.trace reads"
        )
    number = None if match[1] is None else int(match[1])
    return _Leaf(_INSIDE[match[2]], number, number is None)


def _scan_axis(top: Mapping[str, Any], stacked: Mapping[str, Any]) -> int:
    """The axis of the layers: the one of a norm that is not the hidden width."""
    hidden = top["embedding"].shape[1] if "embedding" in top else None
    shape = tuple(stacked["attention_norm"].shape) if "attention_norm" in stacked else ()
    if len(shape) != 2 or hidden is None or shape[0] == shape[1] or hidden not in shape:
        raise ValueError(
            f"pre_self_attention_layer_norm/scale: expected the hidden width {hidden} and another "
            f"number of layers, got {shape}, which does not tell where layers are stacked; give "
            "scan_axis, param_scan_axis of MaxText"
        )
    return 1 - shape.index(hidden)


def _moved(x: Any, source: int, target: int) -> Any:
    """An array or a struct with one axis elsewhere."""
    if isinstance(x, jax.ShapeDtypeStruct):
        shape = list(x.shape)
        shape.insert(target, shape.pop(source))
        return jax.ShapeDtypeStruct(tuple(shape), x.dtype)
    return (np if isinstance(x, np.ndarray) else jnp).moveaxis(x, source, target)


def _arrays(tree: PyTree) -> list[Any]:
    return list(leaves_by_path(tree).values())
