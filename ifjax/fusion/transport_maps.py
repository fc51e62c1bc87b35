"""Scores, targets, costs and transport plans of every group of a spec."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ifjax.activations.statistics import Stats
from ifjax.fusion import batch_norm
from ifjax.fusion.execution.buckets import Bucket, Inputs, read
from ifjax.fusion.execution.program import (
    BYTES,
    Entry,
    Located,
    Wave,
    bucket_bytes,
    in_order,
    schedule,
)
from ifjax.fusion.execution.solve import mapped, require, solve, taken
from ifjax.fusion.inputs import Scores, check_converged, checked_scores, checked_stats
from ifjax.fusion.merge import merge_group
from ifjax.importance.independence import gram_independence
from ifjax.parallel import threads
from ifjax.parallel.placement import on_mesh
from ifjax.promotion import with_promotion
from ifjax.spec.method import Method
from ifjax.spec.shardings import explicit_maps
from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.structure.leaves import checked_leaves
from ifjax.structure.structure import BatchNorm, Group, Structure
from ifjax.transport.transport import Transport
from ifjax.tree import is_concrete, promoted


@with_promotion
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

    def found(params: Any, *given: Any) -> dict[str, Transport]:
        return stacked_maps(params, spec, *given).maps()

    outputs = functools.partial(explicit_maps, spec.structure)
    return on_mesh(found, params, scores, stats, init, outputs=outputs)


@dataclasses.dataclass(frozen=True)
class Found:
    """The transports of a network as they were solved: stacked, a bucket of groups at a time.

    Attributes:
      leaves: the parameters by path, checked.
      folded: those that hold a group or belong to its batch norms, the norms folded in.
      waves: what is static about the buckets.
      stacks: per wave, a stacked `Transport` per bucket.
    """

    leaves: dict[str, Any]
    folded: dict[str, Array]
    waves: tuple[Wave, ...]
    stacks: list[list[Transport]]

    def maps(self) -> dict[str, Transport]:
        """A `Transport` per group, in the order in which the groups are fused."""
        found = {}
        for wave, stacks in zip(self.waves, self.stacks, strict=True):
            found |= {entry.name: taken(stacks, at) for entry, at in wave.groups}
        return {name: found[name] for name in in_order(self.waves)}


def stacked_maps(
    params: PyTree,
    spec: FusionSpec,
    scores: Scores | None = None,
    stats: Stats | None = None,
    init: Mapping[str, Transport] | None = None,
) -> Found:
    """`transport_maps` before the groups are taken out of their buckets, and the leaves."""
    check_spec(spec)
    structure, method = spec.structure, spec.method
    method.targets_value.require()
    leaves = checked_leaves(params, structure)
    scores = checked_scores(scores, structure)
    stats = checked_stats(stats, structure, method, scores)
    backend = jax.default_backend()
    limit = bucket_bytes(backend, *leaves.values(), *scores.values())
    waves = schedule(structure, method, frozenset(scores), backend, limit)
    require(waves)
    described, scored = _weights(leaves, structure, method, stats)
    folded, stacks = described, []
    for wave in waves:
        inputs = [_inputs(entries, described, scored, scores) for entries in wave.entries]
        starts = [
            [_start(init, structure.group[e.name]) for e in entries] for entries in wave.entries
        ]
        stacks.append(_solved(inputs, wave, starts))
        if method.order == "sequential" and wave is not waves[-1]:
            same = scored is described
            described = _changed(described, stacks[-1], wave)
            if same:
                scored = described
            elif method.importance_value.reads == "weights":
                scored = _changed(scored, stacks[-1], wave)
    found = Found(leaves, folded, waves, stacks)
    converged = [stack.converged for wave in stacks for stack in wave]
    if is_concrete(*converged) and not all(np.all(np.asarray(x)) for x in converged):
        check_converged(found.maps(), method)
    return found


@with_promotion
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

    def found(params: Any, stats: Stats | None) -> dict[str, Array]:
        return _scores(params, spec, stats)

    outputs = functools.partial(explicit_maps, spec.structure)
    return on_mesh(found, params, stats, outputs=outputs)


def _scores(params: PyTree, spec: FusionSpec, stats: Stats | None) -> dict[str, Array]:
    structure = spec.structure
    method = dataclasses.replace(spec.method, method="prune", targets="top", order="simultaneous")
    leaves = checked_leaves(params, structure)
    stats = checked_stats(stats, structure, method, {})
    described, scored = _weights(leaves, structure, method, stats)
    found = {}
    waves = schedule(structure, method, frozenset(), jax.default_backend())
    for wave in waves:
        stacks = [
            read(_inputs(entries, described, scored, {}), bucket).scores
            for bucket, entries in zip(wave.buckets, wave.entries, strict=True)
        ]
        for entry, at in wave.groups:
            unit = at.unit
            scores = stacks[at.bucket][at.start : at.start + unit.count, : unit.size]
            found[entry.name] = scores.reshape(*unit.batch, unit.size)
    return {name: found[name] for name in in_order(waves)}


def _weights(
    leaves: Mapping[str, Any], structure: Structure, method: Method, stats: Stats | None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The arrays that describe the groups, and those that they are scored by, by path.

    Statistics that are not weights by the name of their group.
    """
    held = {m.path for group in structure.in_order() for m in group.members}
    norms = tuple(norm for norm in structure.norms if norm.kernel in held)
    vectors = {path for norm in norms for path in (norm.scale, norm.variance, norm.mean, norm.bias)}
    dense = {path: x for path, x in leaves.items() if path in held | vectors}
    # Before the solver: the exact one has no derivative to stop.
    dense, folded = _folded(jax.lax.stop_gradient(dense), norms)
    if stats is None:
        raw = method.scores_on == "raw" or method.importance_value.reads == "norm_scales"
        return folded, dense if raw else folded
    reads = method.importance_value.reads
    if reads == "gradients":
        return folded, _products({p: dense[p] for p in stats.gradients}, stats.gradients)
    ranks = tuple((group.name, len(group.batch)) for group in structure.in_order())
    values = getattr(stats, reads)
    ranks = tuple((name, rank) for name, rank in ranks if name in values)
    return folded, _per_example(values, stats.count, ranks)


