"""Where small parameters lie on a mesh."""

from __future__ import annotations

import jax
from jaxtyping import PyTree

from ifjax.parallel.sharding import divided, sharding_of
from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec
from ifjax.tree import leaves_by_path


@with_promotion
def small_shardings(spec: FusionSpec, params: PyTree, *, strict: bool = False) -> PyTree:
    """Where the small parameters lie: every leaf as the full one does, as far as widths divide.

    For ``jax.jit(..., out_shardings=...)`` of `ifjax.fuse_params`, and for `ifjax.load`. Where the
    small width of an axis is no multiple of the mesh axes that it was split over, the last of these
    are dropped until it is: over them the axis is replicated. A warning names the leaf, and the
    ``round_to`` of `DependencyGraph.spec` that avoids it.

    Args:
      spec: the spec.
      params: the full parameters, their structs, or their shardings.
      strict: refuse a width that is no multiple of its mesh axes instead.

    Returns:
      A tree of the same structure with a `jax.sharding.Sharding` per leaf.

    Raises:
      ValueError: for a leaf that the spec has not; with ``strict`` for a width that does not
        divide, with those that would.
      TypeError: for a leaf without a sharding, or with one that is neither a `NamedSharding` nor
        whole on every device; for arrays of a jitted function whose mesh is not explicit.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
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
        if name not in spec.structure.leaf:
            raise ValueError(f"{name}: not a leaf of the network this spec was made for")
    full = {name: sharding_of(name, x) for name, x in leaves.items()}
    small = divided(full, {name: spec.structure.shape(name) for name in leaves}, strict)
    return jax.tree.unflatten(jax.tree.structure(params), list(small.values()))
