"""Parameter trees as leaves by path, checked against a plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
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
    _check_variances(leaves, plan)
    return leaves


def _is_floating(dtype: str) -> bool:
    return not dtype.startswith("key") and bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))


def check_finite(leaves: Mapping[str, Any]) -> None:
    """Raises ValueError at the first leaf that holds NaN or infinity, outside of jit."""
    floating = {p: x for p, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    for path, count in _values(floating, _not_finite, _finite_sum).items():
        if count:
            raise ValueError(
                f"{path}: expected finite weights, got {count} of {floating[path].size} that are "
                "NaN or infinite"
            )


def _check_variances(leaves: Mapping[str, Any], plan: Plan) -> None:
    variances = {norm.variance: leaves[norm.variance] for norm in plan.norms}
    lowest = _values(variances, _lowest)
    for norm in plan.norms:
        if not lowest.get(norm.variance, 0) >= -norm.eps:
            raise ValueError(f"{norm.variance}: expected variances, got a negative number")


def _values(
    leaves: Mapping[str, Any],
    function: Callable[[Any, Any], Any],
    passes: Callable[[np.ndarray], bool] = lambda x: False,
) -> dict[str, Any]:
    """A number of every leaf that can be looked at: read where it is, or else in one program.

    Leaves that pass are left out. Of arrays on other devices, or on several, only the numbers
    leave them.
    """
    concrete = {path: x for path, x in leaves.items() if is_concrete(x)}
    near = {path: np.asarray(x) for path, x in concrete.items() if _is_near(x)}
    found = {path: function(np, x) for path, x in near.items() if not passes(x)}
    far = {path: x for path, x in concrete.items() if path not in near}
    if far:
        with jax.ensure_compile_time_eval():  # for arrays that a jitted function closes over
            found |= jax.device_get(_on_devices(far, function))
    return found


def _is_near(x: Any) -> bool:
    """Whether numpy sees the array without a copy."""
    if not isinstance(x, jax.Array):
        return True
    return len(x.devices()) == 1 and all(device.platform == "cpu" for device in x.devices())


@functools.partial(jax.jit, static_argnames="function")
def _on_devices(leaves: dict[str, Array], function: Callable[[Any, Any], Any]) -> dict[str, Array]:
    return {path: function(jnp, x) for path, x in leaves.items()}


def _not_finite(numpy: Any, x: Any) -> Any:
    return numpy.sum(~numpy.isfinite(x))


def _lowest(numpy: Any, x: Any) -> Any:
    return numpy.min(x.astype(jnp.promote_types(x.dtype, "float32")), initial=0)


def _finite_sum(x: np.ndarray) -> bool:
    """Whether the sum is finite: then so is every term; else one has to look at them."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(x, dtype=np.promote_types(x.dtype, np.float32))))


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
