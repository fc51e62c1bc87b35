"""What every solver returns."""

from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Cost: TypeAlias = Float[Array, "n m"]
Source: TypeAlias = Float[Array, " n"]  # one number per source
Target: TypeAlias = Float[Array, " m"]


class Solution(NamedTuple):
    """What a solver returns: plan, source potential, convergence flag and iteration count."""

    map: Float[Array, "*batch n m"]
    potential: Float[Array, "*batch n"]
    converged: Bool[Array, "*batch"]
    iterations: Int[Array, "*batch"]


def marginal_error(plan: Array, a: Array, b: Array) -> Array:
    """The L1 error of both marginals."""
    return jnp.sum(jnp.abs(plan.sum(1) - a)) + jnp.sum(jnp.abs(plan.sum(0) - b))


def nearest_cost(cost: Array, a: Array, b: Array) -> Array:
    """What a source pays for its nearest target: a feasible dual potential; 0 for absent ones."""
    return jnp.where(a > 0, jnp.min(jnp.where(b[..., None, :] > 0, cost, jnp.inf), axis=-1), 0)
