"""The elimination of `choice` on an accelerator: rounds of one compiled program.

It takes the same neurons but for rounding. What `choice` says of M and Y holds here too.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import linalg
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from ifjax.namespace import AnyArray
from ifjax.parallel.hosts import on_host
from ifjax.parallel.matrices import TIMES, inverse, mesh_of, placed


def eliminated(
    gram: Float[Array, "B n n"],
    weights: Float[AnyArray, "B n O"],
    quota: Int[np.ndarray, " E"],
    most: bool,
    ridge: float,
    candidates: int,
) -> Bool[np.ndarray, " n"] | None:
    """Takes neuron after neuron, each of one column, that says most, or least.

    Args:
      gram: of B problems whose errors add up; the neurons of one entry after the other. Spread
        over a mesh it stays so.
      weights: of the consumers.
      quota: how many neurons are taken of each entry.
      most: whether those are taken that say most and stay; else those go that say least.
      ridge: what is added to the diagonal, of its mean.
      candidates: how many columns are looked at one by one before all others are brought up to
        date, which happens when a quarter of them is taken.

    Returns:
      Which are taken; None where single precision does not do.

    Example:
      >>> x = jnp.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 2]])  # the third is the sum of the others
      >>> weights = jnp.array([[[0.0], [0.0], [3.0]]])
      >>> eliminated((x.T @ x)[None], weights, np.array([1]), True, 0.01, 256)
      array([False, False,  True])
    """
    mesh = mesh_of(gram)
    weights = placed(np.asarray(weights, gram.dtype), mesh)
    matrices, right = _begun(gram, weights, most, ridge, mesh)
    left, taken = jnp.asarray(quota), jnp.zeros(right.shape[1], bool)
    looked_at = min(candidates, right.shape[1])
    for _ in range(int(quota.sum())):  # every round takes one at least
        matrices, right, left, taken = _round(matrices, right, left, taken, most, looked_at, mesh)
        if not left.any():
            break
    done = not left.any() and bool(jnp.isfinite(right).all())
    return on_host(taken) if done else None


@functools.partial(jax.jit, static_argnames=("most", "mesh"))
def _begun(
    gram: Array, weights: Array, most: bool, ridge: Array | float, mesh: Mesh | None
) -> tuple[Array, Array]:
    """M and Y."""
    n = gram.shape[1]
    unit = jnp.trace(gram, axis1=1, axis2=2) / n
    shift = ridge * jnp.where(unit > 0, unit, 1)
    gram = gram + shift[:, None, None] * jnp.eye(n, dtype=gram.dtype)
    if most:
        return placed(gram, mesh), placed(TIMES("bij,bjo->bio", gram, weights), mesh)
    return inverse(gram, mesh), weights


@functools.partial(jax.jit, static_argnames=("most", "looked_at", "mesh"), donate_argnums=(0, 1))
def _round(
    matrices: Array,
    right: Array,
    quota: Array,
    taken: Array,
    most: bool,
    looked_at: int,
    mesh: Mesh | None,
) -> tuple[Array, Array, Array, Array]:
    """Takes a quarter of the candidates, and what they say out of all others."""
    n = right.shape[1]
    entry = jnp.arange(n) // (n // len(quota))
    is_open = ~taken & (quota[entry] > 0)
    worth = (jnp.square(right).sum(-1) / jnp.diagonal(matrices, axis1=1, axis2=2)).sum(0)
    worth = worth if most else -worth
    _, at = lax.top_k(jnp.where(is_open, worth, -jnp.inf), looked_at)
    own, x = matrices[:, at[:, None], at], right[:, at]
    square = TIMES("bio,bjo->bij", x, x)
    limit = max(looked_at // 4, 1)
    picks, quota = _one_by_one(own, square, is_open[at], entry[at], quota, limit, most)
    some = picks >= 0
    gone = jnp.where(some, at[picks], n)
    taken = taken.at[gone].set(True, mode="drop")
    across = jnp.where(some, matrices[:, :, at[picks]], 0)  # [B, n, g]
    block = jnp.where(some[:, None] & some, across[:, at[picks]], jnp.eye(limit, dtype=right.dtype))
    factor = jnp.linalg.cholesky(block)
    lower = jax.vmap(functools.partial(linalg.solve_triangular, lower=True))
    part = lower(factor, across.swapaxes(1, 2))  # [B, g, n]
    said = lower(factor, jnp.where(some[:, None], right[:, at[picks]], 0))
    matrices = placed(matrices - TIMES("bgi,bgj->bij", part, part), mesh)
    right = placed(right - TIMES("bgi,bgo->bio", part, said), mesh)
    return matrices, right, quota, taken


def _one_by_one(
    matrix: Array, square: Array, is_open: Array, entry: Array, quota: Array, limit: int, most: bool
) -> tuple[Array, Array]:
    """Candidates that are taken, -1 where there are no more; what is left of the quota."""

    def step(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        matrix, square, is_open, quota, picks = state
        worth = (jnp.einsum("bkk->bk", square) / jnp.einsum("bkk->bk", matrix)).sum(0)
        at = jnp.argmax(jnp.where(is_open, worth if most else -worth, -jnp.inf))
        found = is_open.any()
        share = jnp.where(found, matrix[:, at] / matrix[:, at, at, None], 0)
        half = square[:, at] - square[:, at, at, None] * share / 2
        change = share[:, :, None] * half[:, None]
        square = square - change - change.swapaxes(1, 2)
        matrix = matrix - share[:, :, None] * matrix[:, None, at]
        quota = quota.at[entry[at]].add(-found.astype(quota.dtype))
        is_open = is_open.at[at].set(False) & (quota[entry] > 0)
        return matrix, square, is_open, quota, picks.at[i].set(jnp.where(found, at, -1))

    picks = jnp.full(limit, -1)
    *_, quota, picks = lax.fori_loop(0, limit, step, (matrix, square, is_open, quota, picks))
    return picks, quota
