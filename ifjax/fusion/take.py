"""Re-indexing the neurons of groups: permutations, and plain structural pruning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import PyTree

from ifjax.fusion.execution.merging import applied
from ifjax.fusion.execution.place import is_held, to_devices, to_host
from ifjax.fusion.inputs import checked_indices
from ifjax.fusion.merge import GroupMap
from ifjax.fusion.merge_steps import merges_of
from ifjax.graph.trace import DependencyGraph
from ifjax.namespace import AnyArray, namespace
from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec
from ifjax.structure.leaves import checked_leaves
from ifjax.structure.names import by_group
from ifjax.structure.structure import Group
from ifjax.transport.transport import Transport
from ifjax.tree import leaves_by_path, with_leaves


@with_promotion
def take(
    params: PyTree,
    graph: DependencyGraph | FusionSpec,
    selections: Mapping[str, ArrayLike | Sequence[object]],
) -> PyTree:
    """Re-indexes the neurons of groups, in every leaf that holds them.

    A permutation leaves the function unchanged; a subset is plain structural pruning.

    Args:
      params: the full parameter tree.
      graph: the graph of the function, or a spec made from it.
      selections: by group name, indices ``[k]`` of the neurons to keep, in the order wanted; for a
        group with batch axes also ``[*batch, k]``, a choice for every layer, expert or head.

    Returns:
      A tree of the same structure and dtypes.

    Raises:
      ValueError: for an unknown group, indices that are not integers in range or of another shape,
        or parameters of another network.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.arange(6.0).reshape(2, 3), "w2": jnp.arange(3.0).reshape(3, 1)}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 2)))
      >>> take(params, graph, {"w1": [2, 0]})["w1"].tolist()
      [[2.0, 0.0], [5.0, 3.0]]
    """
    structure = graph.structure
    full = to_host(params) if is_held(params, selections) else params
    leaves = checked_leaves(full, structure)
    named = by_group(structure, selections)
    chosen = {name: checked_indices(structure, name, x) for name, x in named.items()}
    groups = structure.in_order(
        [
            dataclasses.replace(structure.group[name], kept=index.shape[-1])
            for name, index in chosen.items()
        ]
    )
    merges = merges_of(structure, groups, {}, leaves)
    maps = {group.name: _selection(group, chosen[group.name]) for group in groups}
    small = applied(leaves, merges, maps, dict.fromkeys(chosen, "select"))
    given = leaves_by_path(params)
    return with_leaves(params, {**given, **(to_devices(small, given) if is_held(small) else small)})


def _selection(group: Group, index: AnyArray) -> GroupMap | list[GroupMap]:
    """Indices as a map, of every entry where the group has batch axes."""
    if not group.batch:
        return GroupMap(index)
    index = namespace(index).broadcast_to(index, (*group.batch, index.shape[-1]))
    index = index.reshape(-1, index.shape[-1])
    return GroupMap(index) if isinstance(index, jax.Array) else [GroupMap(x) for x in index]


@with_promotion
def compact(
    params: PyTree, spec: FusionSpec, maps: Mapping[str, Transport | ArrayLike | Sequence[object]]
) -> PyTree:
    """Makes a ``keep_shape`` result small: what stands in the places of the kept neurons.

    Args:
      params: what ``apply_maps(..., keep_shape=True)`` or ``fuse_params(..., keep_shape=True)``
        returned, trained further or not. For optimizer states use `ifjax.fuse_tree`.
      spec: its spec.
      maps: its maps; or by group name the indices of the kept neurons (``Transport.targets``).

    Returns:
      The small parameters, as without ``keep_shape``.

    Raises:
      ValueError: for parameters of another network, or a group without targets or with another
        number of them than the spec keeps.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.array([[3.0, 1.0, 2.0]]), "w2": jnp.ones((3, 1))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 1)))
      >>> spec = graph.spec(0.3, method="prune")
      >>> full = ifjax.fuse_params(params, spec, keep_shape=True)
      >>> compact(full, spec, {"w1": [0, 2]})["w1"].tolist()
      [[3.0, 2.0]]
    """
    targets = {
        name: found.targets if isinstance(found, Transport) else jnp.asarray(found)
        for name, found in by_group(spec.structure, maps).items()
    }
    for name, kept in spec.structure.widths.items():
        got = targets[name].shape if name in targets else "none"
        if got[-1:] != (kept,):
            raise ValueError(f"group {name}: expected {kept} kept neurons, got {got}")
    return take(params, spec, {name: targets[name] for name in spec.structure.widths})
