"""From full parameters and a spec to small parameters: scores, transport maps, merging."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ifjax import batch_norm, importance, solvers, transport
from ifjax.checks import (
    Scores,
    check_converged,
    check_maps,
    checked_indices,
    checked_scores,
)
from ifjax.graph import expression as ex
from ifjax.graph.trace import DependencyGraph
from ifjax.merge import Place, alone, describing, merge_kind, merge_neurons, places, rows
from ifjax.spec import FusionSpec, Group, Method, Plan
from ifjax.transport import Transport
from ifjax.tree import checked_leaves, with_leaves


def fuse_params(
    params: PyTree, spec: FusionSpec, scores: Scores | None = None, keep_shape: bool = False
) -> PyTree:
    """The small parameters: `transport_maps` and `apply_maps` together.

    Pure; ``spec`` and ``keep_shape`` are static, so that it can be jitted with
    ``static_argnames=("spec", "keep_shape")`` and compiles once for one spec.

    Args:
      params: the full parameter tree that the spec was made for.
      spec: made by `DependencyGraph.spec`.
      scores: scores by group name, instead of ``spec.method.importance`` for these groups.
      keep_shape: return the fused neurons in place at full shape, with zeros elsewhere (ones in
        vectors that scale). A weight that is normalised over the dropped entries becomes 0/0.

    Returns:
      A tree of the same structure and dtypes; shapes are those of ``spec.small_struct(params)``.

    Raises:
      ValueError: for parameters of another network, a wrong shape or dtype, weights that are not
        finite, or scores of an unknown group or of a wrong shape.
      ImportError: for ``solver="exact"`` without POT.
      RuntimeError: if a Sinkhorn solver did not converge (outside of jit).

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4, 8), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, solver="nearest")
      >>> small = ifjax.fuse_params(params, spec)
      >>> {name: x.shape for name, x in small.items()}
      {'w1': (4, 4), 'w2': (4, 2)}
    """
    maps = transport_maps(params, spec, scores)
    return apply_maps(params, spec, maps, keep_shape=keep_shape)


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
    raw = {path: jax.lax.stop_gradient(_promoted(x)) for path, x in leaves.items()}
    folded = batch_norm.fold(raw, plan.norms)
    score_raw = method.scores_on == "raw"
    sizes: dict[str, int] = {}
    maps: dict[str, Transport] = {}
    for i, group in enumerate(_in_order(plan)):
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


def apply_maps(
    params: PyTree, spec: FusionSpec, maps: Mapping[str, Transport], keep_shape: bool = False
) -> PyTree:
    """Merges the neurons of every group by its transport map.

    With a plan T (n x m), row sums r and column sums c, let M = (diag(r)^-1 T)^T, whose columns sum
    to one, and P = diag(c)^-1 T^T, whose rows sum to one (0/0 = 0).

    * ``merge="reference"``: producers, additive members and consumers are multiplied by M, as in
      the reference implementation of Intra-Fusion; other members by P.
    * ``merge="preserving"``: consumers are multiplied by M, everything else by P: where neurons
      that are equal in what produces them are merged, the function does not change. Weights that
      both produce and consume a group (tied ones), or consumers that are a product of two
      parameters, have no such merge.

    Batch norms that can be folded are folded before and refit afterwards, see `ifjax.batch_norm`.
    With ``method="prune"`` the targets are kept as they are.

    Args:
      params: the full parameter tree.
      spec: the spec that the maps were computed for.
      maps: a `Transport` for every group that the spec cuts.
      keep_shape: return the fused neurons in the places of their targets, zeros elsewhere.

    Returns:
      A tree of the same structure and dtypes.

    Raises:
      ValueError: as `fuse_params`; or if a group has no map, or one of a wrong shape.
    """
    plan, method = spec.plan, spec.method
    leaves = checked_leaves(params, plan)
    check_maps(maps, plan)
    if not plan.widths:
        return params
    work = {path: _promoted(x) for path, x in leaves.items()}
    kind = merge_kind(method)
    norms = [n for n in plan.norms if kind != "select" and _is_cut(plan, n.kernel, n.axis)]
    work = batch_norm.fold(work, norms)
    spreads = {n: batch_norm.spread(work[n.kernel], work[n.scale], n.axis) for n in norms}
    sizes: dict[str, int] = {}
    for group in _in_order(plan):
        found, full = maps[group.name], group.size if keep_shape else None
        paths, where = places(plan, group, sizes)
        merged = merge_neurons([work[p] for p in paths], where, found, kind, full)
        work.update(zip(paths, merged, strict=True))
        for norm, spread in spreads.items():
            if norm.kernel in paths:
                here = alone(where, [paths.index(norm.kernel)])
                here = [p for p in here if p.axis == norm.axis]
                (spreads[norm],) = merge_neurons([spread], here, found, kind, full)
        if not keep_shape:
            sizes[group.name] = group.kept
    for norm, spread in spreads.items():
        dtype = jax.dtypes.canonicalize_dtype(leaves[norm.variance].dtype)
        work[norm.scale], work[norm.variance] = batch_norm.refit(spread, norm.axis, norm.eps, dtype)
    touched = {m.path for g in _in_order(plan) for m in g.members}
    result = {
        path: work[path].astype(jax.dtypes.canonicalize_dtype(x.dtype)) if path in touched else x
        for path, x in leaves.items()
    }
    return with_leaves(params, result)


def take(
    params: PyTree,
    graph: DependencyGraph | FusionSpec,
    selections: Mapping[str, Any],
) -> PyTree:
    """Re-indexes the neurons of groups, in every leaf that holds them.

    A permutation leaves the function unchanged; a subset is plain structural pruning.

    Args:
      params: the full parameter tree.
      graph: the graph of the function, or a spec made from it.
      selections: by group name, indices ``[k]`` of the neurons to keep, in the order wanted.

    Returns:
      A tree of the same structure and dtypes.

    Raises:
      ValueError: for an unknown group, indices that are not a vector of integers in range, or
        parameters of another network.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.arange(6.0).reshape(2, 3), "w2": jnp.arange(3.0).reshape(3, 1)}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 2)))
      >>> take(params, graph, {"w1": [2, 0]})["w1"].tolist()
      [[2.0, 0.0], [5.0, 3.0]]
    """
    plan = graph.plan
    leaves = checked_leaves(params, plan)
    chosen = {name: checked_indices(plan, name, index) for name, index in selections.items()}
    result = dict(leaves)
    for path, leaf in plan.leaf.items():
        for axis, expression in enumerate(leaf.axes):
            if any(name in chosen for name in ex.atoms(expression)):
                index = ex.indices(expression, chosen)
                result[path] = jnp.take(result[path], index, axis)
    return with_leaves(params, result)


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


def _in_order(plan: Plan) -> list[Group]:
    """The groups that are cut, from the output towards the input."""
    cut = (g for g in plan.groups if g.kept != g.size)
    return sorted(cut, key=lambda g: -g.position)


def _promoted(x: Any) -> Any:
    """At least float32; what is not floating point is left alone."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _is_cut(plan: Plan, path: str, axis: int) -> bool:
    return any(name in plan.widths for name in ex.atoms(plan.leaf[path].axes[axis]))
