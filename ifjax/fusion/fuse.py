"""From full parameters and a spec to small parameters: scores, transport maps, merging."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ifjax.activations.statistics import Stats
from ifjax.fusion import batch_norm
from ifjax.fusion.execution.program import Located
from ifjax.fusion.execution.solve import mapped
from ifjax.fusion.inputs import Scores, check_maps
from ifjax.fusion.merge import Map, Sources, merge_group, merge_kind, merge_leaves
from ifjax.fusion.transport_maps import Found, merging, stacked_maps
from ifjax.parallel.placement import on_mesh
from ifjax.parallel.sharding import laid_like
from ifjax.promotion import with_promotion
from ifjax.spec.method import Method
from ifjax.spec.shardings import explicit_outputs
from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.structure import axis as ex
from ifjax.structure.layout import alone, places, seen
from ifjax.structure.leaves import checked_leaves
from ifjax.structure.structure import BatchNorm, Group, Structure
from ifjax.transport.transport import Transport
from ifjax.tree import is_concrete, leaves_by_path, promoted, with_leaves


@with_promotion
def fuse_params(
    params: PyTree,
    spec: FusionSpec,
    scores: Scores | None = None,
    stats: Stats | None = None,
    keep_shape: bool = False,
) -> PyTree:
    """The small parameters: `transport_maps` and `apply_maps` together.

    Pure; ``spec`` and ``keep_shape`` are static, so that it can be jitted with
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

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4, 8), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, solver="nearest")
      >>> small = ifjax.fuse_params(params, spec)
      >>> {name: x.shape for name, x in small.items()}
      {'w1': (4, 4), 'w2': (4, 2)}
    """
    check_spec(spec)

    def fused(params: PyTree, *given: Any) -> PyTree:
        found = stacked_maps(params, spec, *given)
        return _applied(params, found.leaves, spec, {}, found, "weights", keep_shape)

    outputs = functools.partial(explicit_outputs, spec, params, keep_shape)
    return on_mesh(fused, params, scores, stats, outputs=outputs)


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
    """
    check_spec(spec)
    structure = spec.structure
    if kind not in ("weights", "gradients", "select"):
        raise ValueError(f"kind must be one of weights, gradients, select; got {kind!r}")

    def applied(params: PyTree, maps: Mapping[str, Transport]) -> PyTree:
        leaves = (
            checked_leaves(params, structure)
            if kind == "weights"
            else _some_leaves(params, structure)
        )
        check_maps(maps, structure)
        return _applied(params, leaves, spec, maps, None, kind, keep_shape)

    outputs = functools.partial(explicit_outputs, spec, params, keep_shape)
    return on_mesh(applied, params, maps, outputs=outputs)


def _applied(
    params: PyTree,
    leaves: dict[str, Any],
    spec: FusionSpec,
    maps: Mapping[str, Transport],
    found: Found | None,
    kind: str,
    keep_shape: bool,
) -> PyTree:
    """The maps of every group, or what they are taken from, applied to leaves of the parameters."""
    structure = spec.structure
    if not structure.widths:
        return params
    method = merging(spec.method)
    if keep_shape:
        _check_in_place(structure, functools.partial(_how, method, kind))
    touched = {m.path for g in structure.in_order() for m in g.members}
    touched = {path: x for path, x in leaves.items() if path in touched}
    sources: Sources = "few" if spec.method.solver_value.sparse else "many"
    given = {name: maps[name] for name in structure.widths if name in maps}
    needed = {name: Map(x.map, x.targets, sources) for name, x in given.items()}
    norms, folded = [], None
    if kind == "weights" and method.method == "fuse":
        norms = [n for n in structure.norms if _is_cut(structure, n.kernel, n.axis)]
    stacks, located = [], ()
    if found is not None:
        stacks = found.stacks
        # Through these no gradient flows.
        if is_concrete(*touched.values()):
            paths = {p for n in norms for p in (n.kernel, n.bias, n.mean) if p is not None}
            folded = {path: found.folded[path] for path in paths}
        located = tuple(tuple((e.name, at) for e, at in wave.groups) for wave in found.waves)
    merged = _merged(
        touched, folded, needed, stacks, structure, located, method, kind, keep_shape, tuple(norms)
    )
    return laid_like(with_leaves(params, {**leaves, **merged}), params)


def _how(method: Method, kind: str, group: Group) -> str:
    """The ``merge`` of `merge_neurons` for a group."""
    chosen = method.of(group.kind)
    return merge_kind(chosen) if kind == "weights" or chosen.method == "prune" else kind


