"""Work on parameters that lie spread over the devices of a mesh.

`on_mesh` finds the mesh in the parameters, under `jax.jit` too, and makes it the ambient one; the
others distribute the work over it, however the parameters lie, and do nothing special where there
is no mesh:

* The neurons of a group are spread over the devices: of n neurons with d features on k devices,
  each one holds n / k rows of the features, of the cost and of the transport map.
* A cost needs the rows of all targets: these go round the devices (`cost_matrix`), a block of m / k
  at a time; so do blocks of the map, or of the result, when a leaf is multiplied (`product`). No
  device holds all rows of a group, nor a whole leaf or map.
* Rows are picked (`take`) where the axis is whole and another one is spread: no row moves but in
  the all-to-alls before and after.

What is still gathered: axes shorter than the number of devices, over the mesh axes that are too
many; and, one leaf at a time, what XLA cannot redistribute directly (leaves of three or more axes
on a mesh of two).
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

from ifjax.transport import costs

# Whether the ambient mesh is that of `on_mesh`: a user's own says nothing of where parameters lie.
_working = contextvars.ContextVar("working", default=False)


def on_mesh(
    function: Callable[..., PyTree], *trees: PyTree, outputs: Callable[[], PyTree]
) -> PyTree:
    """Calls a function with the mesh that its arguments lie on as the ambient one.

    Mesh axes of type ``Explicit`` are ``Auto`` within.

    Args:
      function: of the trees.
      *trees: of arrays.
      outputs: under jit on a mesh with explicit axes, the `PartitionSpec` of every output.

    Returns:
      What the function returns, on the mesh of the arguments.

    Example:
      >>> on_mesh(lambda x: spread(2 * x, 0), jnp.ones(2), outputs=lambda: P())
      Array([2., 2.], dtype=float32)
    """
    arrays = [x for x in jax.tree.leaves(trees) if isinstance(x, jax.Array)]
    mesh = next((m for m in map(_mesh_of, arrays) if not m.empty), None)
    traced = any(isinstance(x, Tracer) for x in arrays)
    if mesh is None:
        return function(*trees)
    if AxisType.Explicit not in mesh.axis_types:
        with _work_on(mesh):
            return function(*trees)
    if traced:
        with _work_on(mesh):
            return jax.sharding.auto_axes(function, out_sharding=outputs())(*trees)
    places: Any = [x.sharding for x in arrays if not _mesh_of(x).empty]
    explicit = places[0].mesh
    auto = Mesh(explicit.devices, explicit.axis_names)
    result = on_mesh(function, *_moved(trees, explicit, auto), outputs=outputs)
    return _moved(result, auto, explicit)


@contextlib.contextmanager
def _work_on(mesh: AbstractMesh) -> Iterator[None]:
    token = _working.set(True)
    try:
        with jax.sharding.use_abstract_mesh(mesh):
            yield
    finally:
        _working.reset(token)


def _mesh_of(x: Array) -> Any:
    return jax.typeof(x).sharding.mesh


def _moved(tree: PyTree, source: Mesh, target: Mesh) -> PyTree:
    """The same arrays on a mesh of the same devices: no data moves."""

    def moved(x: Any) -> Any:
        found = getattr(x, "sharding", None)
        if isinstance(found, NamedSharding) and found.mesh == source:
            return jax.device_put(x, NamedSharding(target, found.spec))
        return x

    return jax.tree.map(moved, tree)


def _names(size: int) -> tuple[str, ...]:
    """The mesh axes to spread an axis over: all, or the last ones that have no more devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not _working.get():
        return ()
    names = [n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t == AxisType.Auto]
    while math.prod(mesh.shape[n] for n in names) > max(size, 1):
        names = names[1:]
    return tuple(names) if math.prod(mesh.shape[n] for n in names) > 1 else ()


def active() -> bool:
    """Whether the work is spread over several devices."""
    return bool(_names(2**62))


def _devices(names: tuple[str, ...]) -> int:
    return math.prod(jax.sharding.get_abstract_mesh().shape[n] for n in names)


def _laid(x: Array, axis: int | None) -> Array:
    spec: list[Any] = [None] * x.ndim
    if axis is not None:
        spec[axis] = _names(x.shape[axis]) or None
    return jax.lax.with_sharding_constraint(x, P(*spec))


def spread(x: Array, axis: int) -> Array:
    """The array with one axis over all devices and the others whole.

    >>> spread(jnp.ones((4, 2)), 0).shape
    (4, 2)
    """
    return _laid(x, axis) if _names(x.size) else x


def whole(x: Array, axis: int) -> Array:
    """The array with one axis whole and another one over all devices.

    >>> whole(jnp.ones((4, 2)), 0).shape
    (4, 2)
    """
    return _laid(x, _other(x.shape, axis)) if _names(x.size) else x


def settled(x: Array) -> Array:
    """What came from the host to one device, or is small, on all: matrices by rows, else whole.

    >>> settled(jnp.ones((1, 4, 2))).shape
    (1, 4, 2)
    """
    return _laid(x, x.ndim - 2 if x.ndim > 2 else None) if active() else x


def _other(shape: tuple[int, ...], axis: int) -> int | None:
    """Another axis to spread: the first that is spread evenly over most devices, or the longest."""

    def rank(i: int) -> tuple[int, bool, int]:
        k = _devices(_names(shape[i]))
        uneven = shape[i] % k != 0
        return -k, uneven, -shape[i] if uneven else i

    return min((i for i in range(len(shape)) if i != axis), key=rank, default=None)


