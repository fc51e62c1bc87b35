"""Derivatives with respect to masks on the neurons of groups.

With a mask m of ones on the entries ``W_i`` of neuron i, ``dL / dm_i`` is the sum over them of
``W_i * dL / dW_i``: the derivatives of the weights are all that it takes. One sum over all leaves
finds those of all groups: a program of as many operations as there are leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ifjax.namespace import AnyArray
from ifjax.structure.axis_arrays import positions
from ifjax.structure.structure import Group, Member, Structure

# A leaf, and the axes that its entries are not summed over.
Kept = tuple[str, tuple[int, ...]]


def masking(group: Group) -> list[Member]:
    """The members that a mask goes on: consumers, or where there are none all that adds up."""
    consumers = [m for m in group.members if m.role == "consumer"]
    added = [m for m in group.members if m.role in ("producer", "additive", "mean")]
    return consumers or added or list(group.members)


def mask_derivatives(
    leaves: Mapping[str, AnyArray], structure: Structure, groups: Sequence[Group]
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Derivatives of a loss with respect to masks on what consumes the groups, at ones.

    Args:
      leaves: the parameters, by path.
      structure: of them.
      groups: the groups.

    Returns:
      A function of the loss's derivatives with respect to the leaves, by path (a leaf that has none
      counts nothing): by group ``[*batch, n]``, in float32 at least.

    Example:
      >>> import ifjax
      >>> params = {"w1": jnp.ones((4, 2)), "w2": jnp.array([[3.0], [5.0]])}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> derivatives = mask_derivatives(params, graph.structure, graph.groups)
      >>> derivatives({"w2": jnp.array([[1.0], [2.0]])})["w1"].tolist()
      [3.0, 10.0]
    """
    entries, shapes = _entries(structure, groups)
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()]).tolist()

    def derivatives(gradients: Mapping[str, Array]) -> dict[str, Array]:
        places, values = [np.zeros(0, int)], []
        for (path, kept), found in entries.items():
            if path not in gradients:
                continue
            x, wide = leaves[path], jnp.result_type(jnp.float32, leaves[path].dtype)
            product = (jnp.asarray(x).astype(wide) * gradients[path].astype(wide)).real
            summed = product.sum(tuple(i for i in range(product.ndim) if i not in kept))
            values += [summed.reshape(-1)] * len(found)
            places += found
        dtype = jnp.result_type(jnp.float32, *(v.dtype for v in values))
        total = jnp.zeros(ends[-1] + 1 if ends else 1, dtype)
        if values:
            all_values = jnp.concatenate([v.astype(dtype) for v in values])
            total = total.at[np.concatenate(places)].add(all_values)
        starts = [0, *ends[:-1]]
        return {
            name: total[start:end].reshape(shape)
            for (name, shape), start, end in zip(shapes.items(), starts, ends, strict=True)
        }

    return derivatives


def _entries(
    structure: Structure, groups: Sequence[Group]
) -> tuple[dict[Kept, list[np.ndarray]], dict[str, tuple[int, ...]]]:
    """Which mask every sum over a leaf's entries belongs to, and the shapes of the masks.

    Masks are numbered through all groups; what belongs to none has the next number. Where an entry
    belongs to several masks, the leaf's sums stand several times.
    """
    shapes = {group.name: (*group.batch, group.size) for group in groups}
    last = sum(int(np.prod(shape)) for shape in shapes.values())
    entries: dict[Kept, list[np.ndarray]] = {}
    start = 0
    for group in groups:
        for m in masking(group):
            axes, names = structure.leaf[m.path].axes, (*group.along, group.name)
            at = [m.axis if n == group.name else _axis_of(axes, n) for n in names]
            kept = tuple(sorted(set(at)))
            index = [
                np.expand_dims(
                    positions(axes[i], n), tuple(j for j, k in enumerate(kept) if k != i)
                )
                for i, n in zip(at, names, strict=True)
            ]
            index = np.broadcast_arrays(*index)
            here = np.all([i >= 0 for i in index], axis=0)
            number = np.ravel_multi_index([np.maximum(i, 0) for i in index], shapes[group.name])
            number = np.where(here, start + number, last).reshape(-1)
            rows = entries.setdefault((m.path, kept), [])
            free = next((r for r in rows if np.all((r == last) | ~here.reshape(-1))), None)
            if free is None:
                rows.append(number)
            else:
                free[here.reshape(-1)] = number[here.reshape(-1)]
        start += int(np.prod(shapes[group.name]))
    return entries, shapes


def _axis_of(axes: Sequence, name: str) -> int:
    """The axis of a leaf that a batch axis of a group lies along."""
    return next(i for i, e in enumerate(axes) if np.any(positions(e, name) >= 0))
