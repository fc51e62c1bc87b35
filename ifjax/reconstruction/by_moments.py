"""Choice and solves on moments that are known beforehand, where there are no inputs.

All moments are of the dense network. What a layer is to give is therefore what the dense one gives
from the same inputs, and every weight is solved for by itself.

The best guess at a number varies less than the number. On inputs, later solves make up for that;
here, every norm would read something fainter than its running variance says, and so would all that
follows. A product that goes into a norm, whose running mean takes up what is left over on average,
is scaled to the variance that it has in the dense network.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ifjax.activations.analytic import Gaussian
from ifjax.activations.field import reciprocal
from ifjax.activations.layer_names import layer_names
from ifjax.activations.moments import Moments, NormalForm, kernel
from ifjax.graph.facts.sites import Site
from ifjax.jaxprs import compat
from ifjax.parallel.hosts import agreed, on_host
from ifjax.reconstruction.leaves import admits_any, find_offset, write_offset, write_weight
from ifjax.reconstruction.ridge import ridge, squared_error
from ifjax.reconstruction.select import Evidence, choose, combined
from ifjax.reconstruction.solve import Solved
from ifjax.reconstruction.sweep import Chosen, Given, Result, add_follows
from ifjax.reconstruction.taps import Tap, form_of, is_even, kernel_of, slopes, taps_of, units_of
from ifjax.reconstruction.walk import Walk
from ifjax.structure.structure import Group

SHRINKAGE = 0.01  # nothing is held out that could say
MOST_GAIN = 10.0  # what explains less than a hundredth of the variance is hardly known


def sweep_moments(
    walk: Walk,
    given: Given,
    blind: Callable[[Sequence[Group]], Mapping[str, np.ndarray]],
    moments: Mapping[str, Gaussian],
    paths: Sequence[str],
) -> Result:
    """Cuts every group of the walk's structure, and solves for what consumes them.

    Args:
      walk: at its beginning, without batches.
      given: neurons that are kept; the others' are chosen by what can be reconstructed.
      blind: chooses for groups that nothing reads of which there are moments.
      moments: of what the layers of the dense network read, by their names.
      paths: of the leaves that they are named by; of a slice of a stack, that of the stack.

    Returns:
      What was done; the small leaves are those of the walk.

    Raises:
      ValueError: where neurons were merged, or the moments are of another network.
    """
    if given.matrices:
        raise ValueError(
            "expected neurons that are selected, for moments do not tell what merged ones give: "
            'make the spec with method="prune", or give inputs'
        )
    structure, result = walk.resized.structure, Result()
    names = {n: leaf.path for n, leaf in zip(walk.leaves, structure.leaves, strict=True)}
    layers = layer_names(walk.program, paths)
    known = {n: moments[name] for n, name in layers.items() if name in moments}
    _check(walk, known, layers)
    _cut(walk, given, blind, known, result)
    for unit in walk.sites.units:
        for site in unit.sites:
            done = _solve(walk, site, known.get(site.output), names)
            if isinstance(done, str):
                result.follows.append((", ".join(names[n] for n in site.leaves), done))
            elif done is not None:
                result.solved.append(done)
    for units in walk.sites.tied:
        leaves = dict.fromkeys(names[n] for u in units for s in u.sites for n in s.leaves)
        result.follows.append((", ".join(leaves), "read several times"))
    add_follows(walk, names, result)
    return result


def _check(walk: Walk, known: Mapping[int, Gaussian], names: Mapping[int, str]) -> None:
    """Raises for moments that are not of what the dense network's layers read."""
    for step in walk.program.steps:
        if not step.outputs or step.outputs[0] not in known or sum(step.data[:2]) != 1:
            continue
        side = step.data[:2].index(True)
        if side == 1 and step.equation.primitive.name == "conv_general_dilated":
            continue
        weight = compat.struct_of(step.equation.invars[1 - side])
        form, found = form_of(walk, step, side), known[step.outputs[0]]
        b, k, _ = jax.eval_shape(functools.partial(kernel, form), weight).shape
        if (found.mean.shape, found.covariance.shape) != ((b, k), (b, k, k)):
            raise ValueError(
                f"{names[step.outputs[0]]}: expected a mean of shape {(b, k)} and a covariance of "
                f"shape {(b, k, k)}, got {found.mean.shape} and {found.covariance.shape}; the "
                "moments are of another network"
            )


def _cut(
    walk: Walk,
    given: Given,
    blind: Callable[[Sequence[Group]], Mapping[str, np.ndarray]],
    known: Mapping[int, Gaussian],
    result: Result,
) -> None:
    """Chooses all neurons on the dense network, and cuts it."""
    groups = walk.resized.structure.in_order()
    taps = taps_of(walk, [g.name for g in groups if g.name not in given.kept])
    kept, how = dict(given.kept), dict.fromkeys(given.kept, "importance")
    for name, found in taps.items():
        if all(t.step.outputs[0] in known for t in found):
            group = walk.resized.structure.group[name]
            parts = [_evidence(walk, t, group, known[t.step.outputs[0]]) for t in found]
            found = choose(walk, group, combined(parts, group), given.direction)
            kept[name] = agreed(found, walk.mesh)
            how[name] = "moments of what its consumers read"
    rest = [g for g in groups if g.name not in kept]
    if rest:
        kept |= blind(rest)
        how |= {g.name: "no moments; by importance" for g in rest}
    for group in groups:
        walk.keep(group, np.asarray(kept[group.name]))
        result.chosen.append(Chosen(group.name, group.size, group.kept, how[group.name]))


