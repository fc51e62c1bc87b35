"""Products that deal rows out to kernels, tokens to experts: every kernel on the rows that it sees.

The small network may deal its rows out otherwise than the dense one. What a kernel is solved for is
therefore what the dense network computes, from the dense values of the neurons that are kept. Which
of these a row has depends on its kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ifjax.activations.moments import NormalForm
from ifjax.jaxprs.program import Step
from ifjax.jaxprs.traits import contraction_of
from ifjax.parallel.hosts import on_host
from ifjax.reconstruction.events import merge
from ifjax.reconstruction.walk import Walk
from ifjax.structure import axis as ex
from ifjax.structure.axis_arrays import positions
from ifjax.structure.batch_view import mentioned
from ifjax.structure.structure import Group


def is_ragged(step: Step) -> bool:
    """Whether it is a matrix of data whose rows are dealt out to kernels of parameters."""
    if step.equation.primitive.name != "ragged_dot_general" or step.data[:2] != (True, False):
        return False
    found = contraction_of(step.equation)
    matrix = len(found.contracted[0]) == len(found.free[0]) == len(found.free[1]) == 1
    rows = step.equation.params["ragged_dot_dimension_numbers"].lhs_ragged_dimensions
    return matrix and not found.batch[0] and tuple(rows) == found.free[0] and len(found.groups) == 1


def deals_out(walk: Walk, step: Step, group: Group) -> bool:
    """Whether a group's neurons differ from kernel to kernel, or are the same for all of them."""
    [axis] = contraction_of(step.equation).groups
    return group.along in ((), tuple(mentioned(walk.axes(step.inputs[1])[axis])))


def form_of_kernels(step: Step) -> NormalForm:
    """The normal form of the kernels, side by side."""
    found = contraction_of(step.equation)
    return NormalForm(0, ((), found.groups), found.contracted, found.free)


def bounds_of(walk: Walk, step: Step, batch: int) -> Int[np.ndarray, " ends"]:
    """Where the rows of each kernel begin, and where those of the last one end."""
    sizes = on_host(walk.value(batch, step.inputs[2], True))
    return np.concatenate([[0], np.cumsum(sizes)])


def kept_of(
    walk: Walk, number: int, x: Any, bounds: Int[np.ndarray, " ends"]
) -> Float[np.ndarray, "N K"]:
    """A dense matrix with the neurons that are kept, each row with those of its kernel."""
    axes = walk.axes(number)
    held = [*map(set, map(mentioned, axes))]
    for event in walk.events:
        group = event.group
        if not any(group.name in h for h in held):
            continue
        if not group.batch or all(any(a in h for h in held) for a in group.along):
            x = merge(x, axes, event)
            continue
        [at] = [i for i, h in enumerate(held) if group.name in h]
        parts = np.split(np.moveaxis(on_host(x), at, -1), bounds[1:])
        index = event.index.reshape(-1, event.index.shape[-1])
        parts = [p[..., i] for p, i in zip(parts, [*index, index[-1]], strict=True)]
        x = np.moveaxis(np.concatenate(parts), -1, at)
    x = on_host(x)
    return x if x.dtype == np.float64 else x.astype(np.float32)


def units_dealt(walk: Walk, step: Step, group: Group) -> Int[np.ndarray, "E K"]:
    """Which neuron of a group every column that a kernel reads belongs to, as in `units_of`."""
    found = contraction_of(step.equation)
    neurons = positions(walk.axes(step.inputs[0])[found.contracted[0][0]], group.name, walk.sizes)
    kernels = np.arange(walk.shape(step.inputs[1])[found.groups[0]])
    entry = kernels[:, None] * bool(group.along)
    return np.where(neurons >= 0, entry * group.size + neurons, -1)


def ragged_gram(walk: Walk, step: Step) -> Float[np.ndarray, "E K K"]:
    """The Gram matrix of what every kernel reads in the dense network, a mean over all rows."""
    total, count = 0.0, 0
    for batch in range(len(walk.dense)):
        bounds, found = bounds_of(walk, step, batch), contraction_of(step.equation)
        x = kept_of(walk, step.inputs[0], walk.value(batch, step.inputs[0], True), bounds)
        x = x.transpose(*found.free[0], *found.contracted[0])
        parts = np.split(x, bounds[1:])[:-1]
        total = total + np.stack([(p.T @ p).astype(np.float64) for p in parts])
        count += len(x)
    return np.asarray(total) / max(count, 1)


def ragged_stops(walk: Walk) -> dict[int, Step]:
    """The products by place that deal rows out and read something that is cut."""
    cut = walk.resized.structure.widths.keys()
    every = {p: walk.program.steps[p] for p, _ in walk.sites.follows}
    return {
        p: step
        for p, step in every.items()
        if is_ragged(step)
        and any(not cut.isdisjoint(ex.atoms(e)) for e in walk.axes(step.inputs[0]))
    }
