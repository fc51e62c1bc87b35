"""How far the outputs of a network have moved: one number for a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

Divergence = str | Callable[[PyTree, PyTree], Any]


def divergence_of(divergence: Divergence) -> Callable[[PyTree, PyTree], float]:
    """The function ``(dense, small) -> number`` that a choice means.

    Args:
      divergence: ``"kl"``, of the softmax over the last axis of every output, a mean over all other
        axes; ``"squared"``, the squared distance relative to how far the dense outputs spread
        around their mean; or such a function.

    Returns:
      The function.

    Raises:
      ValueError: for another name.

    Example:
      >>> a, b = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, jnp.log(3.0)]])
      >>> round(divergence_of("kl")(a, b), 4), round(divergence_of("squared")(b, a), 4)
      (0.1438, 2.0)
    """
    if divergence == "kl":
        return lambda dense, small: _summed(_kl, _logits(dense), _logits(small))
    if divergence == "squared":
        return lambda dense, small: _summed(_squared, _floats(dense), _floats(small))
    if callable(divergence):
        return lambda dense, small: float(divergence(dense, small))
    raise ValueError(
        f"divergence must be 'kl', 'squared', or a function of dense and small outputs; got "
        f"{divergence!r}"
    )


def _summed(of: Callable[[Array, Array], Array], xs: list[Array], ys: list[Array]) -> float:
    return float(np.sum([float(of(x, y)) for x, y in zip(xs, ys, strict=True)]))


@jax.jit
def _kl(dense: Array, small: Array) -> Array:
    p, q = jax.nn.log_softmax(dense), jax.nn.log_softmax(small)
    return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))


@jax.jit
def _squared(dense: Array, small: Array) -> Array:
    spread = jnp.sum((dense - dense.mean()) ** 2)
    return jnp.sum((dense - small) ** 2) / jnp.where(spread > 0, spread, 1)


def _floats(outputs: PyTree) -> list[Array]:
    """The outputs that are real numbers, in float32 or float64."""
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(outputs)]
    found = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    if not found:
        raise ValueError(
            "expected outputs that are real numbers, got none; give a function of dense and small "
            "outputs as divergence"
        )
    return [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in found]


def _logits(outputs: PyTree) -> list[Array]:
    found = _floats(outputs)
    for x in found:
        if x.ndim == 0 or x.shape[-1] == 1:
            raise ValueError(
                f"divergence 'kl': expected logits along the last axis, got an output of shape "
                f"{x.shape}; divergence='squared' compares outputs of any kind"
            )
    return found
