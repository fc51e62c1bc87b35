"""Channel independence: how much of the nuclear norm of the feature maps a channel holds.

References:
  Sui et al., `CHIP: CHannel Independence-based Pruning for Compact Neural Networks
  <https://arxiv.org/abs/2110.13981>`_, NeurIPS 2021.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ifjax.promotion import with_promotion


@with_promotion
def independence(maps: Float[Array, "n p"]) -> Float[Array, " n"]:
    r"""The drop of the nuclear norm of the feature maps when a channel is set to zero.

    .. math::
        s_i = \|A\|_* - \|M_i \odot A\|_*, \qquad M_i \text{ zero in row } i, \text{ one elsewhere}

    (CHIP, section 3). With A = U S V^T the singular values of the second matrix are the roots
    :math:`\tau` of :math:`1 = \sum_k S_k^2 U_{ik}^2 / (S_k^2 - \tau^2)`, one between every two
    neighbours in S, so that one decomposition serves all channels; they are found by bisection.

    Args:
      maps: one row per channel, one column per position.

    Returns:
      One score per channel, not negative, at most the norm of its row.

    Example:
      >>> import jax.numpy as jnp
      >>> independence(jnp.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])).round(4)
      Array([3., 2.], dtype=float32)
    """
    n, p = maps.shape
    u, s, _ = _svd(maps)
    rest = jnp.zeros(n, u.dtype) if n <= p else jnp.maximum(1 - jnp.sum(jnp.square(u), 1), 0)
    return _drops(u, s, rest)


# jaxlib's batched decompositions wait for XLA's threads on XLA's threads: as many of them at once,
# in one program for the CPU, as there are threads wait for ever. One matrix at a time does not.
@jax.custom_batching.sequential_vmap
def _svd(maps: Array) -> tuple[Array, Array, Array]:
    u, s, v = jnp.linalg.svd(maps, full_matrices=False)
    return u, s, v


@with_promotion
def gram_independence(gram: Float[Array, "n n"]) -> Float[Array, " n"]:
    """`independence` of maps of which only the Gram matrix A A^T is known.

    Squaring halves the digits: singular values below about 3e-4 of the largest one are noise in
    float32, and the scores are right to about that part of the largest one.

    Args:
      gram: A A^T, symmetric.

    Returns:
      One score per channel.

    Example:
      >>> import jax.numpy as jnp
      >>> gram_independence(jnp.array([[9.0, 0.0], [0.0, 4.0]])).round(4)
      Array([3., 2.], dtype=float32)
    """
    squares, u = jnp.linalg.eigh(gram)
    s = jnp.sqrt(jnp.maximum(squares[::-1], 0))
    return _drops(u[:, ::-1], s, jnp.zeros_like(s))


def _drops(u: Float[Array, "n r"], s: Float[Array, " r"], rest: Float[Array, " n"]) -> Array:
    """Sum of the singular values less their sum without row i, for every row of u.

    Between two neighbours in s the number of roots above t is known from the sign of the secular
    function at t (the inertia of a rank-one downdate), whatever entries of u are zero. With
    ``rest`` the part of a row's squared unit length outside of the singular vectors, the function
    is t^2 (rest / t^2 - sum_k u_k^2 / (s_k^2 - t^2)), with no difference of nearly equal numbers.
    """
    unit = jnp.where(s[0] > 0, s[0], 1)
    s, squares = s / unit, jnp.square(u)
    low = jnp.broadcast_to(jnp.append(s[1:], 0), u.shape)
    high = jnp.broadcast_to(s, u.shape)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        t = (low + high) / 2
        gap = (s - t[..., None]) * (s + t[..., None])
        above = jnp.sum(squares[:, None, :] / gap, axis=-1) < rest[:, None] / jnp.square(t)
        return jnp.where(above, t, low), jnp.where(above, high, t)

    steps = jnp.finfo(u.dtype).nmant + 8
    low, high = jax.lax.fori_loop(0, steps, halve, (low, high))
    return unit * jnp.sum(s - (low + high) / 2, axis=1)
