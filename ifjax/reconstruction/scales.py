"""Scales of channels folded into the weights that read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from ifjax.activations.moments import kernel
from ifjax.graph.facts.sites import Site
from ifjax.parallel.hosts import on_host
from ifjax.reconstruction.bearing import Reader, per_channel
from ifjax.reconstruction.equivariance import line_of
from ifjax.reconstruction.leaves import admits_any, write_weight
from ifjax.reconstruction.taps import Tap, form_of, units_of
from ifjax.reconstruction.walk import Walk
from ifjax.structure import axis_arrays
from ifjax.structure.structure import Group


def fold_scales(walk: Walk, group: Group, readers: Sequence[Reader]) -> None:
    """Gives weights the scales of what they read, which become the same for all channels.

    Args:
      walk: at its beginning; its leaves change.
      group: whose channels are scaled.
      readers: all contractions that read scaled channels.

    Raises:
      ValueError: for a weight that is read elsewhere too, unscaled or with another scale, or that
        cannot be any; and for a scale that has several numbers per channel, or that is not of one
        number where its leaves are.
    """
    numbers = {n for reader in readers for n, _ in reader.factors}
    before = {n: _vector(walk, group, n, dense=True) for n in sorted(numbers)}
    changed: set[int] = set()
    for n in before:
        _neutralise(walk, group, n, changed)
    ratio = {n: s / _vector(walk, group, n, dense=False) for n, s in before.items()}
    for n, scale in ratio.items():
        after = _vector(walk, group, n, dense=False)
        if not (np.isfinite(scale).all() and np.ptp(after) == 0):
            raise ValueError(
                f"{_paths(walk, n)}: expected a scale that is the same for all channels of "
                f"{group.name} where its leaves are, got one that is not"
            )
    places = {reader.place for reader in readers}
    done: dict[tuple[int, ...], np.ndarray] = {}
    for reader in readers:
        site = _site(walk, group, reader, places)
        parts = [ratio[n] ** power for n, power in reader.factors]
        scale = np.prod(parts, 0)
        if site.leaves in done:
            if not np.array_equal(done[site.leaves], scale):
                _refuse(walk, group, reader, "another scale than elsewhere")
            continue
        done[site.leaves] = scale
        _scale_weight(walk, group, site, scale)


def _vector(walk: Walk, group: Group, number: int, dense: bool) -> Float[np.ndarray, " n"]:
    """A scale, one number per channel."""
    found = per_channel(walk, number, group.name, dense)
    if found is None:
        raise ValueError(
            f"{_paths(walk, number)}: expected a scale of one number for each channel of "
            f"{group.name}, got several; what multiplies single entries cannot be folded into the "
            "weights that read them"
        )
    return found


def _neutralise(walk: Walk, group: Group, number: int, changed: set[int]) -> None:
    """Makes the leaves of a scale the same for all channels, and the scale one where it can be."""
    leaves = [n for n in walk.program.origins.get(number, ()) if group.name in walk.atoms(n)]
    own = [n for n in leaves if n not in changed]
    changed.update(leaves)

    def value(leaf: int, x: float) -> float:
        there = np.array(on_host(walk.full[leaf]))
        walk.write(leaf, _of_channels(walk, group, leaf, there, lambda part: np.full_like(part, x)))
        return float(_vector(walk, group, number, dense=False)[0])

    for leaf in own:
        there = np.asarray(on_host(walk.full[leaf]), np.float64)
        axes = enumerate(walk.axes(leaf))
        rows = [r for axis, e in axes for r in axis_arrays.rows(there, axis, e, group.name)]
        at = float(np.mean([row.mean() for row in rows]))
        if len(leaves) == 1:
            nought = value(leaf, 0.0)
            slope = value(leaf, 1.0) - nought
            if slope and np.isfinite((1 - nought) / slope):
                at = (1 - nought) / slope
        value(leaf, at)


def _of_channels(
    walk: Walk, group: Group, leaf: int, x: np.ndarray, function: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """A leaf with a function applied to what it has of the channels, and the rest as it is."""
    for axis, e in enumerate(walk.axes(leaf)):
        x = axis_arrays.transform(x, axis, e, group.name, lambda part, _: function(part))
    return x


def _site(walk: Walk, group: Group, reader: Reader, places: set[int]) -> Site:
    """The site of a reader, where all that reads its weight reads it scaled."""
    units = [*walk.sites.units, *(unit for units in walk.sites.tied for unit in units)]
    sites = {site.place: site for unit in units for site in unit.sites}
    step = walk.program.steps[reader.place]
    weight = step.inputs[1 - reader.side]
    for leaf in walk.program.origins.get(weight, ()):
        if not places.issuperset(walk.sites.reads[leaf]):
            _refuse(walk, group, reader, "no scale, or none that can be folded, elsewhere")
    site = sites.get(reader.place)
    if site is None or not admits_any(walk, site):
        where = line_of(step)
        raise ValueError(
            f"{_paths(walk, weight)}: expected a weight that can take the scale of the channels of "
            f"{group.name} that it reads at {where}; its entries are not those of one leaf, or it "
            "is read in a form that no weight is written in (experts dealt out, joined vectors): "
            "multiply the scale into it by hand"
        )
    return site


def _refuse(walk: Walk, group: Group, reader: Reader, what: str) -> None:
    """Raises ValueError for a weight that is shared."""
    step = walk.program.steps[reader.place]
    weight = step.inputs[1 - reader.side]
    reads = [n for k in walk.program.origins[weight] for n in walk.sites.reads[k]]
    others = [walk.program.steps[n] for n in sorted({*reads} - {reader.place})]
    where = ", ".join(dict.fromkeys(map(line_of, others)))
    scales = ", ".join(_paths(walk, n) for n, _ in reader.factors)
    size = sum(walk.leaves[k].size for k in walk.program.origins[weight])
    raise ValueError(
        f"{_paths(walk, weight)}: it reads channels of {group.name} that {scales} scales, at "
        f"{line_of(step)}, and has {what}, at {where}, so that the scale "
        f"cannot be folded into it; give the two uses a leaf each ({size} weights more; of a "
        "decoder with a tied embedding ifjax.models.untie_decoder does)"
    )


def _scale_weight(walk: Walk, group: Group, site: Site, scale: np.ndarray) -> None:
    """Multiplies the rows of a weight, one for each channel that it reads."""
    form = form_of(walk, site.step, site.side)
    rows = np.asarray(kernel(form, on_host(walk.parameter(site.weight, dense=False))), np.float64)
    units = units_of(walk, Tap(site.place, site.step, site.side, site), group)
    units = np.repeat(units, rows.shape[1] // units.shape[1], 1)  # windows of a convolution
    rows = rows * np.where(units >= 0, scale[units], 1)[:, :, None]
    write_weight(walk, site, form, np.ones(rows.shape[::2]), rows)


def _paths(walk: Walk, number: int) -> str:
    """The leaves that a value is made of."""
    leaves = zip(walk.full, walk.resized.structure.leaves, strict=True)
    names = {n: leaf.path for n, leaf in leaves}
    found = [names[n] for n in sorted(walk.program.origins.get(number, ()))]
    return " * ".join(found) or "a constant"
