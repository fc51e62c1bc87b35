"""What a solver of the transport problem is, a value with its options, and what it returns."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
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


class Solver(abc.ABC):
    """A solver of the transport problem; hashable, a frozen dataclass whose fields are its options.

    Called with the arrays of a problem, it returns a `Solution`; under `jax.vmap` too. One's own is
    a class with a ``__call__``, and nothing has to be registered: a spec takes the value itself.

    **A mass of zero means absent**: problems of different sizes share a batch by padding. The costs
    of an absent source or target are not read, and nothing depends on them: not the mean cost that
    an epsilon is relative to, not the plan of the others, whose derivatives are finite. Its row or
    column of the plan is zero, its potential is zero.

    Attributes:
      optimal: the plan is one of least cost, so that mass may be left out of the problem where an
        optimal plan leaves it in its place.
      balanced: every target receives its mass; else only the sources' marginal is met.

    Example:
      >>> import dataclasses, ifjax, jax.numpy as jnp
      >>> from ifjax.transport.solvers import Solution, Solver
      >>> @dataclasses.dataclass(frozen=True)
      ... class Product(Solver):
      ...     def __call__(self, cost, a, b, init=None):
      ...         plan = a[:, None] * b / b.sum()
      ...         return Solution(plan, 0 * a, jnp.asarray(True), jnp.int32(0))
      >>> params = {"w1": jnp.eye(4), "w2": jnp.ones((4, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> maps = ifjax.transport_maps(params, graph.spec(0.5, solver=Product()))
      >>> maps["w1"].map[0].tolist()
      [0.125, 0.125]
    """

    optimal: ClassVar[bool] = False
    balanced: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(self, cost: Cost, a: Source, b: Target, init: Source | None = None) -> Solution:
        """Solves a problem.

        Args:
          cost: cost of moving a unit of mass; in one dtype with the masses, float32 or float64.
          a: mass of the sources; zero for absent ones.
          b: mass of the targets, likewise.
          init: a source potential to start from, for solvers that iterate; NaN at a source that is
            present is none, so that a batch may hold problems with and without.

        Returns:
          The plan.
        """

    def at(self, n: int, m: int, *, uniform: bool, backend: str | None = None) -> Solver:
        """The solver for n sources and m targets, with marginals that are both uniform or not.

        Itself, unless it chooses by these and by the backend, by default `jax.default_backend`.
        """
        del n, m, uniform, backend
        return self

    def sources(self, n: int, m: int) -> int | None:
        """How many sources every target has in a plan of uniform marginals.

        None where that is not known before the problem is solved.
        """
        del n, m
        return None

    def require(self, n: int, m: int, *, uniform: bool) -> None:
        """Raises ImportError where such a problem needs a package that is missing."""
        del n, m, uniform


class HostSolver(Solver):
    """A solver that runs on the host, in numpy, and takes many problems in one call."""

    @abc.abstractmethod
    def solve_all(
        self, costs: Sequence[np.ndarray], a: Sequence[np.ndarray], b: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The plans ``[..., n, m]`` of stacked problems in numpy, and whether each was solved."""


def marginal_error(plan: Array, a: Array, b: Array) -> Array:
    """The L1 error of both marginals."""
    return jnp.sum(jnp.abs(plan.sum(1) - a)) + jnp.sum(jnp.abs(plan.sum(0) - b))


def nearest_cost(cost: Array, a: Array, b: Array) -> Array:
    """What a source pays for its nearest target: a feasible dual potential; 0 for absent ones."""
    return jnp.where(a > 0, jnp.min(jnp.where(b[..., None, :] > 0, cost, jnp.inf), axis=-1), 0)
