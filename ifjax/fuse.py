"""From full parameters and a spec to small parameters: scores, transport maps, merging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ifjax import batch_norm
from ifjax.checks import (
    Scores,
    check_maps,
    checked_indices,
)
from ifjax.graph import expression as ex
from ifjax.graph.trace import DependencyGraph
from ifjax.maps import transport_maps
from ifjax.merge import alone, merge_kind, merge_neurons, places
from ifjax.spec import FusionSpec, Plan
from ifjax.transport import Transport
from ifjax.tree import checked_leaves, promoted, with_leaves


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
    work = {path: promoted(x) for path, x in leaves.items()}
    kind = merge_kind(method)
    norms = [n for n in plan.norms if kind != "select" and _is_cut(plan, n.kernel, n.axis)]
    work = batch_norm.fold(work, norms)
    spreads = {n: batch_norm.spread(work[n.kernel], work[n.scale], n.axis) for n in norms}
    sizes: dict[str, int] = {}
    for group in plan.in_order():
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
    touched = {m.path for g in plan.in_order() for m in g.members}
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


def _is_cut(plan: Plan, path: str, axis: int) -> bool:
    return any(name in plan.widths for name in ex.atoms(plan.leaf[path].axes[axis]))
