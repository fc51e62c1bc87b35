"""Where arrays of other widths lie on a mesh."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from ifjax.namespace import AnyArray, Shaped
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
    return jax.device_put(x, place)


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


def on_host(x: AnyArray) -> np.ndarray:
    """A copy on the host, put together there from its parts; the array itself keeps none.

    >>> on_host(jax.numpy.ones(2)).tolist()
    [1.0, 1.0]
    """
    return np.asarray(jax.numpy.array(x, copy=True) if isinstance(x, jax.Array) else x)


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
