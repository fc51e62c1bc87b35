"""Choice and reconstruction on a few unlabelled inputs: `compress`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from ifjax.activations.analytic import LayerMoments
from ifjax.activations.statistics import Stats
from ifjax.fusion.fuse import apply_maps
from ifjax.fusion.inputs import Scores, warn_of_unsettled
from ifjax.fusion.merge import matrices, matrix_for
from ifjax.fusion.transport_maps import transport_maps
from ifjax.graph.resized import resized
from ifjax.graph.shrink import shrink
from ifjax.importance import Reconstruction
from ifjax.jaxprs.arguments import Arguments, check_order
from ifjax.namespace import namespace
from ifjax.parallel.hosts import agreed, on_host
from ifjax.parallel.sharding import laid_like
from ifjax.promotion import with_promotion
from ifjax.reconstruction.by_moments import sweep_moments
from ifjax.reconstruction.calibration import Calibration, calibration
from ifjax.reconstruction.journal import Journal
from ifjax.reconstruction.on_disk import OnDisk
from ifjax.reconstruction.recompute import recomputing
from ifjax.reconstruction.report import Report, warn_of_little
from ifjax.reconstruction.start import laid, start
from ifjax.reconstruction.statistics import refit_statistics
from ifjax.reconstruction.sweep import Given, sweep
from ifjax.reconstruction.unroll import Unrolled, unrolled
from ifjax.reconstruction.walk import Walk
from ifjax.spec.options import given as given_option
from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.structure.leaves import checked_leaves
from ifjax.structure.names import by_group
from ifjax.structure.structure import Group
from ifjax.tree import leaves_by_path


@with_promotion
def compress(
    apply_fn: Callable[..., Any],
    params: PyTree,
    spec: FusionSpec,
    batches: Iterable[Any] | LayerMoments,
    *,
    scores: Scores | None = None,
    stats: Stats | None = None,
    folder: str | os.PathLike[str] | None = None,
    frontier: str = "held",
    altered: PyTree | None = None,
    **static: Any,
) -> tuple[PyTree, Report]:
    r"""Chooses the neurons of a small network, and solves for the weights that read them.

    From the input to the output, on a few hundred unlabelled inputs: where the neurons of a group
    are read, the ones are kept that can make up for the others; and wherever the function is affine
    in a weight, from a contraction on over biases, norms and adds, this weight becomes the ridge
    solution that brings the small network back to what the dense one has there,

    .. math::
        \min_{V, d} \|X V + 1 d' - T\|^2 + \lambda \mu \|V - V_0\|^2,

    with X what the contraction reads in the *small* network, T the dense network's value minus all
    else that the small one adds, :math:`V_0` the weights as they are, d an offset where the path
    adds one, :math:`\mu` the mean diagonal of X'X, and :math:`\lambda` chosen by the error on a
    quarter of the inputs, which are held out for it; where none makes it smaller, V stays
    :math:`V_0`. Behind a norm over neurons that are cut :math:`V_0` is taken times the number that
    fits best, if it does so on inputs that are held out, for the norm divides by the mean of fewer.
    Where only products of two activations
    Q K' contract the neurons, as dimensions of queries and keys, the product is what is restored:
    by a matrix between the kept ones, multiplied into weights of Q or K where they are linear in
    them. Nothing is fine-tuned and no gradient taken.

    Args:
      apply_fn: the *eval-mode* function ``apply_fn(params, *inputs)`` that was traced.
      params: its full parameters. Leaves that are arrays of numpy, memory maps too, stay on the
        host: they are on the device for the stretch of the function that reads them, and come back
        as arrays of numpy. What is on the device then is a layer's weights, what is read near both
        ends (a tied embedding), and the frontier. On a mesh every small leaf lies as the full one
        does, see `ifjax.small_shardings`.
      spec: which groups, how many neurons. Neurons are chosen by what can be reconstructed where
        the spec was made without an importance, or with ``importance="reconstruction"``
        (``ifjax.importance.Reconstruction("forward")`` takes instead of removes); with another one,
        by it, and then merged into the chosen ones by transport where the spec's method is
        ``"fuse"``, which is the default of `DependencyGraph.spec`.
      batches: unlabelled inputs, see `ifjax.activations.batches`: tuples of what ``apply_fn`` takes
        after the parameters, or the input alone. A few hundred images, or a few dozen windows of
        text; see ``frontier`` for the memory that they take. Without any, what
        `ifjax.analytic_moments` gives: neurons are then chosen, and every weight is solved for, on
        what the dense network's layers read by its running statistics. A product that goes
        into a norm is scaled to the variance that it has in the dense network, and what is left
        over on average goes into the running mean.
      scores: by group name, scores ``[*batch, n]`` that choose the neurons of these groups; ``[n]``
        for a group of stacked layers is one choice for all of them.
      stats: for importances that need them.
      folder: where finished choices and solutions are kept, of this call alone: a run that was
        killed and is called again in the same way goes on with the next, to the same bits. Where
        leaves are memory maps, those that change become memory maps of unnamed files in it. Of
        several processes each keeps its own part in a folder of its own in it, which may be on a
        disk of its own.
      frontier: what is kept from one solve to the next. ``"held"``: all values of both functions
        that are still to be read, of all inputs, about two activations of a layer each. Every layer
        is then evaluated once. ``"recompute"``: the inputs alone; each choice and each solve
        evaluates both functions anew up to there, a batch at a time, so that only one batch's
        values are in memory, at the price of about half a forward pass of both for each of them.
        The results agree but for rounding.
      altered: ``params`` with some leaves changed beforehand, of the same shapes, such as layers
        that are to be left out and add nothing any more. Leaves, or layers of stacked ones, that
        differ from ``params`` stay as they are here but for the neurons that are cut, and all
        others are solved for what makes up for them. Running statistics are those of the small
        network in the end, whether they were changed or not, and a norm's scale and offset go with
        its statistics, so that the function stays what it is.
      **static: keyword arguments of ``apply_fn``, not traced.

    Returns:
      The small parameters, to be used with `ifjax.shrink`, and a report of what was chosen, solved
      and left as it was.

    Raises:
      ValueError: for no inputs, inputs of different shapes, too few of them to hold some out,
        parameters or moments of another network, activations that are not finite, another
        frontier, or a folder that holds another run; for moments with ``folder``, ``frontier`` or
        ``altered``, or merged neurons.
      TypeError: for batches of another form, or anything but a spec.

    References:
      Hassibi & Stork, `Second order derivatives for network pruning: Optimal Brain Surgeon
      <https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html>`_,
      NeurIPS 1992; Frantar & Alistarh, `Optimal Brain Compression
      <https://arxiv.org/abs/2208.11580>`_, NeurIPS 2022; for products Zhang & Yang, `CORP
      <https://arxiv.org/abs/2602.05243>`_, 2026.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> params = {"w1": jnp.eye(4, 8) + jnp.eye(4, 8, 4), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, x).spec(0.5, importance="reconstruction")
      >>> small, report = compress(apply, params, spec, [x])
      >>> bool(jnp.allclose(ifjax.shrink(apply, spec)(small, x), apply(params, x), atol=1e-2))
      True
    """
    check_order("compress(apply_fn, params, spec, batches)", apply_fn, params)
    check_spec(spec)
    if frontier not in ("held", "recompute"):
        raise ValueError(f"frontier: expected 'held' or 'recompute', got {frontier!r}")
    for tree in (params, begin := params if altered is None else altered):
        checked_leaves(tree, spec.structure)
    is_plain = folder is None and frontier == "held" and altered is None
    data, example = _inputs(batches, apply_fn, params, is_plain)
    flat = unrolled(apply_fn, params, spec.structure, example, static)
    arguments = Arguments.split(example, static)
    walked = resized(flat.apply_fn, flat.structure, flat.params, arguments, static)
    arrays = [Arguments.split(inputs, static).arrays for inputs in data.batches]
    walk = start(walked, jax.tree.leaves(flat.params), arrays)
    if folder is not None and any(isinstance(x, np.memmap) for x in jax.tree.leaves(params)):
        walk.leaves = OnDisk(walk.leaves, folder)
    _fix(walk, [] if altered is None else jax.tree.leaves(flat.unstacked(altered)))
    if frontier == "recompute":
        walk = recomputing(walk)

    def by_importance(groups: Sequence[Group]) -> Mapping[str, np.ndarray]:
        found = kept_by_importance(begin, spec, flat.originals(groups), scores, stats)
        return flat.taken(agreed(found, walk.mesh))

    given = _given(begin, spec, flat, scores, stats)
    kept, merged = agreed((given.kept, given.matrices), walk.mesh)
    given = dataclasses.replace(given, kept=kept, matrices=merged)
    if isinstance(batches, LayerMoments):
        result = sweep_moments(walk, given, by_importance, batches, flat.sources)
    else:
        every = [*jax.tree.leaves((params, altered)), *(x for batch in arrays for x in batch)]
        names = sorted(given.kept), sorted(given.matrices), sorted(static.items()), frontier
        every += jax.tree.leaves((given.kept, given.matrices, list(given.leaves)))
        journal = Journal.open(folder, (spec.to_json(), str(names), *every), walk.mesh)
        result = sweep(walk, given, by_importance, data.held, journal)
    tree = jax.tree.structure(flat.params)
    small = flat.stacked(jax.tree.unflatten(tree, list(walk.leaves.values())))
    if data.batches:
        apply_small = functools.partial(shrink(apply_fn, spec), **static)
        small = refit_statistics(apply_small, small, data.batches)
        warn_of_little(result.solved)
    kept = flat.gathered({event.group.name: event.index for event in walk.events})
    sizes = {name: spec.structure.group[name].size for name in kept}
    found = tuple(result.chosen), tuple(result.solved), tuple(result.follows)
    return _where(params, small), Report(*found, kept, sizes)


def _inputs(
    batches: Iterable[Any] | LayerMoments,
    apply_fn: Callable[..., Any],
    params: PyTree,
    is_plain: bool,
) -> tuple[Calibration, Any]:
    """The batches, none of moments, and the inputs that the function is traced for."""
    if not isinstance(batches, LayerMoments):
        data = calibration(batches, apply_fn, params)
        return data, data.batches[0]
    if not is_plain:
        raise ValueError("moments take no folder, frontier or altered: nothing is evaluated")
    return Calibration((), ()), batches.inputs


def _where(params: PyTree, small: PyTree) -> PyTree:
    """Small leaves where the full ones are: on the host, on a device, or as they lie on a mesh."""
    small = laid_like(small, params)
    host = lambda y: y if isinstance(y, np.ndarray) else on_host(y)  # noqa: E731
    return jax.tree.map(lambda x, y: host(y) if isinstance(x, np.ndarray) else y, params, small)


def _fix(walk: Walk, leaves: Sequence[Any]) -> None:
    """Gives the compressed function other leaves, if any; those that differ stay."""
    for n, leaf in zip(walk.leaves if leaves else (), leaves, strict=True):
        leaf = laid(leaf)
        if not namespace(leaf, walk.full[n]).array_equal(leaf, walk.full[n]):
            walk.write(n, leaf)
            walk.fixed.add(n)


def _given(
    params: PyTree, spec: FusionSpec, flat: Unrolled, scores: Scores | None, stats: Stats | None
) -> Given:
    """Neurons chosen by importance, and the others merged into them where the spec says so.

    Of a spec that chooses by what can be reconstructed, those that scores of one's own choose.
    """
    if reconstructs(spec):
        wanted = spec.structure.widths.keys() & by_group(spec.structure, scores or {}).keys()
        found = kept_by_importance(params, spec, {*wanted}, scores, stats) if wanted else {}
        if not wanted:  # else it has been told
            warn_of_unsettled(leaves_by_path(params), spec.structure.norms)
        return Given(flat.taken(found), direction=direction_of(spec))
    maps = transport_maps(params, spec, scores, stats)
    kept = {name: on_host(found.targets) for name, found in maps.items()}
    side = matrix_for("producer", spec.method.merge)
    merged = {}
    for name, found in maps.items():
        if spec.method.of(spec.structure.group[name].kind).method == "fuse":
            merged[name] = _matrix(on_host(found.map, np.float64), side)
    if not merged:
        return Given(flat.taken(kept))
    small = flat.unstacked(apply_maps(params, spec, maps))
    return Given(flat.taken(kept), flat.taken(merged), jax.tree.leaves(small))


def _matrix(plan: Float[np.ndarray, "*batch n m"], side: str) -> Float[np.ndarray, "*batch m n"]:
    """What takes the values of n neurons to those of the m merged ones."""
    flat = plan.reshape(-1, *plan.shape[-2:])
    found = np.stack([matrices(x)[side] for x in flat])
    return found.reshape(*plan.shape[:-2], *found.shape[1:])


def kept_by_importance(
    params: PyTree, spec: FusionSpec, names: set[str], scores: Scores | None, stats: Stats | None
) -> dict[str, np.ndarray]:
    """The neurons of highest importance, of some groups.

    Args:
      params: the full parameters.
      spec: how many are kept; where it says reconstruction, magnitude counts.
      names: of the groups.
      scores: by group name, scores of one's own.
      stats: for importances that need them.

    Returns:
      Indices ``[*batch, m]`` by name.
    """
    method = dataclasses.replace(spec.method, method="prune", targets="top")
    if reconstructs(spec):
        method = dataclasses.replace(method, importance="l1")
    plain = dataclasses.replace(spec, method=method)
    found = transport_maps(params, plain, scores, stats)
    return {name: on_host(found[name].targets) for name in sorted(names)}


def direction_of(spec: FusionSpec) -> str:
    """Whether neurons are removed or taken one after the other."""
    chosen = spec.method.importance_value
    return chosen.direction if isinstance(chosen, Reconstruction) else "backward"


def reconstructs(spec: FusionSpec) -> bool:
    """Whether the spec's neurons are chosen by what can be reconstructed."""
    chosen = isinstance(spec.method.importance_value, Reconstruction)
    return chosen or given_option(spec.method.importance) is None
