"""What the Sinkhorn solvers share: their options, the unit of cost, the plan, its derivative."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ifjax.promotion import with_promotion
from ifjax.transport.solvers.base import Cost, Solution, Solver, Source, Target, marginal_error

EPSILON = 0.01


@dataclasses.dataclass(frozen=True)
class Entropic(Solver):
    """A solver of the problem with entropy: it reads epsilon.

    From the target potential that `iterate` finds, the last half step is exact on the rows:
    ``T 1 = a`` holds to rounding, so that what a source's mass is divided by is its marginal, and
    the whole error is on the targets. Derivatives, forward and reverse, are implicit, by an
    ``[m, m]`` pseudo-inverse; they never raise.

    Attributes:
      epsilon: strength of the entropy relative to the mean cost. Smaller is nearer to the exact
        plan and takes more iterations.
      tolerance: the L1 error of both marginals that counts as converged.
      max_iterations: after so many the flag of the solution is False.
    """

    epsilon: float = EPSILON
    tolerance: float = 1e-3
    max_iterations: int = 10_000

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ValueError: naming the option and what came.
        """
        for name in ("epsilon", "tolerance", "max_iterations"):
            value = getattr(self, name)
            number = isinstance(value, int | float | np.number | jax.Array)
            if not number or not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {value!r}")

    @with_promotion
    def __call__(self, cost: Cost, a: Source, b: Target, init: Source | None = None) -> Solution:
        """Solves a problem; a start is one at the final epsilon."""
        return _solved(cost, a, b, init, self)

    @abc.abstractmethod
    def iterate(
        self, cost: Cost, a: Source, b: Target, start: Source | None, cold: Bool[Array, ""]
    ) -> tuple[Target, Int[Array, ""]]:
        """The target potential, and the number of iterations.

        Args:
          cost: in units of the mean cost, like the start; zero where nothing is present.
          a: mass of the sources.
          b: mass of the targets.
          start: a source potential.
          cold: whether the start is to be ignored.
        """


@functools.partial(jax.jit, static_argnames="solver")
def _solved(cost: Array, a: Array, b: Array, init: Array | None, solver: Entropic) -> Solution:
    epsilon = solver.epsilon
    source, target = a > 0, b > 0
    present = source[:, None] & target
    cost = jnp.where(present, cost, 0)
    mean = jnp.sum(cost) / jnp.maximum(jnp.sum(present), 1)
    unit = jnp.where(mean > 0, mean, 1)
    cost = cost / unit
    start, cold = None, jnp.asarray(True)
    if init is not None:
        start = jnp.where(source, init.astype(cost.dtype), 0) / unit
        cold = jnp.any(jnp.isnan(start))
        start = jnp.where(cold, 0, start)

    def logits(g: Array) -> Array:
        return jnp.where(target, (g - cost) / epsilon, -jnp.inf)

    def excess(g: Array) -> Array:
        return a @ jax.nn.softmax(logits(g), axis=1) - b

    fixed = jax.lax.stop_gradient((cost, a, b, start))
    found, iterations = solver.iterate(*fixed, cold)
    # The plan is a function of the target potential g alone, and g the root of the excess: so the
    # derivative needs no iterations. The Jacobian is symmetric, and singular along constants.
    g = jax.lax.custom_root(
        excess,
        found,
        lambda _, root: root,
        lambda linear, y: jnp.linalg.pinv(jax.jacobian(linear)(y), hermitian=True) @ y,
    )
    plan = a[:, None] * jax.nn.softmax(logits(g), axis=1)
    mass = jnp.where(source, a, 1)
    potential = unit * epsilon * (jnp.log(mass) - jax.nn.logsumexp(logits(g), axis=1))
    return Solution(
        plan,
        jnp.where(source, potential, 0),
        marginal_error(plan, a, b) <= solver.tolerance,
        iterations,
    )
