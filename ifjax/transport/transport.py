"""Optimal transport from the neurons of a group to the neurons that remain.

The way of the data: `ifjax.transport.costs` of moving the neurons to the targets, a `marginal` on
either side, and `solve`, which turns them into a `Transport` with one of the
`ifjax.transport.solvers`.

References:
  Theus et al., `Towards Meta-Pruning via Optimal Transport <https://arxiv.org/abs/2402.07839>`_,
  ICLR 2024, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ifjax.namespace import AnyArray, namespace, wide
from ifjax.promotion import with_promotion
from ifjax.transport import solvers

MARGINALS = ("uniform", "importance")

# The smallest share of the average mass that an importance marginal gives a neuron.
_FLOOR = 1e-6


class Transport(NamedTuple):
    """A transport plan from n source neurons to m target neurons, and what is known about it.

    Attributes:
      map: the plan T; ``T[i, j]`` is the mass that source i sends to target j.
      targets: index among the sources of each target, ascending.
      converged: whether the solver met its tolerance. False for costs that are not finite.
      iterations: iterations of Sinkhorn; 0 for solvers that have or report none.
      marginal_error: ``|T 1 - a|_1 + |T^T 1 - b|_1``. For ``nearest``, which leaves the target
        marginal free, it measures how far that is from ``b``, and says nothing about convergence.
      cost: the transport cost ``<T, C>`` in the units of the cost matrix.
      potential: the dual potential on the sources; pass it (or this tuple) as `init` to warm-start.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4), "w2": jnp.ones((4, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> found = ifjax.transport_maps(params, graph.spec(0.5, solver="nearest"))["w1"]
      >>> found.map.shape, found.targets.tolist(), bool(found.converged)
      ((4, 2), [0, 1], True)
    """

    map: Float[AnyArray, "n m"]
    targets: Int[AnyArray, " m"]
    converged: Bool[AnyArray, ""]
    iterations: Int[AnyArray, ""]
    marginal_error: Float[AnyArray, ""]
    cost: Float[AnyArray, ""]
    potential: Float[AnyArray, " n"]

    def __repr__(self) -> str:
        """Sizes, and whether the solver converged, in a line: what notebooks show."""
        *batch, n, m = getattr(self.map, "shape", ("?", "?"))
        each = f"{' x '.join(map(str, batch))} times " if batch else ""
        text = f"Transport({each}{n} -> {m}"
        if any(isinstance(x, Tracer) or not hasattr(x, "dtype") for x in self):
            return f"{text})"
        if isinstance(self.converged, jax.ShapeDtypeStruct):
            return f"{text}, abstract)"
        found = "converged" if np.all(self.converged) else "not converged"
        return (
            f"{text}, {found} after {int(np.max(self.iterations))} iterations, marginal error "
            f"{float(np.max(self.marginal_error)):.2g}, cost {float(np.sum(self.cost)):.4g})"
        )


@with_promotion
def solve(
    cost: Float[Array, "n m"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    targets: Int[Array, " m"],
    *,
    solver: str | solvers.Solver = "sinkhorn",
    epsilon: float | int | None = None,
    init: Transport | Float[Array, " n"] | None = None,
) -> Transport:
    r"""Transports the mass ``a`` of n sources to the mass ``b`` of m targets.

    .. math::
        T = \arg\min_{T \ge 0} \langle T, C \rangle
        \quad \text{with} \quad T 1 = a, \; T^\top 1 = b

    exactly (``solver="exact"``), with entropy (``"sinkhorn"``, ``"sinkhorn_kernel"``), or without
    the constraint on the targets (``"nearest"``). Pure; works under `jax.jit` and `jax.vmap`. A
    mass of zero means that the source or target is absent: padding changes nothing else. Nothing
    is raised for a solver that does not converge: look at the flags of the result.

    Args:
      cost: cost of moving a unit of mass from source i to target j. Half precision is solved in
        float32. Not read where source or target is absent.
      a: mass of the sources, of sum one; zero for absent ones.
      b: mass of the targets, likewise.
      targets: index among the sources of each target; carried along.
      solver: a key of `ifjax.transport.solvers.SOLVERS`, or a value: ``Sinkhorn(epsilon=0.02)``.
        Static under jit.
      epsilon: strength of the entropy relative to the mean of ``cost``, of a solver given by its
        name; read by Sinkhorn only, whose default is 0.01. Static under jit. Smaller is nearer to
        the exact plan and takes more iterations.
      init: an earlier `Transport` of these sources, or its ``potential``, to warm-start Sinkhorn.

    Returns:
      The plan with its diagnostics.

    Raises:
      ValueError: for an unknown solver, an epsilon that is not positive, or not that of the solver
        as a value, or shapes that disagree.
      ImportError: for ``"exact"`` without POT, where it is needed
        (`ifjax.transport.solvers.exact_many`).

    Example:
      >>> import jax.numpy as jnp
      >>> cost = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.2, 1.0]])
      >>> a, b = jnp.full(3, 1 / 3), jnp.full(2, 1 / 2)
      >>> (3 * solve(cost, a, b, jnp.array([0, 1]), solver="nearest").map).round()
      Array([[1., 0.],
             [0., 1.],
             [1., 0.]], dtype=float32)
    """
    shapes = tuple(tuple(x.shape) for x in (cost, a, b, targets))
    if len(cost.shape) != 2 or shapes[1:] != (shapes[0][:1], shapes[0][1:], shapes[0][1:]):
        raise ValueError(
            "expected cost [n, m], a [n], b [m], targets [m], got shapes {}, {}, {}, {}".format(
                *shapes
            )
        )
    chosen = solvers.solver_of(solver, epsilon)
    dtype = jnp.result_type(jnp.float32, cost)
    cost, a, b = (jnp.asarray(x, dtype) for x in (cost, a, b))
    solution = chosen(cost, a, b, init.potential if isinstance(init, Transport) else init)
    return Transport(
        map=solution.map,
        targets=targets,
        converged=solution.converged,
        iterations=solution.iterations,
        marginal_error=solvers.marginal_error(solution.map, a, b),
        cost=jnp.sum(solution.map * jnp.where((a > 0)[:, None] & (b > 0), cost, 0)),
        potential=solution.potential,
    )


@with_promotion
def marginal(kind: str, scores: Float[AnyArray, " n"]) -> Float[AnyArray, " n"]:
    r"""The mass of each neuron, of sum one.

    Args:
      kind: ``"uniform"``, or ``"importance"`` for a mass proportional to the score. No mass is
        less than about 1e-6 of the average, so that scores of zero (or below) make no NaN; scores
        that are all zero give the uniform marginal.
      scores: one score per neuron.

    Returns:
      The marginal, in float32 (float64 for float64 scores).

    Raises:
      ValueError: for an unknown kind.

    Example:
      >>> import jax.numpy as jnp
      >>> marginal("importance", jnp.array([1.0, 3.0]))
      Array([0.25, 0.75], dtype=float32)
    """
    if kind not in MARGINALS:
        raise ValueError(f"unknown marginal {kind!r}; known: {', '.join(MARGINALS)}")
    xp = namespace(scores)
    mass = xp.maximum(scores.astype(wide(scores)), 0)
    mean = xp.mean(mass)
    if kind == "uniform":
        return xp.full_like(mass, 1 / mass.shape[0])
    mass = xp.where(mean > 0, mass / xp.where(mean > 0, mean, 1), 1)
    mass = xp.maximum(mass, _FLOOR)
    return mass / xp.sum(mass)


@with_promotion
def compose_maps(
    second: Mapping[str, Transport], first: Mapping[str, Transport]
) -> dict[str, Transport]:
    r"""The maps of two cuts as one, for the composed spec: targets of targets, products of plans.

    .. math:: T = T_1 \, \mathrm{diag}(T_2 1)^{-1} \, T_2

    Its M (see `ifjax.apply_maps`) is the product of both M where every neuron has mass; its P is
    the product of both P where, up to a factor, the second plan takes from every neuron the mass
    that the first one brings to it. Uniform marginals on both sides (the default) that the solver
    meets do both, and so does ``method="prune"``. Then ``apply_maps`` with the composed spec and
    maps gives what two calls give, but for the scale and variance of folded batch norms: their
    slope, and with it eval mode, is the same, but the spread is modelled from other kernels. What
    happens between two cuts and is no linear map (training, scores) is no part of a map: the second
    ones were found on what it left.

    Args:
      second: maps of the small network, by the first's group names, as `ifjax.onward` and
        `ifjax.iterated` keep them.
      first: maps of the full network.

    Returns:
      Maps of all groups of either. Costs, iterations and marginal errors are added up; the
      potential is the first one's.

    Raises:
      ValueError: if the second map of a group does not start where the first one ends.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(8), "w2": jnp.ones((8, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 8)))
      >>> first, second = ifjax.iterated(graph.spec(0.75, solver="nearest"), 2)
      >>> one = ifjax.transport_maps(params, first.step)
      >>> two = ifjax.transport_maps(ifjax.apply_maps(params, first.step, one), second.step)
      >>> compose_maps(two, one)["w1"].map.shape
      (8, 2)
    """
    found = {**second, **first}
    for name in second.keys() & first.keys():
        a, b = first[name], second[name]
        if (*a.map.shape[:-2], a.map.shape[-1]) != b.map.shape[:-1]:
            raise ValueError(
                f"group {name}: expected a second map [*batch, n, m] from what the first one, of "
                f"shape {a.map.shape}, leaves, got {b.map.shape}; where a batch axis was cut too "
                "(heads of a head_dim), apply the maps one after the other"
            )
        mass = b.map.sum(-1, keepdims=True)
        plan = a.map @ jnp.where(mass > 0, b.map / jnp.where(mass > 0, mass, 1), 0)
        found[name] = a._replace(
            map=plan,
            targets=jnp.take_along_axis(a.targets, b.targets, -1),
            converged=a.converged & b.converged,
            iterations=a.iterations + b.iterations,
            marginal_error=a.marginal_error + b.marginal_error,
            cost=a.cost + b.cost,
        )
    return found
