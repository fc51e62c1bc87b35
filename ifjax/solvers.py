"""Solvers of the transport problem, one signature, by name in `SOLVERS`.

``solver(cost [n, m], a [n], b [m], *, epsilon, init) -> Solution``: cost and marginals come in one
dtype, float32 or float64; ``epsilon`` is a static number relative to the mean cost; ``init`` is
a source potential ``[n]`` or None. A solver that has no use for one of the last two ignores it.
A further solver joins by an entry in `SOLVERS`.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Sinkhorn: the L1 error of both marginals that counts as converged, the iteration limit, the decay
# of epsilon from the mean cost to its final value, and the over-relaxation (1 is none).
_THRESHOLD = 1e-3
_MAX_ITERATIONS = 10_000
_DECAY = 0.95
_RELAXATION = 1.5


class Solution(NamedTuple):
    """What a solver returns: plan, source potential, convergence flag and iteration count."""

    map: Float[Array, "n m"]
    potential: Float[Array, " n"]
    converged: Bool[Array, ""]
    iterations: Int[Array, ""]


Solver: TypeAlias = Callable[..., Solution]


@functools.partial(jax.jit, static_argnames="epsilon")
def sinkhorn(cost: Array, a: Array, b: Array, *, epsilon: float, init: Array | None) -> Solution:
    r"""Entropic transport by Sinkhorn's iterations in the log domain (ott-jax).

    .. math::
        \min_T \; \langle T, C \rangle + \epsilon \bar{C} \sum_{ij} T_{ij} (\log T_{ij} - 1)

    with :math:`\bar{C}` the mean cost. Epsilon falls by 5 % an iteration from the mean cost to its
    final value, with over-relaxed updates (factor 1.5); both cut the iterations several times. The
    limit is 10,000 iterations, the tolerance an L1 error of 1e-3 over both marginals. The last half
    step is exact on the rows: ``T 1 = a`` holds to rounding, so that what a source's mass is
    divided by is its marginal, and the whole error is on the targets.

    Float32 carries epsilon down to about 1e-4; where the flag of the solution is False, take
    a larger one. A cost of zero everywhere gives the product plan ``a b^T``. An ``init`` starts at
    the final epsilon. Derivatives, forward and reverse, are implicit, by an ``[m, m]``
    pseudo-inverse; they never raise.

    Raises:
      ValueError: for an epsilon that is not positive.

    References:
      Cuturi, `Sinkhorn Distances <https://arxiv.org/abs/1306.0895>`_, 2013; Cuturi et al.,
      `Optimal Transport Tools <https://arxiv.org/abs/2201.12324>`_, 2022 (ott-jax); Lehmann et
      al., `A note on overrelaxation in the Sinkhorn algorithm
      <https://arxiv.org/abs/2012.12562>`_, 2021.
    """
    if not epsilon > 0:
        raise ValueError(f"sinkhorn needs epsilon > 0 (relative to the mean cost), got {epsilon}")
    mean = jnp.mean(cost)
    unit = jnp.where(mean > 0, mean, 1)
    cost = cost / unit
    start = None if init is None else init.astype(cost.dtype) / unit

    def logits(g: Array) -> Array:
        return (g - cost) / epsilon

    def excess(g: Array) -> Array:
        return a @ jax.nn.softmax(logits(g), axis=1) - b

    fixed = jax.lax.stop_gradient((cost, a, b, start))
    solution, iterations = _iterate(*fixed, epsilon)
    # The plan is a function of the target potential g alone, and g the root of the excess: so the
    # derivative needs no iterations. The Jacobian is symmetric, and singular along constants.
    g = jax.lax.custom_root(
        excess,
        solution,
        lambda _, root: root,
        lambda linear, y: jnp.linalg.pinv(jax.jacobian(linear)(y), hermitian=True) @ y,
    )
    plan = a[:, None] * jax.nn.softmax(logits(g), axis=1)
    potential = unit * epsilon * (jnp.log(a) - jax.nn.logsumexp(logits(g), axis=1))
    return Solution(plan, potential, marginal_error(plan, a, b) <= _THRESHOLD, iterations)


def _iterate(
    cost: Array, a: Array, b: Array, start: Array | None, epsilon: float
) -> tuple[Array, Array]:
    """The target potential and the number of iterations of ott-jax's Sinkhorn."""
    ott = _ott()
    linear = ott.solvers.linear
    schedule = ott.geometry.epsilon_scheduler.Epsilon(
        epsilon, init=max(1.0, 1 / epsilon) if start is None else 1.0, decay=_DECAY
    )
    geometry = ott.geometry.geometry.Geometry(cost, epsilon=schedule)
    # Half of the tolerance, for the target marginal before the last half step.
    run = linear.sinkhorn.Sinkhorn(
        threshold=_THRESHOLD / 2,
        max_iterations=_MAX_ITERATIONS,
        momentum=linear.acceleration.Momentum(start=0, value=_RELAXATION),
    )
    pair = None
    if start is not None:
        near = (start[:, None] - cost) / epsilon
        pair = (start, epsilon * (jnp.log(b) - jax.nn.logsumexp(near, axis=0)))
    out = run(ott.problems.linear.linear_problem.LinearProblem(geometry, a, b), pair)
    return out.g, jnp.asarray(out.n_iters, jnp.int32)


