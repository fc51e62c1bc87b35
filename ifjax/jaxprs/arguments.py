"""Inputs of a function taken apart into arrays and static values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RAW_KEYS = (2, 4)  # words of a raw key: threefry's, and those of rbg and unsafe_rbg


def path_name(path: Any) -> str:
    """A key path as text: keys joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_array(x: Any) -> bool:
    """Whether a leaf of the inputs is traced; other Python values are static."""
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def struct(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, tracer or struct."""
    if not all(isinstance(n, int | np.integer) for n in np.shape(x)):
        raise ValueError(
            f"expected sizes that are numbers, got shape {np.shape(x)}: to export a function for "
            "any batch, map it over single examples, whose number may be symbolic: "
            "jax.vmap(lambda p, x: apply_small(p, x[None])[0], (None, 0))"
        )
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    if not hasattr(x, "dtype"):
        x = np.asarray(x)
    weak = bool(getattr(x, "weak_type", False))
    dtype = jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(x.shape, dtype, weak_type=weak)


def is_key(x: Any) -> bool:
    """Whether a value is a random key, or several: typed, or the raw bits of jax's older ones."""
    if not is_array(x):
        return False
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return True
    return x.dtype == np.uint32 and x.ndim > 0 and x.shape[-1] in RAW_KEYS


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Inputs taken apart into arrays, with the paths they are called by, and static values.

    Keyword arguments that hold random keys are inputs too: what is drawn with a key that the caller
    gives follows the widths, what is drawn with a constant one does not.
    """

    tree: Any
    static: tuple[tuple[int, Any], ...]
    arrays: tuple[Any, ...]
    paths: tuple[str, ...] = ()
    keywords: frozenset[str] = frozenset()

    @classmethod
    def split(cls, inputs: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> Arguments:
        """Takes inputs apart, and those of the keyword arguments that hold random keys."""
        keyed = {k: v for k, v in (keywords or {}).items() if any(map(is_key, jax.tree.leaves(v)))}
        plain, _ = jax.tree_util.tree_flatten_with_path(tuple(inputs))
        named, _ = jax.tree_util.tree_flatten_with_path(keyed)
        traced = [(f"inputs/{path_name(p)}", x, is_array(x)) for p, x in plain]
        traced += [(f"keywords/{path_name(p)}", x, is_key(x)) for p, x in named]
        static = tuple((i, x) for i, (_, x, is_input) in enumerate(traced) if not is_input)
        paths = tuple(path for path, _, is_input in traced if is_input)
        arrays = tuple(x for _, x, is_input in traced if is_input)
        tree = jax.tree.structure((tuple(inputs), keyed))
        return cls(tree, static, arrays, paths, frozenset(keyed))

    def join(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Puts inputs together, with other arrays."""
        return self._joined(arrays)[0]

    def call(
        self, function: Callable[..., Any], params: Any, arrays: Sequence[Any], static: Any
    ) -> Any:
        """``function(params, *inputs, **static)`` with other arrays."""
        inputs, keywords = self._joined(arrays)
        return function(params, *inputs, **{**static, **keywords})

    def _joined(self, arrays: Sequence[Any]) -> Any:
        leaves: list[Any] = [None] * self.tree.num_leaves
        rest = iter(arrays)
        static = dict(self.static)
        for i in range(len(leaves)):
            leaves[i] = static[i] if i in static else next(rest)
        return jax.tree.unflatten(self.tree, leaves)