@functools.partial(
    jax.jit, static_argnames=("structure", "located", "method", "kind", "keep_shape", "norms")
)
def _merged(
    leaves: dict[str, Any],
    folded: dict[str, Array] | None,
    given: dict[str, Map],
    stacks: list[list[Transport]],
    structure: Structure,
    located: tuple[tuple[tuple[str, Located], ...], ...],
    method: Method,
    kind: str,
    keep_shape: bool,
    norms: tuple[BatchNorm, ...],
) -> dict[str, Array]:
    """The leaves that hold a group which is cut, in one program.

    Args:
      leaves: these leaves as they are.
      folded: those of batch norms that are cut, folded; None if that is to be done.
      given: the maps, or
      stacks: what they are taken from.
      structure: as all that follows, static.
      located: where in the stacks the maps are.
      method: as far as `ifjax.fusion.transport_maps.merging` goes.
      kind: as for `apply_maps`.
      keep_shape: as there.
      norms: the batch norms that are cut, to be folded and refit.

    Returns:
      The merged leaves by path.
    """
    maps = dict(given)
    for wave, found in zip(located, stacks, strict=True):
        maps |= {name: mapped(found, at) for name, at in wave}
    how = functools.partial(_how, method, kind)
    work = {path: promoted(x) for path, x in leaves.items()}
    folded = batch_norm.fold(work, norms) if folded is None else {**work, **folded}
    merged = merge_leaves(folded, structure, maps, how, keep_shape, neutral=kind == "weights")
    for norm in norms:
        rows = folded[norm.kernel]
        scale, variance = work[norm.scale], work[norm.variance]
        factors = batch_norm.spread_factors(rows, scale, norm.axis)
        size, sign = batch_norm.slope(rows, scale, variance, norm.axis, norm.eps)
        rows = _merge_outputs(structure, norm, maps, rows, norm.axis, how, keep_shape, factors)
        size = _merge_outputs(structure, norm, maps, size, 0, how, keep_shape)
        sign = _merge_outputs(structure, norm, maps, sign, 0, lambda _: "select", keep_shape)
        dtype = jax.dtypes.canonicalize_dtype(leaves[norm.variance].dtype)
        merged.update(batch_norm.unfold(merged, norm, rows, size * sign, dtype))
    return {
        path: merged[path].astype(jax.dtypes.canonicalize_dtype(x.dtype))
        for path, x in leaves.items()
    }


def _check_in_place(structure: Structure, how: Callable[[Group], str]) -> None:
    """Refuses to merge entries whose own neurons stand in different places."""
    cut = structure.in_order()
    for outer in (g for g in cut if how(g) != "select"):
        for inner in (g for g in cut if outer.name in g.along):
            raise ValueError(
                f"group {inner.name}: every entry along {outer.name} keeps neurons of its own, in "
                f"places of its own, so that the entries cannot be merged with keep_shape=True; "
                "leave one of the two groups whole, keep heads='prune', or fuse without keep_shape"
            )


def _some_leaves(tree: PyTree, structure: Structure) -> dict[str, Any]:
    """Leaves by path, if they are leaves of the structure at full shape."""
    leaves = leaves_by_path(tree)
    for path, x in leaves.items():
        if path not in structure.leaf:
            raise ValueError(f"{path}: not a leaf of the network this spec was made for")
        got = getattr(x, "shape", type(x).__name__)
        if got != structure.leaf[path].shape:
            raise ValueError(f"{path}: expected shape {structure.leaf[path].shape}, got {got}")
    return leaves


def _merge_outputs(
    structure: Structure,
    norm: BatchNorm,
    maps: Mapping[str, Map],
    x: Array,
    axis: int,
    merge: Callable[[Group], str],
    keep_shape: bool,
    factors: Array | None = None,
) -> Array:
    """Maps the axis of an array that lies like the normalised axis of a norm's kernel.

    Multiplied by factors along the axis before.
    """
    sizes: dict[str, int] = {}
    along = set(ex.atoms(structure.leaf[norm.kernel].axes[norm.axis]))
    for group in structure.in_order():
        if group.name in along:
            paths, where = places(structure, group, sizes)
            where = alone(where, [paths.index(norm.kernel)])
            where = [dataclasses.replace(p, axis=axis) for p in where if p.axis == norm.axis]
            axes = structure.leaf[norm.kernel].axes
            axes = axes if x.ndim > 1 else (axes[norm.axis],)
            holds = seen([axes], tuple(where), group, sizes)
            full = group.size if keep_shape else None
            if factors is not None and (group.batch or not isinstance(where[0].where, ex.Atom)):
                x, factors = (
                    x * jnp.expand_dims(factors, [i for i in range(x.ndim) if i != axis]),
                    None,
                )
            (x,) = merge_group(holds, [x], maps[group.name], merge(group), full, factors=factors)
            factors = None
            if not keep_shape:
                sizes[group.name] = group.kept
    return x


def _is_cut(structure: Structure, path: str, axis: int) -> bool:
    return any(name in structure.widths for name in ex.atoms(structure.leaf[path].axes[axis]))
