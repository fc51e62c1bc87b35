"""What every network promises about its compression, on small instances of it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ifjax

TOLERANCE = 1e-6  # of the largest logit: the same operations, in another order at most


def struct(module: Any, *image: int) -> Any:
    """The abstract variables of a module for images of this height, width and channels."""
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *image)))


def drawn(tree: Any, seed: int = 0) -> Any:
    """Variables in general position: He-scaled kernels, positive scales and variances."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = path[-1].key
        if name == "kernel":
            value = rng.normal(size=leaf.shape) * math.sqrt(2 / math.prod(leaf.shape[:-1]))
        elif name in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = rng.normal(size=leaf.shape) * 0.2
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


def groups(graph: ifjax.DependencyGraph) -> dict[str, int]:
    """Sizes by name."""
    return {group.name: group.size for group in graph.groups}


def hold(module: Any, image: tuple[int, int, int], pattern: str = "*") -> tuple[Any, Any, Any]:
    """Assert that the graph verifies, and that the module at the cut widths equals `shrink`.

    Returns the graph, the spec, which cuts every group that matches by another share, and the small
    module.
    """
    variables = struct(module, *image)
    x = np.random.default_rng(1).normal(size=(2, *image)).astype(np.float32)
    graph = ifjax.trace(module.apply, variables, x)
    result = graph.verify(module.apply, variables, x)
    assert result.ok
    # a bias of all keys alike is silent under the softmax
    assert all("/key/bias" in member for member in result.unverified)

    matching = [name for name in groups(graph) if name.startswith(pattern.removesuffix("*"))]
    spec = graph.spec(
        {n: 0.3 + 0.3 * i / len(matching) for i, n in enumerate(matching)}, solver="nearest"
    )
    full = drawn(variables)
    small = jax.jit(ifjax.fuse_params, static_argnames="spec")(full, spec=spec)
    assert sum(map(jnp.size, jax.tree.leaves(small))) < sum(map(jnp.size, jax.tree.leaves(full)))
    again = type(module).from_spec(spec)
    assert struct(again, *image) == jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), small
    )
    found = jax.jit(again.apply)(small, x)
    expected = jax.jit(ifjax.shrink(module.apply, spec))(small, x)
    scale = float(jnp.abs(expected).max())
    assert np.isfinite(scale)
    assert float(jnp.abs(found - expected).max()) <= TOLERANCE * scale
    # With power: another network computes something else.
    assert float(jnp.abs(found - jax.jit(module.apply)(full, x)).max()) > 1e-3 * scale
    return graph, spec, again
