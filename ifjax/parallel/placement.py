"""Work on parameters that lie spread over the devices of a mesh.

`on_mesh` finds the mesh in the parameters, under `jax.jit` too, and makes it the ambient one; the
others distribute the work over it, however the parameters lie, and do nothing special where there
is no mesh:

* The neurons of a group are spread over the devices: of n neurons with d features on k devices,
  each one holds n / k rows of the features, of the cost and of the transport map.
* A cost needs the rows of all targets: these go round the devices (`ifjax.parallel.ring`), a block
  of m / k at a time; so do blocks of the map, or of the result, when a leaf is multiplied. No
  device holds all rows of a group, nor a whole leaf or map.
* The entries of a batch, such as the layers of a stack, go over the mesh axes for which a group has
  too few neurons (`over_batch`).
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
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PyTree

from ifjax.namespace import AnyArray, pick

# Whether the ambient mesh is that of `on_mesh`: a user's own says nothing of where parameters lie.
_working = contextvars.ContextVar("working", default=False)
# Mesh axes that the entries of a batch are spread over.
_taken: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("taken", default=())


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
      >>> on_mesh(lambda x: split_along(2 * x, 0), jax.numpy.ones(2), outputs=lambda: P())
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
    explicit = next(x.sharding.mesh for x in arrays if isinstance(x.sharding, NamedSharding))
    assert isinstance(explicit, Mesh)  # of arrays, which lie on devices
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


def _mesh_of(x: Array) -> AbstractMesh:
    return jax.typeof(x).sharding.mesh


def _moved(tree: PyTree, source: Mesh, target: Mesh) -> PyTree:
    """The same arrays on a mesh of the same devices: no data moves."""

    def moved(x: PyTree) -> PyTree:
        found = getattr(x, "sharding", None)
        if isinstance(found, NamedSharding) and found.mesh == source:
            return jax.device_put(x, NamedSharding(target, found.spec))
        return x

    return jax.tree.map(moved, tree)


def names_over(size: int) -> tuple[str, ...]:
    """The mesh axes to spread an axis over: all, or the last ones that have no more devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not _working.get():
        return ()
    names = [n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t == AxisType.Auto]
    names = [n for n in names if n not in _taken.get()]
    while math.prod(mesh.shape[n] for n in names) > max(size, 1):
        names = names[1:]
    return tuple(names) if math.prod(mesh.shape[n] for n in names) > 1 else ()


def over_batch(function: Callable[..., PyTree], size: int, count: int) -> Callable[..., PyTree]:
    """`jax.vmap` of what is done with an axis, the entries of the batch spread as well.

    They go over the mesh axes for which the axis is too short, where these divide them evenly:
    otherwise devices along these would all hold and do the same.

    Args:
      function: of one entry.
      size: of the axis that the work is spread over.
      count: of entries.

    >>> over_batch(lambda x: 2 * x, 4, 3)(jax.numpy.ones(3)).tolist()
    [2.0, 2.0, 2.0]
    """
    own, names = names_over(size), ()
    for name in reversed([name for name in names_over(2**62) if name not in own]):
        if count % devices_over((name, *names)) == 0:
            names = name, *names
    if devices_over(names) == 1:
        return jax.vmap(function)

    def over(*given: PyTree) -> PyTree:
        token = _taken.set((*_taken.get(), *names))
        try:
            return jax.vmap(function, spmd_axis_name=names)(*given)
        finally:
            _taken.reset(token)

    return over


def active() -> bool:
    """Whether the work is spread over several devices."""
    return bool(names_over(2**62))


def devices_over(names: tuple[str, ...]) -> int:
    """How many devices some mesh axes have together."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[n] for n in names)


def _laid(x: Array, axis: int | None) -> Array:
    names = () if axis is None else names_over(x.shape[axis])

    def spec(others: Any) -> P:
        return P(*(names or None if i == axis else others for i in range(x.ndim)))

    if names and names != names_over(2**62):
        # The axis moves first, what the other mesh axes hold comes to it then: the other way round
        # XLA for TPUs would hold all of it, before and after (benchmarks/tpu.py, the 70B decoder).
        x = jax.lax.with_sharding_constraint(x, spec(P.UNCONSTRAINED))
    return jax.lax.with_sharding_constraint(x, spec(None))


def split_along(x: AnyArray, axis: int) -> AnyArray:
    """The array with one axis over all devices and the others whole.

    >>> split_along(jax.numpy.ones((4, 2)), 0).shape
    (4, 2)
    """
    return _laid(x, axis) if isinstance(x, jax.Array) and names_over(x.size) else x


def whole_along(x: AnyArray, axis: int) -> AnyArray:
    """The array with one axis whole and another one over all devices.

    >>> whole_along(jax.numpy.ones((4, 2)), 0).shape
    (4, 2)
    """
    if not isinstance(x, jax.Array) or not names_over(x.size):
        return x
    return _laid(x, other_axis(x.shape, axis))


def replicated(x: AnyArray) -> AnyArray:
    """What came from the host to one device, or is small, on all: matrices by rows, else whole.

    >>> replicated(jax.numpy.ones((1, 4, 2))).shape
    (1, 4, 2)
    """
    return _laid(x, x.ndim - 2 if x.ndim > 2 else None) if active() else x


def read_again(arrays: PyTree, after: PyTree) -> PyTree:
    """Arrays, to be read anew when others are there.

    What was made of them until then, like copies of twice their size in float32, is not kept for
    later.

    >>> read_again(jax.numpy.ones(1), after=jax.numpy.zeros(1))
    Array([1.], dtype=float32)
    """
    return jax.lax.optimization_barrier((arrays, after))[0] if active() else arrays


def other_axis(shape: tuple[int, ...], axis: int) -> int | None:
    """Another axis to spread: the first that is spread evenly over most devices, or the longest."""

    def rank(i: int) -> tuple[int, bool, int]:
        k = devices_over(names_over(shape[i]))
        uneven = shape[i] % k != 0
        return -k, uneven, -shape[i] if uneven else i

    return min((i for i in range(len(shape)) if i != axis), key=rank, default=None)


def take(x: AnyArray, index: Int[AnyArray, " k"], axis: int) -> AnyArray:
    """Entries along an axis.

    >>> take(jax.numpy.arange(4.0), jax.numpy.array([2, 0]), 0)
    Array([2., 0.], dtype=float32)
    """
    return whole_along(pick(whole_along(x, axis), index, axis), axis)
