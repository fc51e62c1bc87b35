"""Where small parameters lie on a mesh."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from ifjax.spec import FusionSpec, Plan
from ifjax.tree import is_concrete, leaves_by_path


def small_shardings(spec: FusionSpec, params: PyTree) -> PyTree:
    """Where the small parameters lie: every leaf as the full one does, as far as widths divide.

    For ``jax.jit(..., out_shardings=...)`` of `ifjax.fuse_params`, and for `ifjax.load`. Where the
    small width of an axis is no multiple of the mesh axes that it was split over, the last of these
    are dropped until it is: over them the axis is replicated. A warning names the leaf, and the
    ``round_to`` of `DependencyGraph.spec` that avoids it.

    Args:
      spec: the spec.
      params: the full parameters, their structs, or their shardings.

    Returns:
      A tree of the same structure with a `jax.sharding.Sharding` per leaf.

    Raises:
      ValueError: for a leaf that the spec has not.
      TypeError: for a leaf without a sharding, or with one that is neither a `NamedSharding` nor
        whole on every device; for arrays of a jitted function whose mesh is not explicit.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, solver="nearest")
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("devices",))
      >>> split = {"w1": P(None, "devices"), "w2": P("devices")}
      >>> params = jax.device_put(params, {k: NamedSharding(mesh, s) for k, s in split.items()})
      >>> outputs = small_shardings(spec, params)
      >>> fuse = jax.jit(ifjax.fuse_params, static_argnames="spec", out_shardings=outputs)
      >>> fuse(params, spec=spec)["w1"].sharding.spec == split["w1"]
      True
    """
    leaves = leaves_by_path(params)
    for name in leaves:
        if name not in spec.plan.leaf:
            raise ValueError(f"{name}: not a leaf of the network this spec was made for")
    full = {name: _sharding(name, x) for name, x in leaves.items()}
    small = _divided(full, {name: spec.plan.shape(name) for name in leaves})
    return jax.tree.unflatten(jax.tree.structure(params), list(small.values()))


def laid_like(tree: PyTree, params: PyTree) -> PyTree:
    """Small arrays or structs where `small_shardings` says; in jit or without a mesh unchanged."""
    full, found = leaves_by_path(params), leaves_by_path(tree)
    places = {
        name: x.sharding
        for name, x in full.items()
        if is_concrete(x, found[name]) and isinstance(getattr(x, "sharding", None), NamedSharding)
    }
    places = _divided(places, {name: found[name].shape for name in places})
    laid = {name: _placed(found[name], place) for name, place in places.items()}
    return jax.tree.unflatten(jax.tree.structure(tree), list({**found, **laid}.values()))


def _placed(x: Any, place: NamedSharding) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    return jax.device_put(x, place)


def explicit_outputs(spec: FusionSpec, params: PyTree, keep_shape: bool) -> PyTree:
    """The `PartitionSpec` of every merged leaf, of parameters on a mesh with explicit axes."""
    if keep_shape:
        return jax.tree.map(lambda x: _sharding("", x).spec, params)
    return jax.tree.map(lambda x: x.spec, small_shardings(spec, params))


def explicit_maps(plan: Plan) -> dict[str, P]:
    """Of every transport: replicated."""
    return {group.name: P() for group in plan.in_order()}


def _sharding(name: str, x: Any) -> Any:
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


def _divided(full: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The shardings without the mesh axes that do not divide the shapes; warns of these."""
    result, dropped = {}, []
    for name, sharding in full.items():
        result[name] = sharding
        if not isinstance(sharding, NamedSharding):
            continue
        mesh, parts = sharding.mesh, []
        for axis, part in enumerate(sharding.spec):
            names = () if part is None else part if isinstance(part, tuple) else (part,)
            kept, width = names, shapes[name][axis]
            while width % math.prod(mesh.shape[a] for a in kept):
                kept = kept[:-1]
            parts.append(part if kept == names else kept or None)
            if kept != names:
                count = math.prod(mesh.shape[a] for a in names)
                dropped.append(
                    f"{name}, axis {axis}: width {width} over {', '.join(names)} ({count} "
                    f"devices), avoided by round_to={count}"
                )
        result[name] = NamedSharding(mesh, P(*parts), memory_kind=sharding.memory_kind)
    if dropped:
        warnings.warn(
            f"{len(dropped)} axes of the small parameters do not divide by their mesh axes and are "
            f"replicated over these: {'; '.join(dropped[:5])}{'; ...' * (len(dropped) > 5)}",
            stacklevel=3,
        )
    return result
