"""Masks on the neurons of groups, which derivatives are taken with respect to."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
from jaxtyping import Array, PyTree

from ifjax.namespace import along
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.batch_view import View
from ifjax.structure.layout import flat
from ifjax.structure.structure import Group, Member, Structure
from ifjax.tree import leaves_by_path, with_leaves


def masked(
    params: PyTree, structure: Structure, groups: Sequence[Group], masks: dict[str, Array]
) -> PyTree:
    """The parameters with a mask on the consumers of every group.

    Args:
      params: the full parameters.
      structure: of them.
      groups: the groups.
      masks: by name, ``[n]`` or ``[*batch, n]``.

    Returns:
      A tree of the same shapes and dtypes.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 2)), "w2": jnp.ones((2, 1))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> mask = {"w1": jnp.array([1.0, 0.0])}
      >>> masked(params, graph.structure, graph.groups, mask)["w2"].tolist()
      [[1.0], [0.0]]
    """
    leaves = leaves_by_path(params)
    for group in groups:
        for m in masking(group):
            view = View(structure.leaf[m.path].axes, group.along)
            one = functools.partial(_times, name=group.name, axis=m.axis, axes=view.rest())
            x, mask = leaves[m.path], masks[group.name]
            if group.batch:
                x = view.back(jax.vmap(one)(view.front(x, {}), flat(group, mask)), {})
            else:
                x = one(x, mask)
            leaves[m.path] = x
    return with_leaves(params, leaves)


def _times(x: Array, mask: Array, name: str, axis: int, axes: tuple[ex.Expression, ...]) -> Array:
    """An array with its neurons along one axis multiplied by a mask."""

    def apply(x: Array, axis: int) -> Array:
        return x * along(mask, axis, x.ndim).astype(x.dtype)

    return axis_arrays.transform(x, axis, axes[axis], name, apply)


def masking(group: Group) -> list[Member]:
    """The members that a mask goes on: consumers, or where there are none all that adds up."""
    consumers = [m for m in group.members if m.role == "consumer"]
    added = [m for m in group.members if m.role in ("producer", "additive", "mean")]
    return consumers or added or list(group.members)