def take(x: Array, index: Int[Array, " k"], axis: int) -> Array:
    """Entries along an axis.

    >>> take(jnp.arange(4.0), jnp.array([2, 0]), 0)
    Array([2., 0.], dtype=float32)
    """
    return whole(jnp.take(whole(x, axis), index, axis), axis)


def _padded(x: Array, axis: int, k: int) -> Array:
    """To a multiple of k, by zeros."""
    width = -x.shape[axis] % k
    return jnp.pad(x, [(0, width * (i == axis)) for i in range(x.ndim)]) if width else x


def _ring(k: int) -> list[tuple[int, int]]:
    return [(i, (i + 1) % k) for i in range(k)]


def cost_matrix(
    x: Float[Array, "_ _"], y: Float[Array, "_ _"], p: float | int | str = 1, axis: int = 0
) -> Float[Array, "n m"]:
    """`ifjax.transport.costs.cost_matrix` with its rows spread: blocks of y go round the devices.

    >>> cost_matrix(jnp.array([[0.0], [3.0]]), jnp.array([[1.0]]))
    Array([[1.],
           [2.]], dtype=float32)
    """
    n, m = x.shape[axis], y.shape[axis]
    names = _names(min(n, m))
    if not names:
        return costs.cost_matrix(x, y, p, axis)
    k = _devices(names)

    def local(x: Array, y: Array) -> Array:
        def step(y: Array, _: None) -> tuple[Array, Array]:
            return jax.lax.ppermute(y, names, _ring(k)), costs.cost_matrix(x, y, p, axis)

        _, tiles = jax.lax.scan(step, y, None, length=k)
        came = (jax.lax.axis_index(names) - jnp.arange(k)) % k  # block j at step (own place - j)
        return jnp.moveaxis(tiles[came], 0, 1).reshape(x.shape[axis], -1)

    split = _only(x, axis, names)
    # Without the check, which wants the costs to know of the mesh.
    run = jax.shard_map(local, in_specs=(split, split), out_specs=P(names), check_vma=False)
    cost = run(_padded(spread(x, axis), axis, k), _padded(spread(y, axis), axis, k))
    return cost[:n, :m]


def product(by: Float[Array, "m n"], x: Array, axis: int) -> Array:
    """An axis of a leaf multiplied by a matrix that is spread along its n columns.

    What goes round the devices is the smaller: partial sums of the result, or the matrix, a block
    at a time.

    >>> product(jnp.array([[1.0, 1.0]]), jnp.array([[1.0, 2.0], [3.0, 4.0]]), 0)
    Array([[4., 6.]], dtype=float32)
    """
    (m, n), other = by.shape, _other(x.shape, axis)
    if other is not None and x.size >= n * n and (names := _names(min(n, x.shape[other]))):
        return _of_moving_matrix(by, x, axis, other, names)
    if other is not None and (names := _names(min(m, n))):
        return _of_moving_sums(by, x, axis, names)
    return _multiplied(by, x, axis)


def _multiplied(by: Array, x: Array, axis: int) -> Array:
    y = jnp.tensordot(by, x, (1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(y, 0, axis)


def _of_moving_matrix(by: Array, x: Array, axis: int, other: int, names: tuple[str, ...]) -> Array:
    """With another axis of the leaf spread."""
    k = _devices(names)
    block = -(-by.shape[1] // k)

    def local(by: Array, x: Array) -> Array:
        me = jax.lax.axis_index(names)

        def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            by, total = carry
            part = jax.lax.dynamic_slice_in_dim(x, (me - i) % k * block, block, axis)
            total = total + _multiplied(by, part, axis)
            return (jax.lax.ppermute(by, names, _ring(k)), total), None

        total = _zeros(x, axis, by.shape[0], names)
        return jax.lax.scan(step, (by, total), jnp.arange(k))[0][1]

    split = _only(x, other, names)
    run = jax.shard_map(local, in_specs=(P(None, names), split), out_specs=split)
    y = run(_padded(by, 1, k), _padded(_padded(whole(x, axis), axis, k), other, k))
    return jax.lax.slice_in_dim(y, 0, x.shape[other], axis=other)


def _of_moving_sums(by: Array, x: Array, axis: int, names: tuple[str, ...]) -> Array:
    """With the multiplied axis spread, before and after."""
    k = _devices(names)
    block = -(-by.shape[0] // k)

    def local(by: Array, x: Array) -> Array:
        me = jax.lax.axis_index(names)

        def step(total: Array, i: Array) -> tuple[Array, None]:
            rows = jax.lax.dynamic_slice_in_dim(by, (me - i - 1) % k * block, block)
            return jax.lax.ppermute(total, names, _ring(k)) + _multiplied(rows, x, axis), None

        return jax.lax.scan(step, _zeros(x, axis, block, names), jnp.arange(k))[0]

    split = _only(x, axis, names)
    run = jax.shard_map(local, in_specs=(P(None, names), split), out_specs=split)
    y = run(_padded(_padded(by, 0, k), 1, k), _padded(spread(x, axis), axis, k))
    return jax.lax.slice_in_dim(y, 0, by.shape[0], axis=axis)


def _only(x: Array, axis: int, names: tuple[str, ...]) -> P:
    return P(*(names if i == axis else None for i in range(x.ndim)))


def _zeros(x: Array, axis: int, size: int, names: tuple[str, ...]) -> Array:
    """Like a part of an array, with another size along an axis."""
    zeros = jnp.zeros([size if i == axis else n for i, n in enumerate(x.shape)], x.dtype)
    return jax.lax.pcast(zeros, names, to="varying")
