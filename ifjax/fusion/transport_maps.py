"""Scores, targets, costs and transport plans of every group of a spec."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
from jaxtyping import Array, PyTree

from ifjax.activations.statistics import Stats
from ifjax.fusion.execution.place import held_by_host, is_held, map_outputs, run, to_host
from ifjax.fusion.execution.solve import scored, solved
from ifjax.fusion.inputs import (
    Scores,
    check_converged,
    checked_init,
    checked_scores,
    checked_stats,
    warn_of_unsettled,
)
from ifjax.fusion.program import Program, compiled
from ifjax.importance.data import NO_SCORES, Reconstruction
from ifjax.namespace import Arrays
from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.structure.leaves import checked_leaves
from ifjax.transport.transport import Transport


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
    program, leaves, *given = inputs_of(params, spec, scores, stats)
    init = checked_init(init, spec.structure)
    outputs = functools.partial(map_outputs, program)
    found = run(solved, program, leaves, *given, init, outputs=outputs)
    check_converged(found, spec.method)
    return _on_devices(found, spec)


def inputs_of(
    params: PyTree,
    spec: FusionSpec,
    scores: Scores | None = None,
    stats: Stats | None = None,
    keep_shape: bool = False,
) -> tuple[Program, Arrays, Arrays, Stats | None]:
    """The program of a spec; leaves that it reads, scores and statistics, checked."""
    check_spec(spec)
    spec.method.targets_value.require()
    scores = checked_scores(scores, spec.structure)
    program = compiled(spec, given=scores, keep_shape=keep_shape)
    if held_by_host(program, params):
        params = to_host(params)
    leaves = checked_leaves(params, spec.structure)
    stats = checked_stats(stats, spec.structure, spec.method, scores)
    chosen_elsewhere = isinstance(spec.method.importance_value, Reconstruction)
    if chosen_elsewhere and not spec.structure.widths.keys() <= scores.keys():
        raise ValueError(NO_SCORES)
    warn_of_unsettled(leaves, program.norms)
    return program, {path: leaves[path] for path in program.read}, scores, stats


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
    method = dataclasses.replace(spec.method, method="prune", targets="top", order="simultaneous")
    plain = dataclasses.replace(spec, method=method)
    program, leaves, _, stats = inputs_of(params, plain, None, stats)
    outputs = functools.partial(map_outputs, program)
    found = run(scored, program, leaves, stats, outputs=outputs)
    return _on_devices(found, spec)


def _on_devices(found: Mapping[str, PyTree], spec: FusionSpec) -> dict[str, PyTree]:
    """Arrays of jax, by the groups in the order in which they are fused."""
    found = jax.device_put(found) if is_held(found) else found
    return {group.name: found[group.name] for group in spec.structure.in_order()}
