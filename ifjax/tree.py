"""Parameter trees as leaves by path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import KeyPath
from jaxtyping import Array, PyTree

from ifjax.namespace import AnyArray, wide_dtype

# A number, or a vector of them, of an array; the namespace is numpy or jax.numpy.
Measure: TypeAlias = Callable[[ModuleType, AnyArray], np.generic | AnyArray]


def is_concrete(*values: object) -> bool:
    """Whether values can be looked at: false inside a jitted function."""
    return not any(isinstance(v, Tracer) for v in values)


def path_name(path: KeyPath) -> str:
    """A key path as text: keys joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> list[tuple[str, PyTree]]:
    """The leaves of a tree in its order, each with the name of its path."""
    return [(path_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def leaves_by_path(params: PyTree) -> dict[str, PyTree]:
    """Leaves of a tree by `path_name`."""
    leaves: dict[str, PyTree] = {}
    for name, leaf in named_leaves(params):
        if name in leaves:
            raise ValueError(f"two leaves of the parameters have the path {name}: rename one")
        leaves[name] = leaf
    return leaves


def check_finite(leaves: Mapping[str, AnyArray]) -> None:
    """Raises ValueError at the first leaf that holds NaN or infinity, outside of jit."""
    floating = {p: x for p, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    for path, count in numbers_of(floating, _not_finite, _finite_sum).items():
        if count:
            raise ValueError(
                f"{path}: expected finite weights, got {count} of {floating[path].size} that are "
                "NaN or infinite"
            )


def numbers_of(
    leaves: Mapping[str, AnyArray],
    function: Measure,
    passes: Callable[[np.ndarray], bool] = lambda x: False,
) -> dict[str, float | int]:
    """A number of every leaf that can be looked at: read where it is, or else in one program.

    Leaves that pass are left out. Of arrays on other devices, or on several, only the numbers
    leave them.
    """
    concrete = {path: x for path, x in leaves.items() if is_concrete(x)}
    near = {path: np.asarray(x) for path, x in concrete.items() if _is_near(x)}
    found = {path: function(np, x).item() for path, x in near.items() if not passes(x)}
    far = {path: x for path, x in concrete.items() if path not in near}
    if far:
        with jax.ensure_compile_time_eval():  # for arrays that a jitted function closes over
            each = jax.device_get(_on_devices(far, function))
        found |= {path: x.item() for path, x in each.items()}
    return found


def _is_near(x: AnyArray) -> bool:
    """Whether numpy sees the array without a copy."""
    if not isinstance(x, jax.Array):
        return True
    return len(x.devices()) == 1 and all(device.platform == "cpu" for device in x.devices())


@functools.partial(jax.jit, static_argnames="function")
def _on_devices(leaves: dict[str, Array], function: Measure) -> dict[str, AnyArray]:
    return {path: function(jnp, x) for path, x in leaves.items()}


def _not_finite(numpy: ModuleType, x: AnyArray) -> np.generic | AnyArray:
    return numpy.sum(~numpy.isfinite(x))


def lowest(numpy: ModuleType, x: AnyArray) -> np.generic | AnyArray:
    """The lowest number of an array, 0 where all are positive; by numpy or jax.numpy."""
    return numpy.min(x.astype(jnp.promote_types(x.dtype, "float32")), initial=0)


def _finite_sum(x: np.ndarray) -> bool:
    """Whether the sum is finite: then so is every term; else one has to look at them."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(x, dtype=np.promote_types(x.dtype, np.float32))))


def with_leaves(params: PyTree, leaves: Mapping[str, PyTree]) -> PyTree:
    """The tree with the structure of ``params`` and other leaves."""
    ordered = [leaves[path] for path, _ in named_leaves(params)]
    return jax.tree.unflatten(jax.tree.structure(params), ordered)


def promoted(x: AnyArray) -> AnyArray:
    """At least float32; what is not floating point is left alone."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(jax.dtypes.canonicalize_dtype(wide_dtype(x.dtype)), copy=False)
