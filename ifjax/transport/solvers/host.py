"""Exact transport on the host: assignment by SciPy, everything else by POT's network simplex."""

import dataclasses
import importlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ifjax.parallel.callback import called
from ifjax.transport.solvers.base import Cost, HostSolver, Solution, Source, Target, nearest_cost

# Costs that one thread solves before a second one could have started.
_SMALL = 2**15


@dataclasses.dataclass(frozen=True)
class Exact(HostSolver):
    """The exact plan, on the host in float64; see `exact_many`.

    Under vmap, all problems are solved in one call to the host.

    Example:
      >>> import jax.numpy as jnp
      >>> cost, half = jnp.array([[0.1, 0.0], [1.0, 0.0]]), jnp.full(2, 0.5)
      >>> Exact()(cost, half, half).map
      Array([[0.5, 0. ],
             [0. , 0.5]], dtype=float32)
    """

    optimal: ClassVar[bool] = True

    def __call__(self, cost: Cost, a: Source, b: Target, init: Source | None = None) -> Solution:
        """Solves a problem, without a start.

        Raises:
          ImportError: as `exact_many`.
        """
        del init
        return exact_many([cost], [a], [b])[0]

    def require(self, n: int, m: int, *, uniform: bool) -> None:
        """Raises ImportError where the problem is no assignment, and POT is missing."""
        if not (uniform and divides(n, m)):
            pot()

    def sources(self, n: int, m: int) -> int | None:
        """Those of an assignment, in which the neurons of the shorter side are repeated."""
        return max(1, n // m) if divides(n, m) else None

    def solve_all(
        self, costs: Sequence[np.ndarray], a: Sequence[np.ndarray], b: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Plans and flags of stacked problems, of numpy arrays, in threads; see `exact_many`."""
        found = [(np.zeros_like(cost), np.zeros(cost.shape[:-2], np.bool_)) for cost in costs]
        jobs = [
            (flags, i, plans[i], *(x[i] for x in problem))
            for (plans, flags), problem in zip(found, zip(costs, a, b, strict=True), strict=True)
            for i in np.ndindex(flags.shape)
        ]
        jobs.sort(key=lambda job: -job[2].size)
        if len(jobs) < 2 or sum(job[2].size for job in jobs) < _SMALL:
            _ = [_solve_one(*job) for job in jobs]
        else:
            with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
                _ = list(pool.map(lambda job: _solve_one(*job), jobs))
        return found


def exact_many(costs: Sequence[Array], a: Sequence[Array], b: Sequence[Array]) -> list[Solution]:
    """The exact plans of many problems in one call to the host, which solves them in threads.

    A plan is a vertex of the transport polytope: at most ``n + m - 1`` entries are positive.
    Uniform marginals of which one size divides the other are an assignment of neurons, perhaps
    repeated, and solved by shortest augmenting paths (SciPy); all others by network simplex (POT).
    Both release Python's lock; the largest problem is begun first. Works under jit
    (`jax.pure_callback`) and under vmap; has no gradient. The potential is the cost of a source's
    nearest target: feasible, not optimal. Costs that are not finite give NaN and a flag that is
    False.

    Args:
      costs: ``[..., n, m]``, sizes and leading axes of their own each.
      a: masses of the sources, ``[..., n]``; zero for absent ones.
      b: masses of the targets, ``[..., m]``, likewise.

    Returns:
      A `Solution` with the same leading axes for each of ``costs``.

    Raises:
      ImportError: for sizes of which neither divides the other, without POT; for marginals that
        are not uniform, which only the host sees, it is jax's error of a callback with this text.

    Example:
      >>> import jax.numpy as jnp
      >>> one, two = jnp.ones((3, 1)), jnp.array([[0.0, 1.0], [1.0, 0.0]])
      >>> found = exact_many([one, two], [jnp.full(3, 1 / 3), jnp.full(2, 0.5)],
      ...                    [jnp.ones(1), jnp.full(2, 0.5)])
      >>> [x.map.shape for x in found], found[1].map.tolist()
      ([(3, 1), (2, 2)], [[0.5, 0.0], [0.0, 0.5]])

    References:
      Crouse, `On implementing 2D rectangular assignment algorithms
      <https://doi.org/10.1109/TAES.2016.140952>`_, 2016 (SciPy); Bonneel et al., `Displacement
      interpolation using Lagrangian mass transport <https://doi.org/10.1145/2024156.2024192>`_,
      2011; Flamary et al., `POT: Python Optimal Transport
      <https://jmlr.org/papers/v22/20-451.html>`_, 2021.
    """
    if not all(divides(*cost.shape[-2:]) for cost in costs):
        pot()
    dtype = jnp.result_type(*costs)
    problems = [[x.astype(dtype) for x in part] for part in (costs, a, b)]
    shapes = [
        (
            jax.ShapeDtypeStruct(cost.shape, dtype),
            jax.ShapeDtypeStruct(cost.shape[:-2], jnp.bool_),
        )
        for cost in costs
    ]
    found = called(Exact().solve_all, shapes, *problems)
    return [
        Solution(plan, nearest_cost(*problem), converged, jnp.zeros(converged.shape, jnp.int32))
        for (plan, converged), problem in zip(found, zip(costs, a, b, strict=True), strict=True)
    ]


def divides(n: int, m: int) -> bool:
    """Whether uniform marginals of these sizes are an assignment."""
    return n % m == 0 or m % n == 0


def _solve_one(
    flags: np.ndarray,
    index: tuple[int, ...],
    plan: np.ndarray,
    cost: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
) -> None:
    """Fills in the plan of one problem between what is present, and its flag."""
    precision = 8 * np.finfo(cost.dtype).eps
    rows, columns = np.flatnonzero(a), np.flatnonzero(b)
    here = np.ix_(rows, columns)
    cost, a, b = (x.astype(np.float64) for x in (cost[here], a[rows], b[columns]))
    if not all(np.isfinite(x).all() for x in (cost, a, b)):
        plan[here] = np.nan
        return
    uniform = all(np.ptp(x) <= precision * x.max() for x in (a, b))
    solve = _assignment if uniform and divides(*cost.shape) else _network_simplex
    plan[here], flags[index] = solve(cost, a, b)


def _assignment(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, bool]:
    """Uniform marginals: every neuron of the shorter side is repeated and assigned."""
    from scipy.optimize import linear_sum_assignment

    n, m = cost.shape
    # The cheapest target of each source free: shorter paths, the same assignment.
    square = np.repeat(
        np.repeat(cost - cost.min(1, keepdims=True), max(1, n // m), 1), -(-m // n), 0
    )
    i, j = linear_sum_assignment(square)
    plan = np.zeros_like(cost)
    plan[i // -(-m // n), j // max(1, n // m)] = a.sum() / len(i)
    return plan, True


def _network_simplex(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, bool]:
    """Any marginals."""
    plan, log = pot().emd(a / a.sum(), b / b.sum(), cost, numItermax=10_000_000, log=True)
    return plan * a.sum(), log["warning"] is None


def pot() -> ModuleType:
    """POT, an optional dependency."""
    try:
        return importlib.import_module("ot")
    except ImportError as error:
        raise ImportError(
            "solver 'exact' needs POT for this problem: pip install 'ifjax[exact]' (or take "
            "solver='sinkhorn')"
        ) from error