def _gram(found: Gaussian) -> Float[np.ndarray, "b k k"]:
    return found.covariance + found.mean[:, :, None] * found.mean[:, None]


def _evidence(walk: Walk, tap: Tap, group: Group, found: Gaussian) -> Evidence:
    """What a tap says of the channels; those of a window count as further positions."""
    weights, units, gram = kernel_of(walk, tap), units_of(walk, tap, group), _gram(found)
    blocks, channels = units.shape
    window = gram.shape[1] // channels
    gram = np.einsum("bipjp->bij", gram.reshape(blocks, *(channels, window) * 2)) / window
    return Evidence(gram, weights, units)


def _solve(
    walk: Walk, site: Site, found: Gaussian | None, names: Mapping[int, str]
) -> Solved | str | None:
    """Solves for a site's weights; why it does not, or None where all is as it was."""
    form, full = form_of(walk, site.step, site.side), _full_form(walk, site)
    dense = walk.parameter(site.weight, dense=True)
    kept = _kept(walk, site, form, full)
    if kept is None:
        return None
    if found is None:
        return "no moments of what it reads"
    if not is_even(walk, site) or not admits_any(walk, site):
        return "its outputs are scaled from position to position, or its norm is none of its own"
    scale = slopes(walk, site)
    small = walk.parameter(site.weight, dense=False)
    start = np.asarray(kernel(form, on_host(small)), np.float64) * scale[:, None]
    sums = _sums(found, np.asarray(kernel(full, on_host(dense)), np.float64), kept, scale)
    mean = find_offset(walk, site, form, 1, of_norms=True)  # then it is that of the small network
    offset = mean or find_offset(walk, site, form, 1)
    solved, shifts = ridge(sums, start, SHRINKAGE, offset is not None)
    if mean is not None:
        solved, shifts = _with_variance(sums, np.asarray(solved))
    solved, shifts = agreed((solved, shifts), walk.mesh)
    spread = float((sums.square - sums.target**2).sum()) or 1.0
    before = squared_error(sums, start, np.zeros_like(shifts)) / spread
    after = squared_error(sums, solved, shifts) / spread
    write_weight(walk, site, form, scale, solved)
    if offset is not None:
        write_offset(walk, site, form, offset, shifts)
    paths, nan = tuple(names[n] for n in site.leaves), float("nan")
    taken_up = " + ".join(names[n] for n in offset.leaves) if offset else None
    return Solved(paths, start.shape[1], 0, SHRINKAGE, before, after, nan, nan, taken_up)


def _with_variance(
    sums: Moments, weights: Float[np.ndarray, "b k o"]
) -> tuple[Float[np.ndarray, "b k o"], Float[np.ndarray, "b o"]]:
    """Weights and offsets, each output with the mean and variance that it is to have."""
    covariance = sums.gram - sums.rows[:, :, None] * sums.rows[:, None]
    found = np.einsum("bko,bkl,blo->bo", weights, covariance, weights, optimize=True)
    wanted = np.maximum(sums.square - sums.target**2, 0.0)
    gain = np.sqrt(wanted * reciprocal(np.maximum(found, wanted / MOST_GAIN**2)))
    weights = weights * gain[:, None]
    return weights, sums.target - np.einsum("bk,bko->bo", sums.rows, weights)


def _full_form(walk: Walk, site: Site) -> NormalForm:
    """The normal form at full widths."""
    widths, walk.resized.widths = walk.resized.widths, {}
    try:
        return form_of(walk, site.step, site.side)
    finally:
        walk.resized.widths = widths


_Kept = tuple[Int[np.ndarray, " b"], Int[np.ndarray, "b k"], Int[np.ndarray, "b o"]]


def _kept(walk: Walk, site: Site, form: NormalForm, full: NormalForm) -> _Kept | None:
    """Which products, rows and outputs of a kernel are left; None where all its rows are."""
    shape = walk.parameter(site.weight, dense=True).shape
    index = jnp.arange(math.prod(shape)).reshape(shape)
    whole = np.asarray(kernel(full, index))
    left = np.asarray(kernel(form, walk.restricted(index, site.weight)))
    if left.shape[1] == whole.shape[1]:
        return None
    b, k, o = (x.reshape(left.shape) for x in _at(whole, left))
    return b[:, 0, 0], k[:, :, 0], o[:, 0]


def _at(whole: Int[np.ndarray, "B K O"], left: Int[np.ndarray, "b k o"]) -> tuple[np.ndarray, ...]:
    order = np.argsort(whole, axis=None)
    return np.unravel_index(order[left.reshape(-1)], whole.shape)


def _sums(
    found: Gaussian, dense: Float[np.ndarray, "B K O"], kept: _Kept, scale: Float[np.ndarray, "b o"]
) -> Moments:
    """Moments of the rows that are left, and of what the dense kernel makes of all of them."""
    gram, parts = _gram(found), []
    for b, k, o, s in zip(*kept, scale, strict=True):
        weights = dense[b][:, o] * s
        square = np.einsum("ko,kl,lo->o", weights, gram[b], weights, optimize=True)
        cross, target = gram[b][k] @ weights, found.mean[b] @ weights
        parts.append((found.mean[b, k], gram[b][np.ix_(k, k)], cross, target, square))
    return Moments(1.0, *(np.stack(x) for x in zip(*parts, strict=True)))
