"""From full parameters and a spec to small parameters: scores, transport maps, merging."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ifjax import batch_norm, importance, transport
from ifjax.graph import expression as ex
from ifjax.graph.trace import DependencyGraph
from ifjax.spec import FusionSpec, Group, Method, Plan
from ifjax.transport import Transport
from ifjax.tree import checked_leaves, is_concrete, with_leaves

Leaves = Mapping[str, Array]
Scores = Mapping[str, Float[Array, " n"]]


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
      keep_shape: return the fused neurons in place, with zeros elsewhere, at full shape.

    Returns:
      A tree of the same structure and dtypes; shapes are those of ``spec.small_struct(params)``.

    Raises:
      ValueError: for parameters of another network, a wrong shape or dtype, weights that are not
        finite, or scores of an unknown group or of a wrong shape.
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
    params: PyTree, spec: FusionSpec, scores: Scores | None = None
) -> dict[str, Transport]:
    """Which neurons are kept in every group, and how the others are transported to them.

    Neuron i is described by f_i = concat(out_i, in_i) / ||.||_2, its rows of every producer and its
    columns of every consumer kernel, batch norms folded in; the cost of moving neuron i to target j
    is ||f_i - f_j||_p (Intra-Fusion, arXiv 2402.07839, section 3).

    Args:
      params: the full parameter tree.
      spec: which groups, how many neurons, which method.
      scores: scores by group name, ``[n]``, instead of ``spec.method.importance``.

    Returns:
      A `Transport` for every group that the spec cuts, ``map`` of shape ``[n, m]``; gradients do
      not flow through it. In the order in which the groups are fused.

    Raises:
      ValueError: as `fuse_params`.
      RuntimeError: if a Sinkhorn solver did not converge (outside of jit).
    """
    plan, method = spec.plan, spec.method
    leaves = checked_leaves(params, plan)
    scores = _checked_scores(scores, plan)
    raw = {path: _promoted(x) for path, x in leaves.items()}
    folded = batch_norm.fold(raw, plan.norms)
    sizes: dict[str, int] = {}
    maps: dict[str, Transport] = {}
    cut = sorted((g for g in plan.groups if g.kept != g.size), key=lambda g: -g.position)
    for i, group in enumerate(cut):
        scored = folded if method.scores_on == "folded" else raw
        key = jax.random.fold_in(jax.random.key(method.seed), i)
        found = _group_transport(
            _rows(folded, plan, group, sizes),
            _rows(scored, plan, group, sizes) if scored is not folded else None,
            scores.get(group.name),
            key,
            group.kept,
            method,
        )
        maps[group.name] = jax.tree.map(jax.lax.stop_gradient, found)
        if method.order == "sequential":
            folded = _map_group(folded, plan, group, maps[group.name], method, sizes)
            if method.scores_on == "raw":
                raw = _map_group(raw, plan, group, maps[group.name], method, sizes)
            sizes[group.name] = group.kept
    _check_converged(maps, method)
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
      that are equal in what produces them are merged, the function does not change.

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
    cut = [g for g in plan.groups if g.kept != g.size]
    _check_maps(maps, plan)
    if not cut:
        return params
    full = {path: _promoted(x) for path, x in leaves.items()}
    fused = method.method == "fuse"
    changed = set(plan.widths)
    norms = [n for n in plan.norms if fused and changed & _atoms(plan, n.kernel, n.axis)]
    work = batch_norm.fold(full, norms)
    spreads = {n: batch_norm.spread(work, n) for n in norms}
    sizes: dict[str, int] = {}
    for group in cut:
        found = maps[group.name]
        work = _map_group(work, plan, group, found, method, sizes, keep_shape)
        for norm, rows in spreads.items():
            function = _mapper(found, "producer", method, group.size if keep_shape else None)
            axis = plan.leaf[norm.kernel].axes[norm.axis]
            spreads[norm] = ex.transform(rows, norm.axis, axis, group.name, function, sizes)
        if not keep_shape:
            sizes[group.name] = group.kept
    for norm, rows in spreads.items():
        dtype = leaves[norm.variance].dtype

        def rounding(x: Array, dtype: Any = dtype) -> Array:
            return x.astype(dtype).astype(x.dtype)

        work |= batch_norm.refit(work, norm, rows, rounding)
    touched = {m.path for g in cut for m in g.members}
    result = {
        path: work[path].astype(x.dtype) if path in touched else x for path, x in leaves.items()
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
    chosen = {
        name: _checked_indices(plan, name, jnp.asarray(index)) for name, index in selections.items()
    }
    result = dict(leaves)
    for path, leaf in plan.leaf.items():
        for axis, expression in enumerate(leaf.axes):
            if any(name in chosen for name in ex.atoms(expression)):
                index = ex.indices(expression, chosen)
                result[path] = jnp.take(result[path], index, axis)
    return with_leaves(params, result)


@functools.partial(jax.jit, static_argnames=("kept", "method"))
def _group_transport(
    rows: list[Array],
    scored_rows: list[Array] | None,
    scores: Array | None,
    key: Array,
    kept: int,
    method: Method,
) -> Transport:
    """Score, targets, cost, marginals and plan of one group."""
    if scores is None:
        scores = importance.score(method.importance, scored_rows or rows, key)
    targets = transport.top(scores, kept)
    features = transport.features(jnp.concatenate(rows, axis=1))
    cost = transport.cost_matrix(features, features[targets], method.cost_p)
    if method.method == "prune":
        n = features.shape[0]
        plan = jnp.zeros((n, kept), cost.dtype).at[targets, jnp.arange(kept)].set(1 / kept)
        zero = jnp.zeros((), cost.dtype)
        no = jnp.zeros((), jnp.int32)
        done = jnp.all(jnp.isfinite(cost))
        return Transport(plan, targets, done, no, zero, zero, jnp.zeros((n,), cost.dtype))
    source = transport.marginal(method.source_marginal, scores)
    target = transport.marginal(method.target_marginal, scores[targets])
    return transport.solve(
        cost, source, target, targets, solver=method.solver, epsilon=method.epsilon
    )


def _rows(leaves: Leaves, plan: Plan, group: Group, sizes: Mapping[str, int]) -> list[Array]:
    """Rows of all producers and consumers of a group, ``[n, d]`` each."""
    return [
        rows
        for m in group.members
        if m.role in ("producer", "consumer")
        for rows in ex.rows(
            leaves[m.path], m.axis, plan.leaf[m.path].axes[m.axis], group.name, sizes
        )
    ]


def _map_group(
    leaves: Leaves,
    plan: Plan,
    group: Group,
    found: Transport,
    method: Method,
    sizes: Mapping[str, int],
    keep_shape: bool = False,
) -> dict[str, Array]:
    """Applies one group's map to all its members."""
    result = dict(leaves)
    for m in group.members:
        function = _mapper(found, m.role, method, group.size if keep_shape else None)
        expression = plan.leaf[m.path].axes[m.axis]
        result[m.path] = ex.transform(
            result[m.path], m.axis, expression, group.name, function, sizes
        )
    return result