@functools.partial(jax.jit, static_argnames="norms")
def _folded(
    leaves: dict[str, Any], norms: tuple[BatchNorm, ...]
) -> tuple[dict[str, Array], dict[str, Array]]:
    dense = {path: promoted(x) for path, x in leaves.items()}
    return dense, batch_norm.fold(dense, norms)


@jax.jit
def _products(x: dict[str, Array], y: dict[str, Array]) -> dict[str, Array]:
    return {path: x[path] * y[path] for path in y}


@functools.partial(jax.jit, static_argnames="ranks")
def _per_example(
    values: dict[str, Array], count: Any, ranks: tuple[tuple[str, int], ...]
) -> dict[str, Array]:
    """Statistics ``[*batch, n]``; of Gram matrices ``[*batch, n, n]`` what a channel holds."""
    found = {}
    for name, rank in ranks:
        value = values[name]
        if value.ndim == rank + 2:
            shape = value.shape[:-1]
            value = jax.vmap(gram_independence)(value.reshape(-1, *value.shape[rank:]))
            value = value.reshape(shape)
        found[name] = value / count
    return found


def _solved(
    inputs: list[list[Inputs]],
    wave: Wave,
    starts: Sequence[list[Array | None]],
) -> list[Transport]:
    """The transports of a wave: its buckets side by side, or in turn where that saves memory."""
    arrays = [*(x[:3] for group in inputs for x in group), *starts]
    large = any(sum(unit.bytes for unit in bucket.units) > BYTES for bucket in wave.buckets)
    if large or not threads.alike(arrays):
        problems = map(read, inputs, wave.buckets)
        return solve(problems, wave.buckets, wave.solvers, starts)

    def alone(inputs: list[Inputs], bucket: Bucket, solver: Any, start: Any) -> Transport:
        return solve([read(inputs, bucket)], [bucket], [solver], [start])[0]

    each = zip(inputs, wave.buckets, wave.solvers, starts, strict=True)
    return threads.each([functools.partial(alone, *given) for given in each], arrays)


def _inputs(
    entries: Sequence[Entry],
    described: Mapping[str, Array],
    scored: Mapping[str, Array],
    scores: Mapping[str, Array],
) -> list[Inputs]:
    return [
        Inputs(
            [described[path] for path in entry.described],
            [scored[path] for path in entry.scored] if entry.scored else None,
            scores.get(entry.name),
            entry.number,
        )
        for entry in entries
    ]


def _changed(leaves: Mapping[str, Array], stacks: list[Transport], wave: Wave) -> dict[str, Array]:
    """The leaves, those that later waves read merged by the maps of a wave."""
    entries = [entry for entry, _ in wave.groups]
    arrays = [[leaves[path] for path in entry.changed] for entry in entries]
    paths = [path for entry in entries for path in entry.changed]
    return {**leaves, **dict(zip(paths, _merged(arrays, stacks, wave.located), strict=True))}


@functools.partial(jax.jit, static_argnames="located")
def _merged(
    arrays: list[list[Array]], stacks: list[Transport], located: tuple[Located, ...]
) -> list[Array]:
    return [
        x
        for at, own in zip(located, arrays, strict=True)
        for x in merge_group(at.changed, own, mapped(stacks, at), at.merge)
    ]


def merging(method: Method) -> Method:
    """What merging knows of a method, so that specs that differ elsewhere share its programs."""
    return Method(method=method.method, merge=method.merge, heads=method.heads)


def _start(init: Mapping[str, Transport] | None, group: Group) -> Array | None:
    """The source potential to start from."""
    if init is None or group.name not in init:
        return None
    potential = jax.lax.stop_gradient(init[group.name].potential)
    if potential.shape != (*group.batch, group.size):
        raise ValueError(
            f"init of group {group.name}: expected a potential of shape "
            f"{(*group.batch, group.size)}, got {potential.shape}"
        )
    return potential
