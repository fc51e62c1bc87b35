"""Neurons that are kept or merged, and what becomes of the arrays that hold them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from ifjax.parallel.matrices import mesh_of
from ifjax.parallel.sharding import fitted
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.batch_view import View, take_batched
from ifjax.structure.structure import Group


@dataclasses.dataclass(frozen=True)
class Event:
    """Some neurons of a group are kept.

    Attributes:
      group: the group.
      index: the kept neurons, ``[*batch, m]``.
      sizes: widths of the groups before.
      matrix: where neurons are merged, what takes the dense values to those of the merged ones,
        ``[*batch, m, n]``.
    """

    group: Group
    index: np.ndarray
    sizes: Mapping[str, int]
    matrix: np.ndarray | None = None


def merge(x: Any, axes: Sequence[ex.Expression], event: Event) -> Any:
    """A dense value with its neurons merged, wherever they lie; as `narrow` where none are.

    Args:
      x: the value.
      axes: what lies along its axes.
      event: what is kept, and the matrix.

    Returns:
      The array.
    """
    name, matrix = event.group.name, event.matrix
    if matrix is None or not any(name in ex.atoms(e) for e in axes):
        return narrow(x, axes, event)
    view = View(tuple(axes), event.group.along)

    def one(x: Any, matrix: Any) -> Any:
        for axis, e in enumerate(view.rest()):
            times = functools.partial(_times, matrix)
            x = axis_arrays.transform(x, axis, e, name, times, event.sizes)
        return x

    matrix = jnp.asarray(matrix, x.dtype)
    if not event.group.batch:
        return one(x, matrix)
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    merged = jax.vmap(one)(view.front(x, event.sizes), flat)
    return view.back(merged, {**event.sizes, name: matrix.shape[-2]})


def _times(matrix: jax.Array, x: Any, axis: int) -> jax.Array:
    found = jnp.tensordot(matrix, x, (1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(found, 0, axis)


def narrow(x: Any, axes: Sequence[ex.Expression], event: Event) -> Any:
    """An array with the kept neurons alone, wherever they lie.

    Args:
      x: a leaf or a value.
      axes: what lies along its axes.
      event: what is kept.

    Returns:
      The array; itself where it does not hold the group.
    """
    name, index = event.group.name, event.index
    if not any(name in ex.atoms(e) for e in axes):
        return x
    if event.group.batch:
        return take_batched(x, tuple(axes), event.group, index, event.sizes)
    for axis, e in enumerate(axes):
        x = axis_arrays.transform(
            x, axis, e, name, lambda x, i: _taken(jnp.asarray(x), index, i), event.sizes
        )
    return x


def _taken(x: jax.Array, index: np.ndarray, axis: int) -> jax.Array:
    """Some entries of an axis; on a mesh they lie along it as all of them do."""
    if mesh_of(x) is None:
        return jnp.take(x, index, axis)
    shape = [len(index) if i == axis else n for i, n in enumerate(x.shape)]
    return _taken_to(x, index, axis, fitted(x.sharding, shape))


@functools.partial(jax.jit, static_argnames=("axis", "place"))
def _taken_to(x: jax.Array, index: jax.Array, axis: int, place: Sharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.take(x, index, axis), place)