def _mapper(found: Transport, role: str, method: Method, full: int | None) -> Any:
    """The function of an array and an axis that a member of this role is mapped by."""
    if method.method == "prune":
        if full is None:
            return lambda x, axis: jnp.take(x, found.targets, axis)
        mask = jnp.zeros((full,), bool).at[found.targets].set(True)
        return lambda x, axis: jnp.where(
            mask.reshape([-1 if i == axis else 1 for i in range(x.ndim)]), x, 0
        )
    sums_to_one = role == "consumer" or (
        method.merge == "reference" and role in ("producer", "additive", "mean")
    )
    matrix = _normalised(found.map, 1 if sums_to_one else 0).T
    if full is not None:
        matrix = jnp.zeros((full, full), matrix.dtype).at[found.targets].set(matrix)

    def function(x: Array, axis: int) -> Array:
        product = jnp.tensordot(
            matrix.astype(x.dtype), x, (1, axis), precision=jax.lax.Precision.HIGHEST
        )
        return jnp.moveaxis(product, 0, axis)

    return function


def _normalised(plan: Float[Array, "n m"], axis: int) -> Float[Array, "n m"]:
    """The plan divided by its sums along an axis, 0/0 = 0."""
    total = plan.sum(axis, keepdims=True)
    return jnp.where(total > 0, plan / jnp.where(total > 0, total, 1), 0)


def _promoted(x: Array) -> Array:
    """At least float32; what is not floating point is left alone."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def _atoms(plan: Plan, path: str, axis: int) -> set[str]:
    return set(ex.atoms(plan.leaf[path].axes[axis]))


def _group(plan: Plan, name: str) -> Group:
    if name not in plan.group:
        known = ", ".join(list(plan.group)[:5]) or "none"
        raise ValueError(f"unknown group {name!r}; the groups are {known} ...")
    return plan.group[name]


def _checked_scores(scores: Scores | None, plan: Plan) -> dict[str, Array]:
    result = {}
    for name, value in (scores or {}).items():
        group = _group(plan, name)
        value = jnp.asarray(value)
        if value.shape != (group.size,):
            raise ValueError(
                f"scores of group {name}: expected shape ({group.size},), got {value.shape}"
            )
        if is_concrete(value) and not bool(jnp.all(jnp.isfinite(value))):
            raise ValueError(f"scores of group {name}: expected finite numbers, got NaN or inf")
        result[name] = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return result


def _checked_indices(plan: Plan, name: str, index: Array) -> Array:
    n = _group(plan, name).size
    if index.ndim != 1 or index.size == 0 or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            f"group {name}: expected a vector of at least one integer index, got {index.dtype} of "
            f"shape {index.shape}"
        )
    if is_concrete(index) and not bool(jnp.all((index >= 0) & (index < n))):
        raise ValueError(f"group {name}: expected indices in [0, {n}), got {index}")
    return index


def _check_maps(maps: Mapping[str, Transport], plan: Plan) -> None:
    for name in maps:
        _group(plan, name)
    for name, kept in plan.widths.items():
        shape = (plan.group[name].size, kept)
        if name not in maps or maps[name].map.shape != shape:
            got = maps[name].map.shape if name in maps else "none"
            raise ValueError(f"group {name}: expected a transport map of shape {shape}, got {got}")


def _check_converged(maps: Mapping[str, Transport], method: Method) -> None:
    """Raises where a solver has not converged, outside of jit."""
    if not all(is_concrete(*found) for found in maps.values()):
        return
    failed = [name for name, found in maps.items() if not bool(found.converged)]
    if failed:
        found = maps[failed[0]]
        raise RuntimeError(
            f"solver {method.solver!r} did not converge for {len(failed)} of {len(maps)} groups, "
            f"first {failed[0]}: marginal error {float(found.marginal_error):.2g} after "
            f"{int(found.iterations)} iterations at epsilon {method.epsilon}; use a larger epsilon, "
            "or solver='exact'"
        )
