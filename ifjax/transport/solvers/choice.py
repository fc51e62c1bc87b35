"""The solvers by name, and which of them ``"auto"`` is."""

import importlib.util
import logging

import jax

from ifjax.transport.solvers.host import divides, exact
from ifjax.transport.solvers.kernel_domain import sinkhorn_kernel
from ifjax.transport.solvers.log_domain import sinkhorn
from ifjax.transport.solvers.semi_relaxed import nearest
from ifjax.transport.solvers.solution import Solver

AUTO = "auto"
SOLVERS: dict[str, Solver] = {
    "sinkhorn": sinkhorn,
    "sinkhorn_kernel": sinkhorn_kernel,
    "exact": exact,
    "nearest": nearest,
}

# Up to this many costs the network simplex takes a fraction of a second (benchmarks/solvers.py).
_SIMPLEX = 2**19

_logger = logging.getLogger("ifjax.solvers")


def require(name: str) -> None:
    """Raises ValueError where a solver is unknown."""
    if name not in (*SOLVERS, AUTO):
        known = ", ".join([*sorted(SOLVERS), AUTO])
        raise ValueError(f"unknown solver {name!r}; known: {known}")


def choose(name: str, n: int, m: int, *, uniform: bool = False, backend: str | None = None) -> str:
    """The solver that ``"auto"`` is for n sources and m targets; another name is itself.

    On a CPU ``"exact"`` wherever it is fast: uniform marginals of which one size divides the other
    (an assignment), and with POT (``ifjax[exact]``) every problem of at most 2^19 costs. For the
    others, and on accelerators, ``"sinkhorn_kernel"``. What it chose is logged at level DEBUG by
    the logger ``ifjax.transport.solvers``.

    Args:
      name: a key of `SOLVERS`, or ``"auto"``.
      n: sources.
      m: targets.
      uniform: whether both marginals are.
      backend: as `jax.default_backend` names it, which is the default.

    Returns:
      A key of `SOLVERS`.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> choose("auto", 512, 256, uniform=True, backend="cpu")
      'exact'
      >>> choose("auto", 512, 256, uniform=True, backend="gpu")
      'sinkhorn_kernel'
    """
    require(name)
    if name != AUTO:
        return name
    backend = backend or jax.default_backend()
    assignment = uniform and divides(n, m)
    simplex = n * m <= _SIMPLEX and importlib.util.find_spec("ot") is not None
    chosen = "exact" if backend == "cpu" and (assignment or simplex) else "sinkhorn_kernel"
    _logger.debug("auto: %s for %d x %d on %s", chosen, n, m, backend)
    return chosen
