"""Transport problems for the tests of the solvers."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from ifjax.transport import costs, solvers, transport

SOLVERS = [name for name in solvers.SOLVERS if name != "auto"]  # which is one of them
SINKHORNS = ["sinkhorn", "sinkhorn_kernel"]
# The L1 error of both marginals at which Sinkhorn stops.
THRESHOLD = 1e-3


def problem(seed, n=12, m=6, d=20, kind="uniform"):
    """Random features, the top m of them as targets, and marginals."""
    rng = np.random.default_rng(seed)
    rows = jnp.asarray(rng.normal(size=(n, d)) * rng.uniform(0.2, 2, (n, 1)), jnp.float32)
    scores = jnp.abs(rows).sum(1)
    targets = jnp.sort(jax.lax.top_k(scores, m)[1])
    x = costs.features(rows)
    cost = costs.cost_matrix(x, x[targets])
    return (
        cost,
        transport.marginal(kind, scores),
        transport.marginal(kind, scores[targets]),
        targets,
    )


def padded(problem, seed, n, m, fill):
    """The problem with absent sources and targets between its own, and where its own are."""
    rng = np.random.default_rng(seed)
    cost, a, b, targets = map(np.asarray, problem)
    rows, columns = (np.sort(rng.permutation(k)[: len(x)]) for k, x in ((n, a), (m, b)))
    costs = np.full((n, m), fill, cost.dtype)
    costs[np.ix_(rows, columns)] = cost
    sources, sinks, index = np.zeros(n, a.dtype), np.zeros(m, b.dtype), np.zeros(m, targets.dtype)
    sources[rows], sinks[columns], index[columns] = a, b, targets
    return tuple(map(jnp.asarray, (costs, sources, sinks, index))), rows, columns


def sinkhorn_loop(cost, a, b, epsilon, iterations=4000):
    """Plain Sinkhorn in the log domain, in float64."""
    cost, a, b = (np.asarray(x, np.float64) for x in (cost, a, b))
    scale = epsilon * cost.mean()
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(iterations):
        g = scale * (np.log(b) - logsumexp((f[:, None] - cost) / scale, axis=0))
        f = scale * (np.log(a) - logsumexp((g[None] - cost) / scale, axis=1))
    return np.exp((f[:, None] + g[None] - cost) / scale)
