"""The leaves of a decoder by Hugging Face's names, one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from ifjax.models.decoder_widths import KINDS, TOP, DecoderWidths

_PLAIN = {
    "self_attn.q_proj.weight": "query",
    "self_attn.k_proj.weight": "key",
    "self_attn.v_proj.weight": "value",
    "self_attn.o_proj.weight": "out",
    "self_attn.q_proj.bias": "query_bias",
    "self_attn.k_proj.bias": "key_bias",
    "self_attn.v_proj.bias": "value_bias",
    "self_attn.o_proj.bias": "out_bias",
    "self_attn.q_norm.weight": "query_norm",
    "self_attn.k_norm.weight": "key_norm",
    "mlp.gate_proj.weight": "gate",
    "mlp.up_proj.weight": "up",
    "mlp.down_proj.weight": "down",
    "mlp.gate_proj.bias": "gate_bias",
    "mlp.up_proj.bias": "up_bias",
    "mlp.down_proj.bias": "down_bias",
    "input_layernorm.weight": "attention_norm",
}
_TWO_NORMS = {"post_attention_layernorm.weight": "ffn_norm"}
_FOUR_NORMS = {
    "post_attention_layernorm.weight": "attention_post_norm",
    "pre_feedforward_layernorm.weight": "ffn_norm",
    "post_feedforward_layernorm.weight": "ffn_post_norm",
}
TOP_NAMES = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm"}
HEAD = "lm_head.weight"

_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
_IGNORED = re.compile(r".*rotary_emb\.inv_freq|(model\.)?(vision_tower|multi_modal_projector)\..*")


@runtime_checkable
class Tensors(Protocol):
    """Arrays by name, of which one is read at a time."""

    def names(self) -> Collection[str]:
        """All names."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The array of a name, ``[out, in]`` as torch has it."""
        ...


class Place(NamedTuple):
    """Where a tensor belongs.

    Attributes:
      name: Hugging Face's, as ``model.layers.3.mlp.up_proj.weight``.
      layer: number of the layer, or None.
      leaf: of the decoder.
    """

    name: str
    layer: int | None
    leaf: str


def places(leaves: Collection[str], layers: int, post_norms: bool, tied: bool) -> Iterator[Place]:
    """Every tensor of a checkpoint whose layers have these leaves, in order.

    >>> places(["up"], 2, False, True).__next__().name
    'model.embed_tokens.weight'
    """
    for name, leaf in TOP_NAMES.items():
        yield Place(name, None, leaf)
    if not tied:
        yield Place(HEAD, None, "head")
    inside = _PLAIN | (_FOUR_NORMS if post_norms else _TWO_NORMS)
    for number in range(layers):
        for name, leaf in inside.items():
            if leaf in leaves:
                yield Place(f"model.layers.{number}.{name}", number, leaf)


def usual_name(name: str) -> str | None:
    """The name with the prefix ``model.``; None for what no text decoder has.

    >>> usual_name("language_model.model.norm.weight")
    'model.norm.weight'
    """
    if _IGNORED.fullmatch(name):
        return None
    if name.endswith(HEAD):
        return HEAD
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name


def shape_of(leaf: str, widths: DecoderWidths) -> tuple[int, ...]:
    """Shape of a leaf of the decoder at some widths."""
    return tuple(getattr(widths, kind) for kind in (TOP | KINDS)[leaf])


def torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor of a leaf.

    >>> torch_shape("query", (8, 4, 2)), torch_shape("out", (4, 2, 8)), torch_shape("down", (3, 8))
    ((8, 8), (8, 8), (8, 3))
    """
    if leaf == "embedding":
        return shape
    if leaf in ("query", "key", "value"):
        return shape[1] * shape[2], shape[0]
    if leaf == "out":
        return shape[2], shape[0] * shape[1]
    if leaf in ("query_bias", "key_bias", "value_bias"):
        return (shape[0] * shape[1],)
    return shape[::-1]


def from_torch(leaf: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A view of a tensor as the leaf of a decoder."""
    return (tensor if leaf == "embedding" else tensor.T).reshape(shape)


def to_torch(leaf: str, array: Any) -> np.ndarray:
    """The tensor of a leaf, contiguous."""
    array = np.asarray(array)
    if leaf == "embedding":
        return np.ascontiguousarray(array)
    turned = array.reshape(torch_shape(leaf, array.shape)[::-1]).T
    return np.ascontiguousarray(turned)


def read_tree(
    tensors: Tensors,
    widths: DecoderWidths,
    leaves: Collection[str],
    *,
    post_norms: bool,
    tied: bool,
    scan: bool,
    dtype: Any,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The parameters of a decoder on the host, tensor by tensor.

    Beside the tree one tensor is held at a time. Tensors that are memory maps stay what they are.

    Args:
      tensors: of the checkpoint.
      widths: that its configuration says.
      leaves: of its layers.
      post_norms: whether what attention and feed-forward part give is normalised.
      tied: whether the head is the embedding.
      scan: layers stacked on axis 0, else a list.
      dtype: of the leaves; None for that of the file.
      progress: told how many tensors of how many have been read.

    Returns:
      A tree of numpy arrays.

    Raises:
      ValueError: naming the tensors that are missing, unexpected, or of another shape or dtype.
    """
    known = {usual_name(name): name for name in tensors.names()}
    wanted = list(places(leaves, widths.layers, post_norms, tied))
    _check_names(known, wanted, tied)
    tree: dict[str, Any] = {}
    layers: Any = {} if scan else [{} for _ in range(widths.layers)]
    for count, (name, number, leaf) in enumerate(wanted):
        shape = shape_of(leaf, widths)
        tensor = tensors.read(known[name])
        _check_tensor(known[name], tensor, torch_shape(leaf, shape))
        array, kept = from_torch(leaf, tensor, shape), dtype or tensor.dtype
        if isinstance(tensor, np.memmap) and kept != tensor.dtype:
            raise ValueError(
                f"{known[name]}: expected the dtype of the file, {tensor.dtype}, for it is mapped, "
                f"got {kept}"
            )
        if number is None or not scan:
            place = tree if number is None else layers[number]
            is_map = isinstance(tensor, np.memmap)
            place[leaf] = array if is_map else np.array(array, kept, order="C")
        else:
            if leaf not in layers:
                layers[leaf] = np.empty((widths.layers, *shape), kept)
            layers[leaf][number] = array
        if progress is not None:
            progress(count + 1, len(wanted))
    return {**tree, "layers": layers}


def _check_names(known: Mapping[str | None, str], wanted: list[Place], tied: bool) -> None:
    names = {place.name for place in wanted}
    missing = [place.name for place in wanted if place.name not in known]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} tensors are missing, such as {missing[0]}: the "
            "configuration and the files are not of one network, or a file is not there"
        )
    left = [old for new, old in known.items() if new is not None and new not in names]
    left = [name for name in left if not (tied and name.endswith(HEAD))]
    if left:
        raise ValueError(
            f"{len(left)} tensors have no place in this decoder, such as {left[0]}: the "
            "configuration and the files are not of one network"
        )


def _check_tensor(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape} by the configuration, got {tensor.shape}")
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected floating point weights, got {tensor.dtype}; quantised checkpoints "
            "are read from GGUF, or dequantise them first"
        )
