"""Which groups of a decoder's graph are its feed-forward neurons, its heads, its stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ifjax.graph.graph import DependencyGraph
from ifjax.models.decoder_widths import KINDS, TOP
from ifjax.structure.structure import Group

# In the order of precedence: a kv head drags its query heads along.
_PRECEDENCE = ("hidden", "kv_heads", "query_heads", "value_dim", "head_dim", "ffn", "vocabulary")


def groups_by_kind(graph: DependencyGraph) -> dict[str, tuple[str, ...]]:
    """The names of a decoder's groups, by the kind of width that they are.

    Args:
      graph: of `ifjax.models.decoder`, layers scanned or in a list.

    Returns:
      By ``hidden``, ``ffn``, ``kv_heads`` (each with its query heads), ``query_heads`` (those of
      one kv head) and ``value_dim``, as far as the graph has them.

    Raises:
      ValueError: for the graph of another function.

    Example:
      >>> import functools, ifjax, jax, jax.numpy as jnp
      >>> from ifjax.models import DecoderConfig, DecoderWidths, decoder, decoder_shapes
      >>> shapes = decoder_shapes(DecoderWidths(11, 8, 16, 4, 2, 4, layers=3))
      >>> tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
      >>> graph = ifjax.trace(functools.partial(decoder, DecoderConfig(0.5)), shapes, tokens)
      >>> groups_by_kind(graph)["ffn"]
      ('layers/gate',)
    """
    found: dict[str, list[str]] = {}
    for group in graph.groups:
        found.setdefault(_kind(group), []).append(group.name)
    return {kind: tuple(names) for kind, names in found.items()}


def sparsities(graph: DependencyGraph, by_kind: Mapping[str, Any]) -> dict[str, Any]:
    """Fractions to remove by group name, for `DependencyGraph.spec`, from fractions by kind.

    Raises:
      ValueError: for a kind that the graph has no group of.
    """
    known = groups_by_kind(graph)
    for kind in by_kind:
        if kind not in known:
            raise ValueError(f"{kind}: expected one of {', '.join(known)}, which can be cut here")
    return {name: value for kind, value in by_kind.items() for name in known[kind]}


def _kind(group: Group) -> str:
    kinds = set()
    for member in group.members:
        *front, leaf = member.path.split("/")
        axes = (TOP | KINDS).get(leaf)
        if axes is None:
            raise ValueError(f"{member.path}: no leaf of a decoder")
        stacked = front == ["layers"] or front[-1:] == ["layers"]
        kinds.add(axes[member.axis - stacked])
    return next(kind for kind in _PRECEDENCE if kind in kinds)
