"""The kernels of a product that deals rows out, each solved for on the rows that it sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ifjax.activations.moments import Moments, added, kernel
from ifjax.graph.facts.sites import Site
from ifjax.graph.facts.views import weight_views
from ifjax.jaxprs.evaluate import bind
from ifjax.jaxprs.program import Step
from ifjax.jaxprs.traits import contraction_of
from ifjax.parallel.hosts import agreed, on_host
from ifjax.reconstruction.leaves import write_weight
from ifjax.reconstruction.ragged import bounds_of, form_of_kernels, kept_of
from ifjax.reconstruction.ridge import fit
from ifjax.reconstruction.solve import Solved
from ifjax.reconstruction.walk import Walk


def solve_ragged(
    walk: Walk, place: int, held: Sequence[bool], names: Mapping[int, str]
) -> Solved | None:
    """Solves for the kernels of a product that deals rows out.

    Args:
      walk: which has come to its place.
      place: of the product.
      held: by batch, whether it is held out for choosing the shrinkage.
      names: paths of the leaves.

    Returns:
      What became of it; None where the kernels are not entries of leaves of their own.
    """
    step = walk.program.steps[place]
    sites, number = walk.sites, step.inputs[1]
    views = weight_views(walk.program, step, 1)
    if isinstance(views, str):
        return None
    site = Site(place, step, 0, views, (), step.outputs[0])
    if site.gains or any(len(sites.reads[leaf]) != 1 for leaf in site.leaves):
        return None
    if walk.fixed.intersection(site.leaves):
        return None
    form = form_of_kernels(step)
    start = np.asarray(kernel(form, on_host(walk.parameter(number, dense=False))), np.float64)
    parts: dict[bool, Moments] = {}
    spread = 0.0
    for batch, is_held in enumerate(held):
        found, deviation = _moments(walk, step, batch)
        parts[is_held] = added(parts.get(is_held), found)
        spread += deviation
    training, test = parts[False], parts.get(True)
    every = (x for sums in parts.values() for x in (sums.gram, sums.cross))
    walk.check_finite(step, spread, *every)
    fitted = agreed(fit(training, test, start, intercept=False), walk.mesh)
    if fitted.shrinkage < math.inf:
        write_weight(walk, site, form, np.ones(start.shape[::2]), on_host(fitted.weights))
    share = (sum(held) / len(held) or 1.0) * (spread or 1.0)
    return Solved(
        tuple(names[leaf] for leaf in site.leaves),
        start.shape[1],
        sum(int(x.count) for x in parts.values()),
        fitted.shrinkage,
        fitted.before / (spread or 1.0),
        fitted.after / (spread or 1.0),
        fitted.held_before / share,
        fitted.held_after / share,
    )


def _moments(walk: Walk, step: Step, batch: int) -> tuple[Moments, float]:
    """Moments of a batch by kernel, and how much the dense result deviates from its mean."""
    bounds = bounds_of(walk, step, batch)
    operands = [walk.value(batch, n, True) for n in step.inputs]
    [y] = bind(step, operands)
    found = contraction_of(step.equation)
    x = kept_of(walk, step.inputs[0], operands[0], bounds)
    x = x.transpose(*found.free[0], *found.contracted[0])
    t = kept_of(walk, step.outputs[0], y, bounds)[: bounds[-1]]
    pairs = list(zip(np.split(x, bounds[1:])[:-1], np.split(t, bounds[1:-1]), strict=True))
    sums = (
        [p.sum(0) for p, _ in pairs],
        [p.T @ p for p, _ in pairs],
        [p.T @ q for p, q in pairs],
        [q.sum(0) for _, q in pairs],
        [np.square(q).sum(0) for _, q in pairs],
    )
    return Moments(np.float64(len(t)), *map(np.stack, sums)), float(t.var()) * t.size
