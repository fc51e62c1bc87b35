"""Reading layer widths off a tree of variables, and holding a module to them.

A compressed network is an ordinary flax module again once its widths are known. They stand in the
shapes of its variables, so arrays and ``jax.ShapeDtypeStruct`` leaves serve alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax

from ifjax.spec.spec import FusionSpec

Variables = Mapping[str, Any]
"""A linen variables tree: ``{"params": ..., "batch_stats": ...}`` of arrays or shape structs."""


_Network = TypeVar("_Network", bound="FromSpec")


class Difference(NamedTuple):
    """A leaf that is not as a module needs it.

    Attributes:
        path: where the leaf lies, with ``/`` between the keys.
        expected: its shape, only its number of axes where no more is known, or ``None`` for no
            leaf.
        found: its shape, or ``None`` where there is no array.
    """

    path: str
    expected: tuple[int, ...] | int | None
    found: tuple[int, ...] | None


class VariablesError(ValueError):
    """Variables that are not those of the module class they were given for.

    Attributes:
        differences: the leaves that are missing, left over or of another shape.
    """

    def __init__(self, message: str, *differences: Difference) -> None:
        super().__init__(message)
        self.differences = differences


class FromSpec:
    """Gives a module class with ``from_variables`` a ``from_spec``."""

    @classmethod
    def from_variables(cls: type[_Network], variables: Variables, *, dtype: Any = None) -> _Network:
        """Builds the network that ``variables`` belong to; the module class says how."""
        raise TypeError(f"{cls.__name__} does not say how it is built from variables")

    @classmethod
    def from_spec(cls: type[_Network], spec: FusionSpec, *, dtype: Any = None) -> _Network:
        """Builds the network at the widths of a spec that was made for its variables.

        Args:
            spec: made from ``ifjax.trace`` of this network's ``apply``.
            dtype: the dtype to compute in.

        Returns:
            A module whose ``apply`` accepts what ``ifjax.fuse_params`` returns.

        Raises:
            ValueError: if the spec is of another network.

        Example:
            >>> import ifjax, jax
            >>> import jax.numpy as jnp
            >>> from ifjax.models import MLP
            >>> module, x = MLP(hidden=(8, 4)), jnp.zeros((1, 6))
            >>> variables = jax.eval_shape(module.init, jax.random.key(0), x)
            >>> MLP.from_spec(ifjax.trace(module.apply, variables, x).spec(0.5)).hidden
            (4, 2)
        """
        return cls.from_variables(spec.small_struct(), dtype=dtype)


def scaled(width: int, factor: float) -> int:
    """Multiplies a width, to the nearest integer of at least 1.

    Args:
        width: the width at a factor of 1.
        factor: positive.

    Returns:
        The width.

    Raises:
        ValueError: if the factor is not a positive finite number.

    Example:
        >>> scaled(64, 0.25), scaled(64, 0.001)
        (16, 1)
    """
    if not 0 < factor < math.inf:
        raise ValueError(
            f"expected a positive width multiplier, got width={factor!r}; 1 is the usual network"
        )
    return max(1, round(width * factor))


def leaf_shape(variables: Variables, path: str, ndim: int) -> tuple[int, ...]:
    """The shape of the leaf at ``path``, which must have ``ndim`` axes.

    Args:
        variables: linen variables, or a tree of ``jax.ShapeDtypeStruct`` of that structure.
        path: where the leaf lies, with ``/`` between the keys, such as ``"params/linear/kernel"``.
        ndim: how many axes the leaf must have.

    Returns:
        The shape, as Python integers.

    Raises:
        VariablesError: a ``ValueError``, if no such leaf exists, or it has another number of axes.

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
            raise VariablesError(
                f"expected a leaf at {path!r}, got {present} at {'/'.join(walked) or 'root'!r}; "
                'pass the whole variables tree of this model, {"params": ..., "batch_stats": ...}',
                Difference(path, ndim, None),
            )
        node = node[key]
        walked.append(key)
    shape = getattr(node, "shape", None)
    if shape is None or len(shape) != ndim:
        found = type(node).__name__ if shape is None else f"shape {tuple(shape)}"
        raise VariablesError(
            f"expected {ndim} axes at {path!r}, got {found}; "
            "pass the variables of this model class",
            Difference(path, ndim, None if shape is None else tuple(shape)),
        )
    return tuple(int(size) for size in shape)


def numbered(variables: Variables, prefix: str) -> int:
    """Counts the modules ``prefix1``, ``prefix2``, ... among the top-level parameters.

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
    """Raises unless ``widths`` is a tuple of integers of at least ``minimum``.

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
    """Raises unless ``variables`` has exactly the leaves and shapes that ``module`` declares.

    Nothing is computed: the module is initialised abstractly.

    Args:
        module: a linen module.
        variables: its variables, or a tree of ``jax.ShapeDtypeStruct`` of that structure.
        input_shape: the shape of one input batch that the module accepts.

    Raises:
        VariablesError: a ``ValueError`` that names every leaf that is missing, left over or of
            another shape.

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
    differences = [
        Difference(path, expected.get(path), found.get(path))
        for path in sorted(expected.keys() | found.keys())
        if expected.get(path) != found.get(path)
    ]
    if differences:
        listing = "\n  ".join(
            f"{path}: expected {_or_none(wanted)}, got {_or_none(given)}"
            for path, wanted, given in differences
        )
        raise VariablesError(
            f"the variables are not those of one {type(module).__name__}:\n  {listing}\n"
            "pass a tree that this class made, dense or compressed, with both collections",
            *differences,
        )


def _or_none(shape: tuple[int, ...] | int | None) -> object:
    return "no leaf" if shape is None else shape


def _shapes(tree: Variables) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
