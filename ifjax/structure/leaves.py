"""The leaves of a parameter tree, checked against a structure."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ifjax.namespace import AnyArray
from ifjax.structure.structure import Leaf, Structure
from ifjax.tree import check_finite, leaves_by_path, lowest, named_leaves, numbers_of

WHOLE = 'pass the whole tree, for flax.linen {"params": ..., "batch_stats": ...}'


def checked_leaves(params: PyTree, structure: Structure) -> dict[str, AnyArray]:
    """Leaves by path, if they are those of the structure.

    Args:
      params: the full parameter tree.
      structure: what it should look like.

    Returns:
      Arrays by path.

    Raises:
      ValueError: naming the first leaf that is missing, unexpected, of another shape or kind, or
        not finite (outside of jit).
    """
    leaves = leaves_by_path(params)
    missing = [p for p in structure.leaf if p not in leaves]
    if missing:
        if {*missing} <= _statistics(structure):
            hint = f"batch statistics change their width too, {WHOLE}"
        else:
            hint = f"the parameters have {len(leaves)} leaves, the spec was made for others"
        raise ValueError(
            f"{missing[0]}: expected a leaf of shape {structure.leaf[missing[0]].shape}, got none "
            f"({len(missing)} of the spec's {len(structure.leaves)} leaves are missing); {hint}"
        )
    for path, leaf in leaves.items():
        want = _check_leaf(path, leaf, structure)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"{path}: expected an array, got a ShapeDtypeStruct, which has no values; "
                "spec.small_struct(params) gives the shapes of the small parameters"
            )
        if _kind(str(leaf.dtype)) != _kind(want.dtype):
            raise ValueError(f"{path}: expected dtype {want.dtype}, got {leaf.dtype}")
    check_finite(leaves)
    _check_variances(leaves, structure)
    return leaves


def some_leaves(tree: PyTree, structure: Structure) -> dict[str, AnyArray]:
    """Leaves by path, if they are leaves of the structure at full shape.

    Raises:
      ValueError: naming the first leaf that is unexpected, or of another shape.
    """
    leaves = leaves_by_path(tree)
    for path, leaf in leaves.items():
        _check_leaf(path, leaf, structure)
    return leaves


def _check_leaf(path: str, leaf: object, structure: Structure) -> Leaf:
    """What the structure has at the path of a leaf, if it is of that shape."""
    if path not in structure.leaf:
        raise ValueError(f"{path}: not a leaf of the network this spec was made for")
    want, got = structure.leaf[path], getattr(leaf, "shape", type(leaf).__name__)
    if got != want.shape:
        raise ValueError(f"{path}: expected shape {want.shape}, got {got}")
    return want


def check_small(params: PyTree, structure: Structure) -> None:
    """Raises ValueError at the first leaf whose shape is not the structure's small one."""
    found = {path: tuple(x.shape) for path, x in named_leaves(params)}
    for path in structure.leaf:
        if path not in found:
            hint = f"; {WHOLE}" if path in _statistics(structure) else ""
            raise ValueError(f"{path}: the spec has this leaf, the parameters do not{hint}")
    for path, shape in found.items():
        if path not in structure.leaf:
            raise ValueError(f"{path}: not a leaf of the network this spec was made for")
        if shape != structure.shape(path):
            full = " (the full shape: call ifjax.fuse_params first)"
            raise ValueError(
                f"{path}: expected shape {structure.shape(path)} at the widths of the spec, got "
                f"{shape}" + (full if shape == structure.leaf[path].shape else "")
            )


def _statistics(structure: Structure) -> set[str]:
    """Paths of running means and variances."""
    members = (m for g in structure.groups for m in g.members)
    return {m.path for m in members if m.role in ("mean", "variance")}


def _kind(dtype: str) -> str:
    """What may not stand for another: precisions of one kind may."""
    if dtype.startswith("key"):
        return "key"
    kinds = (jnp.floating, jnp.integer, jnp.complexfloating, jnp.bool_)
    return next(k.__name__ for k in kinds if jnp.issubdtype(jnp.dtype(dtype), k))


def _check_variances(leaves: Mapping[str, AnyArray], structure: Structure) -> None:
    variances = {norm.variance: leaves[norm.variance] for norm in structure.norms}
    least = numbers_of(variances, lowest)
    for norm in structure.norms:
        if not least.get(norm.variance, 0) >= -norm.eps:
            raise ValueError(f"{norm.variance}: expected variances, got a negative number")
