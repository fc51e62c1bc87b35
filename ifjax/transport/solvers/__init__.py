"""Solvers of the transport problem, each a value with its options; by name in `SOLVERS`.

``Sinkhorn(epsilon=0.01)(cost [n, m], a [n], b [m], init) -> Solution``: cost and marginals come in
one dtype, float32 or float64; ``init`` is a source potential ``[n]`` or None, and passed over by a
solver that needs no start. See `Solver` for what all of them promise, and for one of one's own; an
entry in `SOLVERS` gives it a name, and the JSON of a spec that holds it.
"""

from ifjax.transport.solvers.base import HostSolver, Solution, Solver, marginal_error
from ifjax.transport.solvers.choice import SOLVERS, Auto, choose, name_of, solver_of
from ifjax.transport.solvers.entropic import EPSILON, Entropic
from ifjax.transport.solvers.host import Exact, exact_many
from ifjax.transport.solvers.kernel_domain import SinkhornKernel
from ifjax.transport.solvers.log_domain import Sinkhorn
from ifjax.transport.solvers.semi_relaxed import Nearest

__all__ = [
    "EPSILON",
    "SOLVERS",
    "Auto",
    "Entropic",
    "Exact",
    "HostSolver",
    "Nearest",
    "Sinkhorn",
    "SinkhornKernel",
    "Solution",
    "Solver",
    "choose",
    "exact_many",
    "marginal_error",
    "name_of",
    "solver_of",
]
