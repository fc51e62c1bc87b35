"""Inputs of a function taken apart into arrays and static values."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ifjax.namespace import Shaped
from ifjax.tree import path_name

RAW_KEYS = (2, 4)  # words of a raw key: threefry's, and those of rbg and unsafe_rbg


def check_order(call: str, apply_fn: object, params: object) -> None:
    """Raises TypeError where a function is not first, and its parameters second.

    >>> check_order("compress(apply_fn, params, ...)", {"w": 1.0}, len)
    Traceback (most recent call last):
    ...
    TypeError: expected compress(apply_fn, params, ...), a function and its parameters, got dict \
    first and a function second: they are swapped
    """
    if callable(apply_fn) and not inspect.isroutine(params):
        return
    swapped = " and a function second: they are swapped" if callable(params) else ""
    raise TypeError(
        f"expected {call}, a function and its parameters, got {type(apply_fn).__name__} "
        f"first{swapped}"
    )


def is_array(x: object) -> TypeGuard[Shaped]:
    """Whether a leaf of the inputs is traced; other Python values are static."""
    return isinstance(x, Shaped)


def struct(x: PyTree) -> jax.ShapeDtypeStruct:
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


def is_key(x: object) -> bool:
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
    static: tuple[tuple[int, object], ...]
    arrays: tuple[Shaped, ...]
    paths: tuple[str, ...] = ()
    keywords: frozenset[str] = frozenset()

    @classmethod
    def split(
        cls, inputs: Sequence[PyTree], keywords: Mapping[str, object] | None = None
    ) -> Arguments:
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

    def join(self, arrays: Sequence[PyTree]) -> tuple[PyTree, ...]:
        """Puts inputs together, with other arrays."""
        return self._joined(arrays)[0]

    def call(
        self,
        function: Callable[..., PyTree],
        params: PyTree,
        arrays: Sequence[Shaped],
        static: Mapping[str, object],
    ) -> PyTree:
        """``function(params, *inputs, **static)`` with other arrays."""
        inputs, keywords = self._joined(arrays)
        return function(params, *inputs, **{**static, **keywords})

    def _joined(self, arrays: Sequence[PyTree]) -> tuple[tuple[PyTree, ...], dict[str, PyTree]]:
        rest, static = iter(arrays), dict(self.static)
        numbers = range(self.tree.num_leaves)
        leaves = [static[i] if i in static else next(rest) for i in numbers]
        return jax.tree.unflatten(self.tree, leaves)
