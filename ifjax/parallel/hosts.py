"""Arrays that lie on devices of several processes, such as on a pod, where each host has its own.

No process sees all of such an array. Every process runs the same program: whatever is read here,
all read, in the same order.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from ifjax.namespace import AnyArray
from ifjax.tree import is_concrete


def is_apart(x: object) -> bool:
    """Whether an array lies on devices of other processes too.

    >>> is_apart(jax.numpy.ones(2))
    False
    """
    return isinstance(x, jax.Array) and is_concrete(x) and not x.is_fully_addressable


def mesh_apart(*trees: PyTree) -> Mesh | None:
    """The mesh over several processes on which an array lies; None where there is none.

    Raises:
      TypeError: where arrays of several processes have shardings without a mesh alone.

    Example:
      >>> mesh_apart({"w": jax.numpy.ones(2)}) is None
      True
    """
    places = [x.sharding for x in jax.tree.leaves(trees) if is_apart(x)]
    found = next((p for p in places if isinstance(p, NamedSharding)), None)
    return _mesh_of(found or places[0]) if places else None


def _mesh_of(place: Sharding) -> Mesh:
    """The mesh of an array that lies on devices of several processes."""
    if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh):
        return place.mesh
    raise TypeError(
        f"expected arrays over several processes with a jax.sharding.NamedSharding on a mesh of "
        f"devices, got {place}; lay them out again by jax.device_put with one"
    )


def on_host(x: Any, dtype: Any = None) -> np.ndarray:
    """A copy on the host, put together there from its parts; the array itself keeps none.

    Of an array on devices of several processes every process gets the whole, by way of its devices.

    >>> on_host(jax.numpy.ones(2)).tolist()
    [1.0, 1.0]
    """
    if is_apart(x):
        x = x if x.is_fully_replicated else _replicating(x.sharding)(x)
        x = x.addressable_data(0)
    elif isinstance(x, jax.Array) and len(x.devices()) > 1:
        x = jax.numpy.array(x, copy=True)
    return np.asarray(x, dtype)


@functools.cache
def _replicating(place: Sharding) -> Callable[[Array], Array]:
    """What lays an array whole on all devices of a sharding."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(_mesh_of(place), P()))


def on_device(x: AnyArray) -> Array:
    """An array on the device, or where it is.

    >>> on_device(np.ones(2)).tolist()
    [1.0, 1.0]
    """
    return x if is_apart(x) else jax.device_put(x)


def put(x: AnyArray, place: Sharding) -> Array:
    """An array where a sharding says: one that lies there, or one that every process has whole.

    >>> put(np.ones(2), jax.sharding.SingleDeviceSharding(jax.devices()[0])).tolist()
    [1.0, 1.0]
    """
    if is_apart(x) or place.is_fully_addressable:
        return jax.device_put(x, place)
    whole = on_host(x, jax.dtypes.canonicalize_dtype(x.dtype))
    # device_put would send it round, to compare it
    return jax.make_array_from_callback(whole.shape, place, whole.__getitem__)


def together(batches: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays on the device, or whole on all of a mesh over several processes.

    Those that lie spread over it stay so.

    Args:
      batches: arrays; those of numpy, or of a device of this process, are the same in every one.
      mesh: or None.

    Returns:
      The tree.

    Raises:
      ValueError: where they are not the same.

    Example:
      >>> together([np.ones(2)], None)
      [Array([1., 1.], dtype=float32)]
    """
    if mesh is None:
        return jax.tree.map(on_device, batches)
    arrays = [x for x in jax.tree.leaves(batches) if not is_apart(x) and not _is_key(x)]
    found = every(np.array([zlib.crc32(on_host(x).tobytes()) for x in arrays], np.uint32), mesh)
    if (found != found[0]).any():
        raise ValueError(
            "expected batches that lie spread over the mesh, or are the same in all processes; got "
            "others in each: make arrays of them by jax.make_array_from_process_local_data"
        )
    whole = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: x if is_apart(x) or _is_key(x) else put(x, whole), batches)


def _is_key(x: Any) -> bool:
    return jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


def every(x: np.ndarray, mesh: Mesh | None) -> np.ndarray:
    """What each process has, by device of a mesh: arrays of one shape, along a new axis 0.

    >>> every(np.array([3]), None).tolist()
    [[3]]
    """
    return x[None] if mesh is None else on_host(_rows(x, mesh))


def agreed(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """A tree with the numbers, on the host, of the process that has a mesh's first device.

    Processes that compute the same may round differently, on processors of other kinds. What they
    decide by it has to be one decision.

    Args:
      tree: arrays of numpy and Python's numbers; others stay, like those on devices. Their shapes
        are the same in every process.
      mesh: over several processes; without one nothing changes.

    Returns:
      The tree.

    Example:
      >>> agreed({"kept": np.array([1, 2]), "shrinkage": 0.1}, None)
      {'kept': array([1, 2]), 'shrinkage': 0.1}
    """
    leaves, structure = jax.tree.flatten(tree)
    own = [i for i, x in enumerate(leaves) if isinstance(x, np.ndarray | np.generic | int | float)]
    if mesh is None or not own:
        return tree
    arrays = [np.asarray(leaves[i]) for i in own]
    sent = b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)
    words = np.frombuffer(sent + b"\0" * (-len(sent) % 4), np.uint32)
    taken, at = on_host(_rows(words, mesh)[0]).tobytes(), 0
    for i, x in zip(own, arrays, strict=True):
        found = np.frombuffer(taken[at : at + x.nbytes], x.dtype).reshape(x.shape)
        at += x.nbytes
        leaves[i] = found.copy() if isinstance(leaves[i], np.ndarray) else found[()].item()
    return jax.tree.unflatten(structure, leaves)


def _rows(x: np.ndarray, mesh: Mesh) -> Array:
    """A row per device, on it: what its process has."""
    devices = Mesh(mesh.devices.reshape(-1), ("devices",))
    place = NamedSharding(devices, P("devices"))
    shape = (devices.size, *x.shape)
    return jax.make_array_from_callback(shape, place, lambda at: x[None])


def parts_here(x: Any) -> np.ndarray:
    """What this process has of an array: its parts along a new axis 0, or the array that it is.

    >>> parts_here(jax.numpy.ones(2)).tolist()
    [1.0, 1.0]
    """
    if not is_apart(x):
        return on_host(x)
    found = {str(part.index): part.data for part in x.addressable_shards}
    return np.stack([np.asarray(found[index]) for index in sorted(found)])


def joined(parts: np.ndarray, place: Sharding, shape: Sequence[int]) -> Array:
    """The array of a shape that lies where a sharding says, of which a process has some parts.

    >>> place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> joined(np.ones((1, 2)), place, (2,)).tolist()
    [1.0, 1.0]
    """
    own = place.addressable_devices_indices_map(tuple(shape)).values()
    found = dict(zip(sorted(set(map(str, own))), parts, strict=True))
    return jax.make_array_from_callback(tuple(shape), place, lambda at: found[str(at)])
