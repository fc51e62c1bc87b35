"""Public functions under the promotion rules of numpy, whatever the caller has set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def with_promotion(function: Callable[P, R]) -> Callable[P, R]:
    """A function that runs under JAX's default promotion of dtypes and ranks.

    Code bases set ``jax_numpy_dtype_promotion="strict"`` or ``jax_numpy_rank_promotion="raise"``
    for their own arithmetic. Ours mixes bfloat16 leaves with float32 maps on purpose, and ott-jax
    and optax fail under either setting; no result depends on them. Functions of the caller that are
    called inside, such as ``apply_fn``, run under the default rules too.

    Args:
      function: called eagerly or while it is traced.

    Returns:
      The function.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> add = with_promotion(lambda x: jnp.asarray(x, jnp.bfloat16) + jnp.ones(2, jnp.float32))
      >>> with jax.numpy_dtype_promotion("strict"):
      ...     add([1, 2]).dtype.name
      'float32'
    """

    @functools.wraps(function)
    def promoting(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return promoting
