"""Scores, targets, costs and transport plans of every group of a spec."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ifjax import batch_norm, centroids, importance, solvers, transport
from ifjax.calibrate import Stats
from ifjax.checks import Scores, check_converged, check_spec, checked_scores, checked_stats
from ifjax.graph import expression as ex
from ifjax.independence import gram_independence
from ifjax.merge import (
    SELF,
    Place,
    alone,
    describing,
    entries,
    flat,
    merge_group,
    merge_kind,
    places,
    rows,
)
from ifjax.method import Method
from ifjax.spec import FusionSpec, Group, Plan
from ifjax.transport import Transport
from ifjax.tree import checked_leaves, promoted

# Arrays, and where they hold the neurons of a group.
Held = tuple[list[Array], tuple[Place, ...]]


def transport_maps(
    params: PyTree,
    spec: FusionSpec,
    scores: Scores | None = None,
    stats: Stats | None = None,
    init: Mapping[str, Transport] | None = None,
) -> dict[str, Transport]:
    """Which neurons are kept in every group, and how the others are transported to them.

    Neuron i is described by f_i = concat(out_i, in_i) / ||.||_2, its rows of every producer and its
    columns of every consumer kernel, batch norms folded in; the cost of moving neuron i to target j
    is ||f_i - f_j||_p (Intra-Fusion, arXiv 2402.07839, section 3). With ``targets="centroids"`` the
    f_j are centroids of the f_i; the neuron that represents one takes its place in the small
    network's order, and is what ``method="prune"`` keeps.

    With ``order="sequential"`` magnitudes are those of weights that earlier groups have changed;
    importances that rest on ``stats``, and batch norm scales, are those of the given parameters.

    Args:
      params: the full parameter tree.
      spec: which groups, how many neurons, which method.
      scores: scores by group name, ``[n]`` or ``[*batch, n]``, instead of
        ``spec.method.importance``.
      stats: for the importances that need gradients or activations, see `ifjax.collect_stats`.
      init: an earlier result for similar parameters; Sinkhorn starts from its potentials, the other
        solvers need no start. Groups that it lacks start cold.

    Returns:
      A `Transport` for every group that the spec cuts, ``map`` of shape ``[n, m]``, or
      ``[*batch, n, m]`` where the group has batch axes; gradients do not flow through it. In the
      order in which the groups are fused.

    Raises:
      ValueError, ImportError: as `fuse_params`.
      RuntimeError: if a Sinkhorn solver did not converge (outside of jit).

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4), "w2": jnp.ones((4, 2))}
      >>> apply = lambda p, x: x @ p["w1"] @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, solver="nearest")
      >>> transport_maps(params, spec)["w1"].targets.tolist()
      [0, 1]
    """
    check_spec(spec)
    plan, method = spec.plan, spec.method
    if method.method == "fuse":
        solvers.require(method.solver)
    if method.targets == "centroids":
        centroids.require(method.centroids)
    leaves = checked_leaves(params, plan)
    scores = checked_scores(scores, plan)
    stats = checked_stats(stats, plan, method, scores)
    # Before the solver: the exact one has no derivative to stop.
    dense = {path: jax.lax.stop_gradient(promoted(x)) for path, x in leaves.items()}
    raw = dict(dense)
    folded = batch_norm.fold(raw, plan.norms)
    score_raw = method.scores_on == "raw"
    sizes: dict[str, int] = {}
    maps: dict[str, Transport] = {}
    base = jax.random.key(method.seed)
    for i, group in enumerate(map(_first_producer_first, plan.in_order())):
        paths, where = places(plan, group, sizes)
        kernels = list(dict.fromkeys(p.array for p in describing(where)))
        described = alone(describing(where), kernels)
        given, scored = scores.get(group.name), None
        if given is None:
            scored = _dense_members(group, plan, method, stats, dense)
            if scored is None and score_raw:
                scored = _entries(group, plan, [paths[k] for k in kernels], raw, sizes), described
        chosen = method.of(group.kind)
        found = _transports(
            group,
            (_entries(group, plan, [paths[k] for k in kernels], folded, sizes), described),
            scored,
            given,
            jax.random.fold_in(base, i),
            chosen,
            _start(init, group),
        )
        maps[group.name] = found
        if method.order == "sequential":
            axes = [plan.leaf[p].axes for p in paths]
            for tree in (folded, raw) if score_raw else (folded,):
                arrays = [tree[p] for p in paths]
                merged = merge_group(group, axes, arrays, where, found, merge_kind(chosen), sizes)
                tree.update(zip(paths, merged, strict=True))
            sizes[group.name] = group.kept
    check_converged(maps, method)
    return maps


def neuron_scores(params: PyTree, spec: FusionSpec, stats: Stats | None = None) -> dict[str, Array]:
    """The importance of every neuron of the groups that a spec cuts, on the given parameters.

    These are the scores that `transport_maps` chooses targets by; in ``order="sequential"`` it
    reads magnitudes off weights that earlier groups have changed.

    Args:
      params: the full parameter tree.
      spec: which groups, and by which importance, reduction and normalization.
      stats: for the importances that need gradients or activations.

    Returns:
      Scores ``[n]``, or ``[*batch, n]``, by group name.

    Raises:
      ValueError: as `fuse_params`.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.array([[1.0, 3.0]]), "w2": jnp.array([[1.0], [3.0]])}
      >>> apply = lambda p, x: x @ p["w1"] @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 1))).spec(0.5, normalization="sum")
      >>> neuron_scores(params, spec)["w1"].tolist()
      [0.25, 0.75]
    """
    check_spec(spec)
    plan, method = spec.plan, spec.method
    dense = {path: promoted(x) for path, x in checked_leaves(params, plan).items()}
    stats = checked_stats(stats, plan, method, {})
    weights = dense if method.scores_on == "raw" else batch_norm.fold(dense, plan.norms)
    result = {}
    for i, group in enumerate(map(_first_producer_first, plan.in_order())):
        held = _dense_members(group, plan, method, stats, dense)
        arrays, where = held or _kernels(group, plan, weights)
        key = jax.random.fold_in(jax.random.key(method.seed), i)
        score = functools.partial(_score_alone, where=where, scoring=_scoring(method))
        if group.batch:
            keys = jax.random.split(key, math.prod(group.batch))
            found = jax.vmap(lambda a, k, score=score: score(a, key=k))(arrays, keys)
            result[group.name] = found.reshape(*group.batch, group.size)
        else:
            result[group.name] = score(arrays, key=key)
    return result


def _first_producer_first(group: Group) -> Group:
    """The group with its producers in the order of the function, before its other members."""
    members = sorted(group.members, key=lambda m: (m.role != "producer", m.position))
    return dataclasses.replace(group, members=tuple(members))


def _kernels(group: Group, plan: Plan, leaves: Mapping[str, Array]) -> Held:
    """The kernels that describe a group at full size."""
    paths, where = places(plan, group, {})
    kernels = list(dict.fromkeys(p.array for p in describing(where)))
    arrays = _entries(group, plan, [paths[k] for k in kernels], leaves, {})
    return arrays, alone(describing(where), kernels)


def _entries(
    group: Group,
    plan: Plan,
    paths: Sequence[str],
    leaves: Mapping[str, Array],
    sizes: Mapping[str, int],
) -> list[Array]:
    """The leaves, or their entries ``[batch, *entry]``."""
    return [entries(group, plan.leaf[p].axes, leaves[p], sizes) for p in paths]


def _dense_members(
    group: Group, plan: Plan, method: Method, stats: Stats | None, dense: Mapping[str, Array]
) -> Held | None:
    """What the importances that do not look at present weights read; None for those that do."""
    if method.importance == "bn_scale":
        return _scales(group, plan, dense)
    if stats is None:
        return None
    if method.importance == "taylor":
        return _kernels(group, plan, {p: dense[p] * g for p, g in stats.gradients.items()})
    value = getattr(stats, method.importance)[group.name]
    if value.ndim == len(group.batch) + 2:
        inner = jax.vmap(gram_independence)(flat(group, value)) if group.batch else None
        value = gram_independence(value) if inner is None else inner.reshape(value.shape[:-1])
    value = value / stats.count
    return [flat(group, value) if group.batch else value], (
        Place(0, 0, "producer", ex.Atom(SELF, group.size)),
    )


def _scales(group: Group, plan: Plan, leaves: Mapping[str, Array]) -> Held:
    """The scales of a group's batch norms.

    Of those that can be folded; where there are only others, of every vector that multiplies
    neurons with running statistics.
    """
    known = {norm.scale for norm in plan.norms}
    scales = [m for m in group.members if m.path in known]
    if not scales and any(m.role == "variance" for m in group.members):
        vectors = (m for m in group.members if len(plan.leaf[m.path].shape) == 1)
        scales = [m for m in vectors if m.role == "multiplicative"]
    if not scales:
        raise ValueError(
            f"group {group.name}: importance 'bn_scale' reads the scales of its batch norms, and "
            "it has none; choose another importance, exclude the group, or pass scores for it"
        )
    paths, where = places(plan, dataclasses.replace(group, members=tuple(scales)), {})
    return _entries(group, plan, paths, leaves, {}), where


def _scoring(method: Method) -> tuple[str, str, str]:
    return method.importance, method.reduction, method.normalization


def _transports(
    group: Group,
    described: Held,
    scored: Held | None,
    scores: Array | None,
    key: Array,
    method: Method,
    start: Array | None,
) -> Transport:
    """The transport of a group; of one with batch axes, of all its entries at once."""
    arrays, where = described
    values, held = scored or (None, where)

    def one(arrays: Any, values: Any, scores: Any, key: Any, start: Any) -> Transport:
        inner = None if values is None else (values, held)
        return _group_transport((arrays, where), inner, scores, key, group.kept, method, start)

    if not group.batch:
        return one(arrays, values, scores, key, start)
    keys = jax.random.split(key, math.prod(group.batch))
    found = jax.vmap(one)(arrays, values, flat(group, scores), keys, flat(group, start))
    return jax.tree.map(lambda x: x.reshape(*group.batch, *x.shape[1:]), found)


def _group_transport(
    described: Held,
    scored: Held | None,
    scores: Array | None,
    key: Array,
    kept: int,
    method: Method,
    start: Array | None,
) -> Transport:
    """Score, targets, cost, marginals and plan of one group.

    Two programs: one that reads the members, and one that knows only n and m, which the groups of
    equal size share.
    """
    arrays, where = described
    values, held = scored or (None, where)
    scores, targets, mass, cost = _scored(
        arrays,
        values,
        scores,
        key,
        where,
        held,
        kept,
        _scoring(method),
        method.centroids if method.targets == "centroids" else None,
        method.cost_p if method.method == "fuse" else None,
    )
    if cost is None:
        return _selection(scores, targets)
    marginals = (method.source_marginal, method.target_marginal)
    return _solved(cost, scores, mass, targets, start, marginals, method.solver, method.epsilon)


def _score(
    arrays: list[Array], where: tuple[Place, ...], key: Array, scoring: tuple[str, str, str]
) -> Array:
    metric, reduction, normalization = scoring
    return importance.score(metric, rows(arrays, where), key, reduction, normalization)


_score_alone = jax.jit(_score, static_argnames=("where", "scoring"))


@functools.partial(
    jax.jit, static_argnames=("where", "scored_where", "kept", "scoring", "centres", "p")
)
def _scored(
    arrays: list[Array],
    scored: list[Array] | None,
    scores: Array | None,
    key: Array,
    where: tuple[Place, ...],
    scored_where: tuple[Place, ...],
    kept: int,
    scoring: tuple[str, str, str],
    centres: str | None,
    p: float | None,
) -> tuple[Array, Array, Array, Array | None]:
    """Scores, targets, the targets' scores, and the cost of moving every neuron to every target.

    No cost without ``p``; ``centres`` for the kind of centroids to take as targets.
    """
    if scores is None:
        scores = _score(arrays if scored is None else scored, scored_where, key, scoring)
    features = transport.features(jnp.concatenate(rows(arrays, where), axis=1))
    if centres is None:
        targets = transport.top(scores, kept)
        points, mass = features[targets], scores[targets]
    else:
        found = centroids.clusters(features, kept, centres, jax.random.fold_in(key, 1), scores)
        targets, points = found.targets, found.centroids
        mass = jnp.maximum(scores, 0) @ found.shares
    cost = None if p is None else transport.cost_matrix(features, points, p)
    return scores, targets, mass, cost


@functools.partial(jax.jit, static_argnames=("marginals", "solver", "epsilon"))
def _solved(
    cost: Array,
    scores: Array,
    mass: Array,
    targets: Array,
    start: Array | None,
    marginals: tuple[str, str],
    solver: str,
    epsilon: float,
) -> Transport:
    source = transport.marginal(marginals[0], scores)
    target = transport.marginal(marginals[1], mass)
    return transport.solve(
        cost, source, target, targets, solver=solver, epsilon=epsilon, init=start
    )


def _start(init: Mapping[str, Transport] | None, group: Group) -> Array | None:
    """The source potential to start from."""
    if init is None or group.name not in init:
        return None
    potential = jax.lax.stop_gradient(init[group.name].potential)
    if potential.shape != (*group.batch, group.size):
        raise ValueError(
            f"init of group {group.name}: expected a potential of shape "
            f"{(*group.batch, group.size)}, got "
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