def exact(cost: Array, a: Array, b: Array, *, epsilon: float, init: Array | None) -> Solution:
    """The exact plan by network simplex (POT's ``emd``), on the host in float64.

    A vertex of the transport polytope: at most ``n + m - 1`` entries are positive. Works under jit
    (`jax.pure_callback`) and under vmap (one problem after another); has no gradient. Costs that
    are not finite give NaN and a flag that is False.

    Raises:
      ImportError: without POT.

    References:
      Bonneel et al., `Displacement interpolation using Lagrangian mass transport
      <https://doi.org/10.1145/2024156.2024192>`_, 2011; Flamary et al., `POT: Python Optimal
      Transport <https://jmlr.org/papers/v22/20-451.html>`_, 2021.
    """
    del epsilon, init
    _pot()
    n, m = cost.shape
    # The callback runs in a thread of its own, where `jax.enable_x64` as a context is not seen and
    # jax would round float64: it travels as pairs of words.
    double = cost.dtype == jnp.float64
    word, tail = (jnp.uint32, (2,)) if double else (cost.dtype, ())
    shapes = (
        jax.ShapeDtypeStruct((n, m, *tail), word),
        jax.ShapeDtypeStruct((n, *tail), word),
        jax.ShapeDtypeStruct((), jnp.bool_),
    )
    words = [jax.lax.bitcast_convert_type(x, word) for x in (cost, a, b)]
    *values, converged = jax.pure_callback(_emd, shapes, *words, vmap_method="sequential")
    plan, potential = (jax.lax.bitcast_convert_type(x, cost.dtype) for x in values)
    return Solution(plan, potential, converged, jnp.int32(0))


def nearest(cost: Array, a: Array, b: Array, *, epsilon: float, init: Array | None) -> Solution:
    r"""Each source sends its whole mass to its nearest target: the semi-relaxed problem solved.

    .. math::
        T_{ij} = a_i \, [\, j = \arg\min_k C_{ik} \,]

    The exact minimiser once the constraint on the target marginal is dropped. Of equally near
    targets the first one takes the mass; the flag is True for every finite cost.
    """
    del b, epsilon, init
    plan = a[:, None] * jax.nn.one_hot(jnp.argmin(cost, axis=1), cost.shape[1], dtype=cost.dtype)
    return Solution(plan, jnp.min(cost, axis=1), jnp.all(jnp.isfinite(cost)), jnp.int32(0))


SOLVERS: dict[str, Solver] = {"sinkhorn": sinkhorn, "exact": exact, "nearest": nearest}


def require(name: str) -> None:
    """Raises where a solver is unknown, or a package that it needs is missing."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; known: {', '.join(sorted(SOLVERS))}")
    if name == "exact":
        _pot()


def _emd(*words: Any) -> tuple[np.ndarray, np.ndarray, np.bool_]:
    """POT's network simplex on the host, in float64; float64 comes and goes as pairs of uint32."""
    arrays = [np.asarray(x) for x in words]
    word, double = arrays[0].dtype, arrays[0].dtype == np.uint32
    if double:
        arrays = [np.ascontiguousarray(x).view(np.float64)[..., 0] for x in arrays]
    cost, a, b = (x.astype(np.float64) for x in arrays)
    plan, potential, converged = np.full(cost.shape, np.nan), np.full(a.shape, np.nan), False
    if all(np.isfinite(x).all() for x in (cost, a, b)):
        plan, log = _pot().emd(a / a.sum(), b / b.sum(), cost, numItermax=10_000_000, log=True)
        plan, potential, converged = plan * a.sum(), log["u"], log["warning"] is None
    found = [np.ascontiguousarray(x, np.float64) for x in (plan, potential)]
    found = [x[..., None].view(word) if double else x.astype(word) for x in found]
    return found[0], found[1], np.bool_(converged)


def marginal_error(plan: Array, a: Array, b: Array) -> Array:
    """The L1 error of both marginals."""
    return jnp.sum(jnp.abs(plan.sum(1) - a)) + jnp.sum(jnp.abs(plan.sum(0) - b))


@functools.cache
def _pot() -> Any:
    """POT, an optional dependency."""
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "solver 'exact' needs POT: pip install 'ifjax[exact]' (or take solver='sinkhorn')"
        ) from error
    return ot


@functools.cache
def _ott() -> Any:
    """Imports ott-jax at its first use: it takes two seconds, and its jaxopt warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import ott
        import ott.solvers.linear
    return ott
