"""Reading layer widths off a tree of variables, and holding a module to them.

A compressed network is an ordinary flax module again once its widths are known. They stand in the
shapes of its variables, so arrays and ``jax.ShapeDtypeStruct`` leaves serve alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

Variables = Mapping[str, Any]
"""A linen variables tree: ``{"params": ..., "batch_stats": ...}`` of arrays or shape structs."""


def leaf_shape(variables: Variables, path: str, ndim: int) -> tuple[int, ...]:
    """Return the shape of the leaf at ``path``, which must have ``ndim`` axes.

    Args:
        variables: linen variables, or a tree of ``jax.ShapeDtypeStruct`` of that structure.
        path: where the leaf lies, with ``/`` between the keys, such as ``"params/linear/kernel"``.
        ndim: how many axes the leaf must have.

    Returns:
        The shape, as Python integers.

    Raises:
        ValueError: if no such leaf exists, or it has another number of axes.

    Example:
        >>> import jax
        >>> tree = {"params": {"fc1": {"kernel": jax.ShapeDtypeStruct((4, 3), "float32")}}}
        >>> leaf_shape(tree, "params/fc1/kernel", ndim=2)
        (4, 3)
    """
    node: Any = variables
    walked: list[str] = []
    for key in path.split("/"):
        if not isinstance(node, Mapping) or key not in node:
            present = sorted(map(str, node)) if isinstance(node, Mapping) else type(node).__name__
            raise ValueError(
                f"expected a leaf at {path!r}, got {present} at {'/'.join(walked) or 'root'!r}; "
                'pass the whole variables tree of this model, {"params": ..., "batch_stats": ...}'
            )
        node = node[key]
        walked.append(key)
    shape = getattr(node, "shape", None)
    if shape is None or len(shape) != ndim:
        found = type(node).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(
            f"expected {ndim} axes at {path!r}, got {found}; pass the variables of this model class"
        )
    return tuple(int(size) for size in shape)


def numbered(variables: Variables, prefix: str) -> int:
    """Count the modules ``prefix1``, ``prefix2``, ... among the top-level parameters.

    Args:
        variables: linen variables, or a tree of ``jax.ShapeDtypeStruct`` of that structure.
        prefix: the module name before the number.

    Returns:
        The largest N such that ``prefix1`` to ``prefixN`` all exist.

    Example:
        >>> numbered({"params": {"fc1": {}, "fc2": {}, "linear": {}}}, "fc")
        2
    """
    params = variables.get("params", {})
    count = 0
    while f"{prefix}{count + 1}" in params:
        count += 1
    return count


def check_widths(what: str, widths: tuple[int, ...], minimum: int = 1) -> None:
    """Raise unless ``widths`` is a tuple of integers of at least ``minimum``.

    Args:
        what: the argument's name, for the message.
        widths: the widths to check.
        minimum: the smallest width allowed.

    Raises:
        ValueError: if one is too small, not an integer, or ``widths`` is no tuple.

    Example:
        >>> check_widths("hidden", (64, 32))
    """
    if not isinstance(widths, tuple):
        raise ValueError(
            f"expected a tuple of integers for {what}, got {widths!r}; write {what}=(16, 32)"
        )
    for position, width in enumerate(widths):
        if isinstance(width, bool) or not isinstance(width, int) or width < minimum:
            raise ValueError(
                f"expected an integer of at least {minimum} at {what}[{position}], "
                f"got {width!r} in {what}={widths!r}"
            )


def check_variables(module: nn.Module, variables: Variables, input_shape: tuple[int, ...]) -> None:
    """Raise unless ``variables`` has exactly the leaves and shapes that ``module`` declares.

    Nothing is computed: the module is initialised abstractly.

    Args:
        module: a linen module.
        variables: its variables, or a tree of ``jax.ShapeDtypeStruct`` of that structure.
        input_shape: the shape of one input batch that the module accepts.

    Raises:
        ValueError: naming every leaf that is missing, left over or of another shape.

    Example:
        >>> import flax.linen as nn
        >>> import jax
        >>> kernel = jax.ShapeDtypeStruct((3, 2), "float32")
        >>> tree = {"params": {"kernel": kernel}}
        >>> check_variables(nn.Dense(2, use_bias=False), tree, (1, 3))
    """
    image = jax.ShapeDtypeStruct(input_shape, "float32")
    expected = _shapes(jax.eval_shape(module.init, jax.random.key(0), image))
    found = _shapes(variables)
    lines = [f"{path}: expected {expected[path]}, got no leaf" for path in expected.keys() - found]
    lines += [f"{path}: expected no leaf, got {found[path]}" for path in found.keys() - expected]
    lines += [
        f"{path}: expected {expected[path]}, got {found[path]}"
        for path in expected.keys() & found
        if expected[path] != found[path]
    ]
    if lines:
        listing = "\n  ".join(sorted(lines))
        raise ValueError(
            f"the variables are not those of one {type(module).__name__}:\n  {listing}\n"
            "pass a tree that this class made, dense or compressed, with both collections"
        )


def _shapes(tree: Variables) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
