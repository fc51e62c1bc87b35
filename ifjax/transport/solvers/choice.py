"""The solvers by name, and which of them ``"auto"`` is."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import numbers

import jax

from ifjax.transport.solvers.base import Cost, Solution, Solver, Source, Target
from ifjax.transport.solvers.entropic import Entropic
from ifjax.transport.solvers.host import Exact, divides
from ifjax.transport.solvers.kernel_domain import SinkhornKernel
from ifjax.transport.solvers.log_domain import Sinkhorn
from ifjax.transport.solvers.semi_relaxed import Nearest

# Up to this many costs the network simplex takes a fraction of a second (benchmarks/solvers.py).
_SIMPLEX = 2**19

_logger = logging.getLogger("ifjax.solvers")


@dataclasses.dataclass(frozen=True)
class Auto(SinkhornKernel):
    """The fastest solver for a problem's size, marginals and backend.

    On a CPU `Exact` wherever it is fast: uniform marginals of which one size divides the other
    (an assignment), and with POT (``ifjax[exact]``) every problem of at most 2^19 costs. For the
    others, and on accelerators, `SinkhornKernel` with these options. What it chose is logged at
    level DEBUG by the logger ``ifjax.solvers``.

    Example:
      >>> Auto().at(512, 256, uniform=True, backend="cpu")
      Exact()
      >>> Auto(epsilon=0.02).at(512, 256, uniform=True, backend="gpu").epsilon
      0.02
    """

    def __call__(self, cost: Cost, a: Source, b: Target, init: Source | None = None) -> Solution:
        """Solves a problem, whose marginals are taken for any."""
        return self.at(*cost.shape, uniform=False)(cost, a, b, init)

    def at(self, n: int, m: int, *, uniform: bool, backend: str | None = None) -> Solver:
        """The solver of n sources and m targets."""
        backend = backend or jax.default_backend()
        assignment = uniform and divides(n, m)
        simplex = n * m <= _SIMPLEX and importlib.util.find_spec("ot") is not None
        exact = backend == "cpu" and (assignment or simplex)
        chosen = Exact() if exact else SinkhornKernel(**dataclasses.asdict(self))
        _logger.debug("auto: %s for %d x %d on %s", name_of(chosen), n, m, backend)
        return chosen


SOLVERS: dict[str, type[Solver]] = {
    "sinkhorn": Sinkhorn,
    "sinkhorn_kernel": SinkhornKernel,
    "exact": Exact,
    "nearest": Nearest,
    "auto": Auto,
}


def solver_of(given: str | Solver, epsilon: float | int | None = None) -> Solver:
    """The solver of a name; a solver is itself.

    Args:
      given: a solver, or a key of `SOLVERS`.
      epsilon: of a solver that reads it, where a name is given; None for its own default.

    Raises:
      ValueError: for an unknown name, an epsilon that is not positive and finite, or one that is
        not that of the solver.
      TypeError: for anything but a name or a solver.

    Example:
      >>> solver_of("sinkhorn", 0.02).epsilon
      0.02
      >>> solver_of("exact", 0.02)
      Exact()
    """
    if isinstance(given, Solver):
        if isinstance(given, Entropic) and epsilon is not None and epsilon != given.epsilon:
            raise ValueError(
                f"epsilon={epsilon!r} is given, and a solver with another, {given}; give one of "
                "the two"
            )
        return given
    if not isinstance(given, str):
        raise TypeError(f"solver: expected a name or an ifjax solver as a value, got {given!r}")
    if given not in SOLVERS:
        raise ValueError(
            f"unknown solver {given!r}; known: {', '.join(sorted(SOLVERS))} (a solver of your own "
            "is given as a value, or registered in SOLVERS)"
        )
    chosen = SOLVERS[given]
    if issubclass(chosen, Entropic) and epsilon is not None:
        number = isinstance(epsilon, numbers.Real | jax.Array)
        return chosen(epsilon=float(epsilon) if number else epsilon)
    return chosen()


def name_of(solver: Solver) -> str:
    """The name of a solver's class; that of the class itself where it has none.

    >>> name_of(Exact())
    'exact'
    """
    names = (name for name, known in SOLVERS.items() if type(solver) is known)
    return next(names, type(solver).__name__)


def choose(
    given: str | Solver, n: int, m: int, *, uniform: bool = False, backend: str | None = None
) -> str:
    """The name of the solver that ``"auto"`` is for n sources and m targets; others are themselves.

    Args:
      given: a solver, or a key of `SOLVERS`.
      n: sources.
      m: targets.
      uniform: whether both marginals are.
      backend: as `jax.default_backend` names it, which is the default.

    Returns:
      A key of `SOLVERS`, or the name of a class that has none.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> choose("auto", 512, 256, uniform=True, backend="cpu")
      'exact'
      >>> choose("auto", 512, 256, uniform=True, backend="gpu")
      'sinkhorn_kernel'
    """
    return name_of(solver_of(given).at(n, m, uniform=uniform, backend=backend))
