"""Functions of numpy arrays called on the host."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


def called(function: Callable[..., PyTree], shapes: PyTree, *trees: PyTree) -> PyTree:
    """What a function of numpy arrays returns, called on the host, also under jit and vmap.

    Args:
      function: of trees of arrays.
      shapes: of what it returns, leading axes of a vmap among them.
      *trees: of arrays.

    Returns:
      A tree like ``shapes``.
    """
    # The callback runs in a thread of its own, where `jax.enable_x64` as a context is not seen and
    # jax would round float64: it travels as pairs of words.

    def packed(x: Array) -> Array:
        return jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype == jnp.float64 else x

    def on_words(*words: PyTree) -> PyTree:
        numbers = jax.tree.map(
            lambda x, double: np.ascontiguousarray(x).view(np.float64)[..., 0] if double else x,
            jax.tree.map(np.asarray, words),
            doubles,
        )
        found = function(*numbers)
        return jax.tree.map(
            lambda x: x[..., None].view(np.uint32) if x.dtype == np.float64 else x, found
        )

    doubles = jax.tree.map(lambda x: x.dtype == jnp.float64, trees)
    words = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*x.shape, 2), jnp.uint32) if x.dtype == jnp.float64 else x,
        shapes,
    )
    found = jax.pure_callback(
        on_words, words, *jax.tree.map(packed, trees), vmap_method="broadcast_all"
    )
    return jax.tree.map(
        lambda x, shape: (
            jax.lax.bitcast_convert_type(x, jnp.float64) if shape.dtype == jnp.float64 else x
        ),
        found,
        shapes,
    )
