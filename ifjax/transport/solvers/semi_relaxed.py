"""The semi-relaxed problem, in closed form."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ifjax.transport.solvers.base import Cost, Solution, Solver, Source, Target, nearest_cost


@dataclasses.dataclass(frozen=True)
class Nearest(Solver):
    r"""Each source sends its whole mass to its nearest target: the semi-relaxed problem solved.

    .. math::
        T_{ij} = a_i \, [\, j = \arg\min_k C_{ik} \,]

    The exact minimiser once the constraint on the target marginal is dropped. Of equally near
    targets the first one takes the mass; the flag is True for every finite cost, the potential is
    the cost of the nearest target. Of the masses of the targets only which of them are present is
    read.

    Example:
      >>> import jax.numpy as jnp
      >>> cost, half = jnp.array([[0.0, 1.0], [0.2, 0.3]]), jnp.full(2, 0.5)
      >>> Nearest()(cost, half, half).map
      Array([[0.5, 0. ],
             [0.5, 0. ]], dtype=float32)
    """

    balanced: ClassVar[bool] = False

    def __call__(self, cost: Cost, a: Source, b: Target, init: Source | None = None) -> Solution:
        """Solves a problem, without a start."""
        del init
        reachable = jnp.where(b > 0, cost, jnp.inf)
        plan = a[:, None] * jax.nn.one_hot(jnp.argmin(reachable, axis=1), len(b), dtype=cost.dtype)
        finite = jnp.isfinite(jnp.where((a > 0)[:, None] & (b > 0), cost, 0))
        return Solution(plan, nearest_cost(cost, a, b), jnp.all(finite), jnp.int32(0))
