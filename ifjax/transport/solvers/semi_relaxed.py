"""The semi-relaxed problem, in closed form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ifjax.transport.solvers.solution import Solution, nearest_cost


def nearest(
    cost: Float[Array, "n m"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    epsilon: float,
    init: Float[Array, " n"] | None,
) -> Solution:
    r"""Each source sends its whole mass to its nearest target: the semi-relaxed problem solved.

    .. math::
        T_{ij} = a_i \, [\, j = \arg\min_k C_{ik} \,]

    The exact minimiser once the constraint on the target marginal is dropped. Of equally near
    targets the first one takes the mass; the flag is True for every finite cost.

    Args:
      cost: cost of moving a unit of mass.
      a: mass of the sources; zero for absent ones.
      b: mass of the targets: only which of them are present is read.
      epsilon: not read.
      init: not read.

    Returns:
      The plan; its potential is the cost of the nearest target.

    Example:
      >>> import jax.numpy as jnp
      >>> cost, half = jnp.array([[0.0, 1.0], [0.2, 0.3]]), jnp.full(2, 0.5)
      >>> nearest(cost, half, half, epsilon=0.01, init=None).map
      Array([[0.5, 0. ],
             [0.5, 0. ]], dtype=float32)
    """
    del epsilon, init
    reachable = jnp.where(b > 0, cost, jnp.inf)
    plan = a[:, None] * jax.nn.one_hot(jnp.argmin(reachable, axis=1), len(b), dtype=cost.dtype)
    finite = jnp.isfinite(jnp.where((a > 0)[:, None] & (b > 0), cost, 0))
    return Solution(plan, nearest_cost(cost, a, b), jnp.all(finite), jnp.int32(0))
