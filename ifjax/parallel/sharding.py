"""Where arrays of other widths lie on a mesh."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from ifjax.namespace import AnyArray, Shaped, namespace
from ifjax.parallel.hosts import put
from ifjax.tree import is_concrete, leaves_by_path


def laid_like(tree: PyTree, params: PyTree) -> PyTree:
    """Small arrays or structs where `divided` says; in jit or without a mesh unchanged."""
    full, found = leaves_by_path(params), leaves_by_path(tree)
    places = {
        name: x.sharding
        for name, x in full.items()
        if is_concrete(x, found[name]) and isinstance(getattr(x, "sharding", None), NamedSharding)
    }
    places = divided(places, {name: found[name].shape for name in places})
    laid = {name: _placed(found[name], place) for name, place in places.items()}
    return jax.tree.unflatten(jax.tree.structure(tree), list({**found, **laid}.values()))


def _placed(x: Shaped, place: Sharding) -> Shaped:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    return put(x, place)


def sharding_of(name: str, x: Shaped | Sharding) -> Sharding:
    """The sharding of an array or a struct, or the sharding that it is."""
    found = x if isinstance(x, Sharding) else getattr(x, "sharding", None)
    if not is_concrete(x):
        found = jax.typeof(x).sharding
        if {*found.mesh.axis_types} != {AxisType.Explicit}:
            raise TypeError(
                f"{name}: expected an array or a sharding, got {x}: inside of jit it is not known "
                "where arrays lie; call small_shardings outside"
            )
    if not isinstance(found, Sharding):
        raise TypeError(
            f"{name}: expected an array on devices, a struct with a sharding, or a sharding, got "
            f"{type(x).__name__}; put the parameters on the mesh by jax.device_put"
        )
    if not isinstance(found, NamedSharding) and not found.is_fully_replicated:
        raise TypeError(f"{name}: expected a NamedSharding, got {found}")
    return found


def fitted(sharding: Sharding, shape: Sequence[int]) -> Sharding:
    """The sharding without the mesh axes, from the last of an axis on, that do not divide it.

    >>> mesh = jax.sharding.AbstractMesh((2, 4), ("x", "y"))
    >>> fitted(NamedSharding(mesh, P(None, ("x", "y"))), (6, 10)).spec
    P(None, 'x')
    """
    if not isinstance(sharding, NamedSharding):
        return sharding
    parts = []
    for part, names, width in zip(sharding.spec, _names(sharding), shape, strict=False):
        kept = names
        while width % math.prod(sharding.mesh.shape[a] for a in kept):
            kept = kept[:-1]
        parts.append(part if kept == names else kept[0] if len(kept) == 1 else kept or None)
    return NamedSharding(sharding.mesh, P(*parts), memory_kind=sharding.memory_kind)


def unstack(x: AnyArray, axis: int = 0) -> list[AnyArray]:
    """The arrays along an axis.

    On a mesh all come out of one program, and each lies as the whole does; mesh axes over which the
    axis itself was split go to the first other one that they divide.

    >>> [y.tolist() for y in unstack(jax.numpy.array([[1, 2], [3, 4]]), 1)]
    [[1, 3], [2, 4]]
    """
    place = getattr(x, "sharding", None) if is_concrete(x) else None
    if not isinstance(place, NamedSharding) or place.num_devices == 1:
        return [*namespace(x).moveaxis(x, axis, 0)]
    return _unstacked(x, axis, _without(place, axis, x.shape))


@functools.partial(jax.jit, static_argnames=("axis", "place"))
def _unstacked(x: AnyArray, axis: int, place: NamedSharding) -> list[AnyArray]:
    there = NamedSharding(place.mesh, P(None, *place.spec), memory_kind=place.memory_kind)
    moved = jax.lax.with_sharding_constraint(jax.numpy.moveaxis(x, axis, 0), there)
    return [jax.lax.with_sharding_constraint(y, place) for y in moved]


def _without(place: NamedSharding, axis: int, shape: Sequence[int]) -> NamedSharding:
    """Where the entries along an axis lie."""
    names = [*_names(place), *[()] * (len(shape) - len(place.spec))]
    sizes, [gone] = [*shape[:axis], *shape[axis + 1 :]], names[axis : axis + 1]
    del names[axis]
    for i, (own, size) in enumerate(zip(names, sizes, strict=True)):
        if gone and size % math.prod(place.mesh.shape[a] for a in (*own, *gone)) == 0:
            names[i], gone = (*own, *gone), ()
    return NamedSharding(place.mesh, P(*names), memory_kind=place.memory_kind)


def _names(sharding: Sharding) -> list[tuple[str, ...]]:
    """The mesh axes over which every axis is split; of shardings without a mesh none."""
    spec = sharding.spec if isinstance(sharding, NamedSharding) else ()
    return [() if p is None else p if isinstance(p, tuple) else (p,) for p in spec]


def divided(
    full: Mapping[str, Sharding], shapes: Mapping[str, Sequence[int]], strict: bool = False
) -> dict[str, Sharding]:
    """The shardings without the mesh axes that do not divide the shapes; warns of these.

    With ``strict`` they are an error, which names the widths that would do.
    """
    result, dropped = {}, []
    for name, sharding in full.items():
        result[name] = small = fitted(sharding, shapes[name])
        if not isinstance(sharding, NamedSharding):
            continue
        for axis, (names, kept) in enumerate(zip(_names(sharding), _names(small), strict=True)):
            if kept == names:
                continue
            width, count = shapes[name][axis], math.prod(sharding.mesh.shape[a] for a in names)
            place = f"{name}, axis {axis}: width {width} over {', '.join(names)} ({count} "
            if strict:
                near = [x for x in (width // count * count, -(-width // count) * count) if x]
                raise ValueError(
                    f"{place}devices) does not divide: keep {' or '.join(map(str, near))}, or "
                    f"give round_to={count}"
                )
            dropped.append(f"{place}devices), avoided by round_to={count}")
    if dropped:
        warnings.warn(
            f"{len(dropped)} axes of the small parameters do not divide by their mesh axes and are "
            f"replicated over these: {'; '.join(dropped[:5])}{'; ...' * (len(dropped) > 5)}",
            stacklevel=3,
        )
    return result
