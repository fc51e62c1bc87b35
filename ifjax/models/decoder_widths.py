"""The widths of a decoder: read off its parameters, and parameters made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

KINDS = {
    "attention_norm": ("hidden",),
    "query": ("hidden", "query_heads", "head_dim"),
    "key": ("hidden", "kv_heads", "head_dim"),
    "value": ("hidden", "kv_heads", "value_dim"),
    "out": ("query_heads", "value_dim", "hidden"),
    "query_bias": ("query_heads", "head_dim"),
    "key_bias": ("kv_heads", "head_dim"),
    "value_bias": ("kv_heads", "value_dim"),
    "out_bias": ("hidden",),
    "query_norm": ("head_dim",),
    "key_norm": ("head_dim",),
    "attention_post_norm": ("hidden",),
    "ffn_norm": ("hidden",),
    "gate": ("hidden", "ffn"),
    "up": ("hidden", "ffn"),
    "down": ("ffn", "hidden"),
    "gate_bias": ("ffn",),
    "up_bias": ("ffn",),
    "down_bias": ("hidden",),
    "ffn_post_norm": ("hidden",),
}
"""The leaves of a layer, and the kind of width along each axis."""

OPTIONAL = tuple(k for k in KINDS if k.endswith(("bias", "post_norm", "query_norm", "key_norm")))
"""Those of them that not every network has."""

TOP = {
    "embedding": ("vocabulary", "hidden"),
    "norm": ("hidden",),
    "head": ("hidden", "vocabulary"),
}
"""The leaves outside of the layers; ``head`` is optional."""


@dataclasses.dataclass(frozen=True)
class DecoderWidths:
    """One width per kind.

    Attributes:
      vocabulary: tokens.
      hidden: of the residual stream.
      ffn: neurons of the feed-forward part.
      query_heads: a multiple of ``kv_heads``.
      kv_heads: heads of keys and values.
      head_dim: dimensions of a query and a key.
      layers: their number.
      value_dim: dimensions of a value; 0, the default, for ``head_dim``.
    """

    vocabulary: int
    hidden: int
    ffn: int
    query_heads: int
    kv_heads: int
    head_dim: int
    layers: int
    value_dim: int = 0

    def __post_init__(self) -> None:
        """Fills in ``value_dim``.

        Raises:
          ValueError: for a width that is not positive, or heads that do not divide.
        """
        if not self.value_dim:
            object.__setattr__(self, "value_dim", self.head_dim)
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"{field.name}: expected a positive width, got {getattr(self, field.name)}"
                )
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"query_heads: expected a multiple of kv_heads={self.kv_heads}, "
                f"got {self.query_heads}"
            )


def decoder_shapes(
    widths: DecoderWidths,
    *,
    scan: bool = True,
    tied: bool = True,
    extra: Sequence[str] = (),
    dtype: Any = jnp.float32,
) -> dict[str, Any]:
    """The parameters of `ifjax.models.decoder.decoder` as structs: what `ifjax.trace` needs.

    Args:
      widths: of everything.
      scan: layers stacked on axis 0, to be scanned; else a list of them.
      tied: no ``head`` of its own.
      extra: names of optional leaves, see `OPTIONAL`.
      dtype: of all leaves.

    Returns:
      A tree of `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: for an unknown name in ``extra``.

    Example:
      >>> from ifjax.models import DecoderWidths, decoder_shapes
      >>> shapes = decoder_shapes(DecoderWidths(11, 8, 16, 4, 2, 4, layers=3))
      >>> shapes["layers"]["key"].shape
      (3, 8, 2, 4)
    """
    unknown = [name for name in extra if name not in OPTIONAL]
    if unknown:
        raise ValueError(f"extra: expected names of {', '.join(OPTIONAL)}; got {unknown[0]!r}")

    def struct(kinds: tuple[str, ...], *front: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*front, *(getattr(widths, k) for k in kinds)), dtype)

    wanted = {k: v for k, v in KINDS.items() if k not in OPTIONAL or k in extra}
    top = {k: struct(v) for k, v in TOP.items() if k != "head" or not tied}
    if scan:
        return {**top, "layers": {k: struct(v, widths.layers) for k, v in wanted.items()}}
    return {
        **top,
        "layers": [{k: struct(v) for k, v in wanted.items()} for _ in range(widths.layers)],
    }


def init_decoder(
    key: Key[Array, ""],
    widths: DecoderWidths,
    *,
    norm_offset: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """Random parameters: normal, of variance one over the width that is contracted.

    Args:
      key: of the random numbers.
      widths: of everything.
      norm_offset: that of the config; norms begin at a gain of one.
      **options: of `decoder_shapes`.

    Returns:
      The tree.

    Example:
      >>> from ifjax.models import DecoderWidths, init_decoder
      >>> params = init_decoder(jax.random.key(0), DecoderWidths(11, 8, 16, 4, 2, 4, layers=3))
      >>> params["layers"]["gate"].shape
      (3, 8, 16)
    """
    shapes = decoder_shapes(widths, **options)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    found = []
    for number, (path, leaf) in enumerate(leaves):
        name = str(path[-1].key)
        if name.endswith("norm"):
            found.append(jnp.full(leaf.shape, 1.0 - norm_offset, leaf.dtype))
        elif name.endswith("bias"):
            found.append(jnp.zeros(leaf.shape, leaf.dtype))
        else:
            kinds = (TOP | KINDS)[name]
            into = kinds[1:] if name == "embedding" else kinds[:-1] if name == "out" else kinds[:1]
            fan = int(np.prod([getattr(widths, k) for k in into]))
            noise = jax.random.normal(jax.random.fold_in(key, number), leaf.shape, jnp.float32)
            found.append((noise * fan**-0.5).astype(leaf.dtype))
    return jax.tree.unflatten(tree, found)


def layer_widths(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every kind of width, layer by layer.

    Args:
      params: the tree, of arrays or structs.

    Returns:
      Of ``hidden``, ``ffn``, ``query_heads``, ``kv_heads``, ``head_dim`` and ``value_dim`` one
      number per layer.

    Raises:
      ValueError: naming the leaf that is missing, unknown, or does not fit to the others.

    Example:
      >>> from ifjax.models import DecoderWidths, decoder_shapes
      >>> shapes = decoder_shapes(DecoderWidths(11, 8, 16, 4, 2, 4, layers=3))
      >>> layer_widths(shapes)["ffn"]
      (16, 16, 16)
    """
    hidden = _checked(params, TOP, ("head",), "", {}, 0)["hidden"]
    layers = params.get("layers")
    if isinstance(layers, Mapping):
        count = next(iter(layers.values())).shape[0] if layers else 0
        each = [_checked(layers, KINDS, OPTIONAL, "layers/", {"hidden": hidden}, count)] * count
    else:
        each = [
            _checked(layer, KINDS, OPTIONAL, f"layers/{i}/", {"hidden": hidden}, 0)
            for i, layer in enumerate(layers or ())
        ]
    if not each:
        raise ValueError("layers: expected at least one, got none")
    return {kind: tuple(w[kind] for w in each) for kind in each[0]}


def _checked(
    tree: Mapping[str, Any],
    kinds: Mapping[str, tuple[str, ...]],
    optional: Sequence[str],
    where: str,
    known: Mapping[str, int],
    stacked: int,
) -> dict[str, int]:
    """Widths of some leaves, each of one number."""
    found = dict(known)
    missing = [name for name in kinds if name not in tree and name not in optional]
    if missing:
        raise ValueError(f"{where}{missing[0]}: expected this leaf of a decoder, got none")
    for name, leaf in tree.items():
        if name not in kinds:
            if not where and name == "layers":
                continue
            raise ValueError(f"{where}{name}: no leaf of a decoder; expected {', '.join(kinds)}")
        shape = tuple(leaf.shape)
        front = (stacked,) if stacked else ()
        wanted = (*front, *(found.get(kind, "any") for kind in kinds[name]))
        fits = len(shape) == len(wanted) and all(
            w in ("any", s) for w, s in zip(wanted, shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{where}{name}: expected shape {wanted}, got {shape}")
        found |= dict(zip(kinds[name], shape[len(front) :], strict=True))
    return found


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with a list of layers instead of stacked leaves; numpy arrays become views.

    >>> from ifjax.models import DecoderWidths, decoder_shapes
    >>> shapes = decoder_shapes(DecoderWidths(5, 2, 2, 1, 1, 2, layers=3), scan=False)
    >>> unstack_layers(shapes) is not shapes
    True
    """
    layers = params["layers"]
    if not isinstance(layers, Mapping):
        return dict(params)
    count = len(next(iter(layers.values())))
    return {**params, "layers": [{k: v[i] for k, v in layers.items()} for i in range(count)]}


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with leaves stacked on axis 0 instead of a list of layers.

    Raises:
      ValueError: where layers are not of one shape, naming leaf and layer.
    """
    layers = params["layers"]
    if isinstance(layers, Mapping):
        return dict(params)
    for number, layer in enumerate(layers):
        for name, leaf in layers[0].items():
            if name not in layer or layer[name].shape != leaf.shape:
                got = layer[name].shape if name in layer else None
                raise ValueError(
                    f"layers/{number}/{name}: stacked layers are of one shape: expected "
                    f"{leaf.shape} as in layer 0, got {got}"
                )
    numpy = np if all(isinstance(x, np.ndarray) for x in jax.tree.leaves(layers)) else jnp
    return {**params, "layers": {k: numpy.stack([x[k] for x in layers]) for k in layers[0]}}
