"""Solvers of the transport problem, one signature, by name in `SOLVERS`.

``solver(cost [n, m], a [n], b [m], *, epsilon, init) -> Solution``: cost and marginals come in one
dtype, float32 or float64; ``epsilon`` is a static number relative to the mean cost; ``init`` is
a source potential ``[n]`` or None. A solver that has no use for one of the last two ignores it.

**A mass of zero means absent**: problems of different sizes share a batch by padding. The costs of
an absent source or target are not read, and nothing depends on them: not the mean cost that epsilon
is relative to, not the plan of the others, whose derivatives are finite. Its row or column of the
plan is zero, its potential is zero. An ``init`` with NaN at a source that is present is none, so
that a batch may hold problems with and without.

A further solver joins by an entry in `SOLVERS`.
"""

from ifjax.transport.solvers.choice import AUTO, SOLVERS, choose, require
from ifjax.transport.solvers.host import exact, exact_many
from ifjax.transport.solvers.kernel_domain import sinkhorn_kernel
from ifjax.transport.solvers.log_domain import sinkhorn
from ifjax.transport.solvers.semi_relaxed import nearest
from ifjax.transport.solvers.solution import Solution, Solver, marginal_error

__all__ = [
    "AUTO",
    "SOLVERS",
    "Solution",
    "Solver",
    "choose",
    "exact",
    "exact_many",
    "marginal_error",
    "nearest",
    "require",
    "sinkhorn",
    "sinkhorn_kernel",
]
