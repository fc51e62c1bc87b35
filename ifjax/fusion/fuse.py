"""From full parameters and a spec to small parameters: scores, transport maps, merging."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from jaxtyping import PyTree

from ifjax.activations.statistics import Stats
from ifjax.fusion.execution.merging import merged
from ifjax.fusion.execution.place import (
    fused_outputs,
    held_by_host,
    leaf_outputs,
    placed,
    run,
    to_host,
)
from ifjax.fusion.execution.solve import solved
from ifjax.fusion.inputs import Scores, check_converged, checked_maps
from ifjax.fusion.program import Program, compiled
from ifjax.fusion.transport_maps import inputs_of
from ifjax.namespace import AnyArray, Arrays
from ifjax.parallel import placement
from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.structure.leaves import checked_leaves, some_leaves
from ifjax.transport.transport import Transport


@with_promotion
def fuse_params(
    params: PyTree,
    spec: FusionSpec,
    scores: Scores | None = None,
    stats: Stats | None = None,
    keep_shape: bool = False,
) -> PyTree:
    """The parameters at the small widths of a spec: neurons fused into fewer, or pruned.

    First `transport_maps` finds which neurons stay and where the others go, then `apply_maps`
    merges them. Pure; ``spec`` and ``keep_shape`` are static, so that it can be jitted with
    ``static_argnames=("spec", "keep_shape")`` and compiles once for one spec.

    Args:
      params: the full parameter tree that the spec was made for.
      spec: made by `DependencyGraph.spec`.
      scores: scores by group name, instead of ``spec.method.importance`` for these groups.
      stats: for importances that need gradients or activations, see `ifjax.collect_stats`.
      keep_shape: return the fused neurons in place at full shape, with zeros elsewhere (ones in
        vectors that scale; folded batch norms get a variance of zero and a scale of sqrt(eps)). A
        weight that is normalised over the dropped entries becomes 0/0.
        Fusing the result again changes nothing with the reference merge and uniform marginals;
        otherwise dropped neurons would weigh in: call `ifjax.compact` first.

    Returns:
      A tree of the same structure and dtypes; shapes are those of ``spec.small_struct(params)``.

    Raises:
      ValueError: for parameters of another network, a wrong shape or dtype, weights that are not
        finite, scores of an unknown group or of a wrong shape, or ``keep_shape`` where heads are
        fused whose dimensions are cut too.
      TypeError: for a graph in the place of a spec, or other types than these.
      ImportError: for ``solver="exact"`` without POT.
      RuntimeError: if a Sinkhorn solver did not converge (outside of jit).

    Warns:
      UserWarning: where running statistics are still those that a network begins with, means 0 and
        variances 1 (or 0): no data has been seen in train mode.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4, 8), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, solver="nearest")
      >>> small = ifjax.fuse_params(params, spec)
      >>> {name: x.shape for name, x in small.items()}
      {'w1': (4, 4), 'w2': (4, 2)}
    """
    program, leaves, *given = inputs_of(params, spec, scores, stats, keep_shape)
    if not spec.structure.widths:
        return params
    _check_in_place(program, "weights")
    outputs = functools.partial(fused_outputs, program, params, leaves)
    small, states = run(_fused, program, leaves, *given, outputs=outputs)
    check_converged(states, spec.method)
    return placed(params, small)


def _fused(
    program: Program, leaves: Arrays, scores: Arrays, stats: Stats | None
) -> tuple[dict[str, AnyArray], dict[str, Transport]]:
    """The small leaves, and how their maps were solved."""
    maps = solved(program, leaves, scores, stats)
    narrow = {path: x for path, x in leaves.items() if x.dtype.itemsize < 4}
    leaves = {**leaves, **placement.read_again(narrow, after=maps)}
    sources = {p.name: p.sources for level in program.levels for p in level.problems}
    # Without what is as large as the maps.
    left = {"map": None, "targets": None, "potential": None}
    states = {name: found._replace(**left) for name, found in maps.items()}
    return merged(program, leaves, maps, "weights", sources), states


@with_promotion
def apply_maps(
    params: PyTree,
    spec: FusionSpec,
    maps: Mapping[str, Transport],
    kind: str = "weights",
    keep_shape: bool = False,
) -> PyTree:
    """Merges the neurons of every group by its transport map.

    With a plan T (n x m), row sums r and column sums c, let M = (diag(r)^-1 T)^T, whose columns sum
    to one, and P = diag(c)^-1 T^T, whose rows sum to one (0/0 = 0). Weights:

    * ``merge="reference"``: producers, additive members and consumers are multiplied by M, as in
      the reference implementation of Intra-Fusion; other members by P.
    * ``merge="preserving"``: consumers are multiplied by M, everything else by P: where neurons
      that are equal in what produces them are merged, the function does not change. Weights that
      both produce and consume a group (tied ones), or consumers that are a product of two
      parameters, have no such merge.

    Batch norms that can be folded are folded before and refit afterwards, see
    `ifjax.fusion.batch_norm`.

    Gradients map contragrediently: consumers are multiplied by P (they average), everything else by
    M (it sums). Let E lift small weights to large ones, out_i = sum_j M_ji out_j,
    in_i = sum_j P_ji in_j; where every neuron goes to one target, the full function at E w is the
    small function at w. This is the gradient of the full function at E w with respect to w, by the
    chain rule, with the full gradient taken at the unfused weights; so it is the small function's
    gradient where the merge has changed nothing.

    With ``method="prune"`` weights and gradients of the targets are kept as they are.

    Args:
      params: the full parameter tree; or, with another ``kind``, a tree of the same leaves or some
        of them.
      spec: the spec that the maps were computed for.
      maps: a `Transport` for every group that the spec cuts.
      kind: ``"weights"``, ``"gradients"``, or ``"select"`` for the values of the targets.
      keep_shape: return the fused neurons in the places of their targets, zeros elsewhere.

    Returns:
      A tree of the same structure and dtypes.

    Raises:
      ValueError: as `fuse_params`; or if a group has no map, or one of a wrong shape.
      TypeError: for a spec or a map that is none.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4), "w2": jnp.ones((4, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> spec = graph.spec(0.5, solver="nearest")
      >>> maps = ifjax.transport_maps(params, spec)
      >>> ifjax.apply_maps(params, spec, maps)["w1"].shape
      (4, 2)
    """
    check_spec(spec)
    structure = spec.structure
    if kind not in _APPLIED:
        raise ValueError(f"kind must be one of {', '.join(_APPLIED)}; got {kind!r}")
    program = compiled(spec, keep_shape=keep_shape)
    full = to_host(params) if held_by_host(program, params) else params
    leaves = checked_leaves(full, structure) if kind == "weights" else some_leaves(full, structure)
    maps = checked_maps(maps, structure)
    if not structure.widths:
        return params
    _check_in_place(program, kind)
    read = {path: leaves[path] for path in program.read if path in leaves}
    rest = dict.fromkeys(Transport._fields[2:])
    given = {name: maps[name]._replace(**rest) for name in structure.widths}
    small = run(
        _APPLIED[kind], program, read, given, outputs=lambda: leaf_outputs(program, params, read)
    )
    return placed(params, small)


# One function each, so that a program that is compiled is found again.
_APPLIED = {
    kind: functools.partial(merged, kind=kind) for kind in ("weights", "gradients", "select")
}


def _check_in_place(program: Program, kind: str) -> None:
    """Refuses to merge entries whose own neurons stand in different places."""
    merge, cut = program.merge(kind), program.spec.structure.in_order()
    for outer in (g for g in cut if program.keep_shape and merge[g.name] != "select"):
        for inner in (g for g in cut if outer.name in g.along):
            raise ValueError(
                f"group {inner.name}: every entry along {outer.name} keeps neurons of its own, in "
                f"places of its own, so that the entries cannot be merged with keep_shape=True; "
                "leave one of the two groups whole, keep heads='prune', or fuse without keep_shape"
            )
