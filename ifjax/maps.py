"""Scores, targets, costs and transport plans of every group of a spec."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ifjax import batch_norm, importance, solvers, transport
from ifjax.checks import Scores, check_converged, checked_scores
from ifjax.merge import Place, alone, describing, merge_kind, merge_neurons, places, rows
from ifjax.method import Method
from ifjax.spec import FusionSpec, Group
from ifjax.transport import Transport
from ifjax.tree import checked_leaves, promoted


def transport_maps(
    params: PyTree,
    spec: FusionSpec,
    scores: Scores | None = None,
    init: Mapping[str, Transport] | None = None,
) -> dict[str, Transport]:
    """Which neurons are kept in every group, and how the others are transported to them.

    Neuron i is described by f_i = concat(out_i, in_i) / ||.||_2, its rows of every producer and its
    columns of every consumer kernel, batch norms folded in; the cost of moving neuron i to target j
    is ||f_i - f_j||_p (Intra-Fusion, arXiv 2402.07839, section 3).

    Args:
      params: the full parameter tree.
      spec: which groups, how many neurons, which method.
      scores: scores by group name, ``[n]``, instead of ``spec.method.importance``.
      init: an earlier result for similar parameters; Sinkhorn starts from its potentials, the other
        solvers need no start. Groups that it lacks start cold.

    Returns:
      A `Transport` for every group that the spec cuts, ``map`` of shape ``[n, m]``; gradients do
      not flow through it. In the order in which the groups are fused.

    Raises:
      ValueError, ImportError: as `fuse_params`.
      RuntimeError: if a Sinkhorn solver did not converge (outside of jit).
    """
    plan, method = spec.plan, spec.method
    if method.method == "fuse":
        solvers.require(method.solver)
    leaves = checked_leaves(params, plan)
    scores = checked_scores(scores, plan)
    # Before the solver: the exact one has no derivative to stop.
    raw = {path: jax.lax.stop_gradient(promoted(x)) for path, x in leaves.items()}
    folded = batch_norm.fold(raw, plan.norms)
    score_raw = method.scores_on == "raw"
    sizes: dict[str, int] = {}
    maps: dict[str, Transport] = {}
    for i, group in enumerate(plan.in_order()):
        paths, where = places(plan, group, sizes)
        kernels = list(dict.fromkeys(p.array for p in describing(where)))
        found = _group_transport(
            [folded[paths[k]] for k in kernels],
            [raw[paths[k]] for k in kernels] if score_raw else None,
            scores.get(group.name),
            jax.random.fold_in(jax.random.key(method.seed), i),
            alone(describing(where), kernels),
            group.kept,
            method,
            _start(init, group),
        )
        maps[group.name] = found
        if method.order == "sequential":
            for tree in (folded, raw) if score_raw else (folded,):
                merged = merge_neurons([tree[p] for p in paths], where, found, merge_kind(method))
                tree.update(zip(paths, merged, strict=True))
            sizes[group.name] = group.kept
    check_converged(maps, method)
    return maps


def _group_transport(
    arrays: list[Array],
    scored: list[Array] | None,
    scores: Array | None,
    key: Array,
    where: tuple[Place, ...],
    kept: int,
    method: Method,
    start: Array | None,
) -> Transport:
    """Score, targets, cost, marginals and plan of one group.

    Two programs: one that reads the members, and one that knows only n and m, which the groups of
    equal size share.
    """
    fused = method.method == "fuse"
    scores, targets, cost = _scored(
        arrays,
        scored,
        scores,
        key,
        where,
        kept,
        method.importance,
        method.cost_p if fused else None,
    )
    if cost is None:
        return _selection(scores, targets)
    marginals = (method.source_marginal, method.target_marginal)
    return _solved(cost, scores, targets, start, marginals, method.solver, method.epsilon)


@functools.partial(jax.jit, static_argnames=("where", "kept", "metric", "p"))
def _scored(
    arrays: list[Array],
    scored: list[Array] | None,
    scores: Array | None,
    key: Array,
    where: tuple[Place, ...],
    kept: int,
    metric: str,
    p: float | None,
) -> tuple[Array, Array, Array | None]:
    """Scores, targets, and the cost of moving every neuron to every target, if ``p`` is given."""
    described = rows(arrays, where)
    if scores is None:
        members = described if scored is None else rows(scored, where)
        scores = importance.score(metric, members, key)
    targets = transport.top(scores, kept)
    if p is None:
        return scores, targets, None
    features = transport.features(jnp.concatenate(described, axis=1))
    return scores, targets, transport.cost_matrix(features, features[targets], p)


@functools.partial(jax.jit, static_argnames=("marginals", "solver", "epsilon"))
def _solved(
    cost: Array,
    scores: Array,
    targets: Array,
    start: Array | None,
    marginals: tuple[str, str],
    solver: str,
    epsilon: float,
) -> Transport:
    source = transport.marginal(marginals[0], scores)
    target = transport.marginal(marginals[1], scores[targets])
    return transport.solve(
        cost, source, target, targets, solver=solver, epsilon=epsilon, init=start
    )


def _start(init: Mapping[str, Transport] | None, group: Group) -> Array | None:
    """The source potential to start from."""
    if init is None or group.name not in init:
        return None
    potential = jax.lax.stop_gradient(init[group.name].potential)
    if potential.shape != (group.size,):
        raise ValueError(
            f"init of group {group.name}: expected a potential of shape ({group.size},), got "
            f"{potential.shape}"
        )
    return potential


@jax.jit
def _selection(scores: Array, targets: Array) -> Transport:
    """The plan of plain pruning: every target receives itself alone."""
    n, m = scores.shape[0], targets.shape[0]
    plan = jnp.zeros((n, m), scores.dtype).at[targets, jnp.arange(m)].set(1 / m)
    zero = jnp.zeros((), scores.dtype)
    return Transport(
        map=plan,
        targets=targets,
        converged=jnp.asarray(True),
        iterations=jnp.zeros((), jnp.int32),
        marginal_error=zero,
        cost=zero,
        potential=jnp.zeros_like(scores),
    )
