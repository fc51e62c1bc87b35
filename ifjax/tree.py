"""Parameter trees as leaves by path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree


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


def check_finite(leaves: Mapping[str, Any]) -> None:
    """Raises ValueError at the first leaf that holds NaN or infinity, outside of jit."""
    floating = {p: x for p, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    for path, count in numbers_of(floating, _not_finite, _finite_sum).items():
        if count:
            raise ValueError(
                f"{path}: expected finite weights, got {count} of {floating[path].size} that are "
                "NaN or infinite"
            )


def numbers_of(
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


def lowest(numpy: Any, x: Any) -> Any:
    """The lowest number of an array, 0 where all are positive; by numpy or jax.numpy."""
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
    return x.astype(jax.dtypes.canonicalize_dtype(wide_dtype(x.dtype)), copy=False)


@functools.lru_cache(maxsize=256)
def wide_dtype(dtype: Any) -> Any:
    """The dtype to compute in: at least float32. 8-bit floats have no promotion of their own."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 2:
        return jnp.dtype(jnp.float32)
    return jnp.promote_types(dtype, jnp.float32)
