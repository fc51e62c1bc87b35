"""Parameter trees as leaves by path, checked against a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from ifjax.spec import Plan


def is_concrete(*values: Any) -> bool:
    """Whether values can be looked at: false inside a jitted function."""
    return not any(isinstance(v, Tracer) for v in values)


def leaves_by_path(params: PyTree) -> dict[str, Any]:
    """Leaves of a tree by ``keystr(simple=True, separator="/")`` of their path."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise ValueError(f"two leaves of the parameters have the path {name}: rename one")
        leaves[name] = leaf
    return leaves


def checked_leaves(params: PyTree, plan: Plan) -> dict[str, Any]:
    """Leaves by path, if they are those of the plan.

    Args:
      params: the full parameter tree.
      plan: what it should look like.

    Returns:
      Arrays by path.

    Raises:
      ValueError: naming the first leaf that is missing, unexpected, of another shape or kind, or
        not finite (outside of jit).
    """
    leaves = leaves_by_path(params)
    missing = [p for p in plan.leaf if p not in leaves]
    if missing:
        roles = {m.path: m.role for g in plan.groups for m in g.members}
        if all(roles.get(path) in ("mean", "variance") for path in missing):
            hint = (
                "batch statistics change their width too, pass the whole tree, for flax.linen "
                '{"params": ..., "batch_stats": ...}'
            )
        else:
            hint = f"the parameters have {len(leaves)} leaves, the spec was made for others"
        raise ValueError(
            f"{missing[0]}: expected a leaf of shape {plan.leaf[missing[0]].shape}, got none "
            f"({len(missing)} of the spec's {len(plan.leaves)} leaves are missing); {hint}"
        )
    for path, leaf in leaves.items():
        if path not in plan.leaf:
            raise ValueError(f"{path}: not a leaf of the network this spec was made for")
        want = plan.leaf[path]
        if not hasattr(leaf, "shape") or tuple(leaf.shape) != want.shape:
            got = getattr(leaf, "shape", type(leaf).__name__)
            raise ValueError(f"{path}: expected shape {want.shape}, got {got}")
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        if floating != _is_floating(want.dtype):
            raise ValueError(f"{path}: expected dtype {want.dtype}, got {leaf.dtype}")
    check_finite(leaves)
    for norm in plan.norms:
        variance = leaves[norm.variance]
        if is_concrete(variance) and not (np.asarray(variance, np.float64) >= -norm.eps).all():
            raise ValueError(f"{norm.variance}: expected variances, got a negative number")
    return leaves


def _is_floating(dtype: str) -> bool:
    return not dtype.startswith("key") and bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))


def check_finite(leaves: Mapping[str, Any]) -> None:
    """Raises ValueError at the first leaf that holds NaN or infinity, outside of jit."""
    floating = {
        p: x for p, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating) and is_concrete(x)
    }
    if not floating:
        return
    with jax.ensure_compile_time_eval():  # for arrays that a jitted function closes over
        finite = jax.device_get(_all_finite(floating))
    for path, ok in finite.items():
        if not ok:
            x = np.asarray(floating[path], dtype=np.float64)
            count = int(np.sum(~np.isfinite(x)))
            raise ValueError(
                f"{path}: expected finite weights, got {count} of {x.size} that are NaN or infinite"
            )


@jax.jit
def _all_finite(leaves: dict[str, ArrayLike]) -> dict[str, Array]:
    return {path: jnp.all(jnp.isfinite(x)) for path, x in leaves.items()}


def with_leaves(params: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """The tree with the structure of ``params`` and other leaves."""
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), [leaves[p] for p in paths])


def promoted(x: Any) -> Any:
    """At least float32; what is not floating point is left alone."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
