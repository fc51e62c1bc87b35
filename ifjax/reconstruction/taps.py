"""What the consumers of a group read, and which neurons of it stand at which column."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from ifjax.activations.moments import NormalForm, channel_moments, kernel, normal_form, results
from ifjax.graph.facts.sites import Site
from ifjax.jaxprs.program import Step
from ifjax.jaxprs.traits import contraction_of, traits_of
from ifjax.namespace import AnyArray
from ifjax.parallel.hosts import on_host
from ifjax.reconstruction import precision
from ifjax.reconstruction.along import pull, push
from ifjax.reconstruction.ragged import (
    deals_out,
    form_of_kernels,
    is_ragged,
    ragged_gram,
    units_dealt,
)
from ifjax.reconstruction.walk import Walk
from ifjax.structure import axis as ex
from ifjax.structure.axis_arrays import positions
from ifjax.structure.structure import Group


@dataclasses.dataclass(frozen=True)
class Tap:
    """A contraction with a weight that reads neurons of a group.

    Attributes:
      place: of the contraction.
      step: the contraction.
      side: which operand is the activation.
      site: where it can be solved for.
    """

    place: int
    step: Step
    side: int
    site: Site | None

    @property
    def input(self) -> int:
        """Number of the activation."""
        return self.step.inputs[self.side]


def taps_of(walk: Walk, names: Sequence[str]) -> dict[str, list[Tap]]:
    """The taps of every group.

    Args:
      walk: of the function.
      names: of the groups.

    Returns:
      Taps by name, in the order of the function.
    """
    sites = {s.place: s for unit in walk.sites.units for s in unit.sites}
    found: dict[str, list[Tap]] = defaultdict(list)
    for place, step in enumerate(walk.program.steps):
        if traits_of(step.equation).kind != "contraction" or sum(step.data[:2]) != 1:
            continue
        ragged = step.equation.primitive.name == "ragged_dot_general"
        if ragged and not is_ragged(step):
            continue
        side = step.data[:2].index(True)
        if side == 1 and step.equation.primitive.name == "conv_general_dilated":
            continue
        axes = walk.axes(step.inputs[side])
        contracted = contraction_of(step.equation).contracted[side]
        held = {name for i in contracted for name in ex.atoms(axes[i])}
        for name in held.intersection(names):
            if ragged and not deals_out(walk, step, walk.resized.structure.group[name]):
                continue
            found[name].append(Tap(place, step, side, sites.get(place)))
    return dict(found)


def form_of(walk: Walk, step: Step, side: int) -> NormalForm:
    """The normal form of a contraction at the present widths."""
    if is_ragged(step):
        return form_of_kernels(step)
    groups = step.equation.params.get("feature_group_count", 1)
    if isinstance(step.note, int) and groups != 1:
        groups = walk.resized.size(step.note)
    return normal_form(step.equation, side, groups)


def units_of(walk: Walk, tap: Tap, group: Group) -> Int[np.ndarray, "B K"]:
    """Which neuron of a group every channel that is read belongs to, -1 for none.

    Neurons are numbered through all entries of the group's batch.
    """
    axes, sizes = walk.axes(tap.input), walk.sizes
    if is_ragged(tap.step):
        return units_dealt(walk, tap.step, group)
    found = contraction_of(tap.step.equation)
    contracted, batch = found.contracted[tap.side], found.batch[tap.side]

    def along(name: str) -> np.ndarray:
        parts = [positions(axes[i], name, sizes) for i in (*batch, *contracted)]
        whole = functools.reduce(lambda a, b: np.maximum(a[..., None], b), parts)
        form = form_of(walk, tap.step, tap.side)
        blocks = form.groups if form.window else math.prod(len(p) for p in parts[: len(batch)])
        return whole.reshape(blocks, -1)

    neurons = along(group.name)
    entry = np.zeros_like(neurons)
    for name, n in zip(group.along, group.batch, strict=True):
        entry = entry * sizes.get(name, n) + along(name)
    return np.where(neurons >= 0, entry * group.size + neurons, -1)


def entries_of(walk: Walk, group: Group) -> tuple[int, ...]:
    """The present sizes of the axes that batch a group."""
    return tuple(walk.sizes.get(a, n) for a, n in zip(group.along, group.batch, strict=True))


def gram_of(walk: Walk, tap: Tap, dense: bool) -> Float[AnyArray, "B K K"]:
    """The Gram matrix of the channels that a tap reads, a mean over positions.

    It stays on the device where `ifjax.reconstruction.precision` says so.
    """
    if is_ragged(tap.step):
        return ragged_gram(walk, tap.step)
    form = form_of(walk, tap.step, tap.side)
    total, count = 0.0, 0
    for batch in range(len(walk.dense)):
        x = walk.value(batch, tap.input, dense)
        found = channel_moments(form, x)
        if not precision.stays(found.shape[1]):
            found = on_host(found, np.float64)
        total = total + found
        count += x.size // (found.shape[0] * found.shape[1])
    walk.check_finite(tap.step, total)
    return total / max(count, 1)


def kernel_of(walk: Walk, tap: Tap) -> Float[np.ndarray, "B K O"]:
    """The weights of a tap by channel, each output scaled as it is at the end of its path."""
    form = form_of(walk, tap.step, tap.side)
    w = walk.parameter(tap.step.inputs[1 - tap.side], dense=False)
    found = np.asarray(kernel(form, on_host(w)), np.float64)
    if tap.site is not None:
        found = found * slopes(walk, tap.site)[:, None, :]
    if form.window:  # K is channels x window: the window goes to the outputs
        blocks, k, o = found.shape
        into = w.shape[form.numbers.rhs_spec[1]]
        found = found.reshape(blocks, into, k // into * o)
    return found


def slopes(walk: Walk, site: Site) -> Float[np.ndarray, "B O"]:
    """What the outputs of a site are multiplied by along its path."""
    return _slopes(walk, site).mean(1)


def is_even(walk: Walk, site: Site) -> bool:
    """Whether an output is multiplied by the same number at every position."""
    found = _slopes(walk, site)
    return bool(np.ptp(found, axis=1).max(initial=0) <= 1e-5 * np.abs(found).max(initial=0))


def _slopes(walk: Walk, site: Site) -> Float[np.ndarray, "B N O"]:
    """The slopes at every position; N is 1 where no step of the path has any but 1."""
    form, shape = form_of(walk, site.step, site.side), walk.shape(site.output)
    steps = {walk.program.steps[place].equation.primitive.name for place, _ in site.path}
    if steps.isdisjoint(("mul", "div", "sub", "neg")):
        y = jax.eval_shape(
            functools.partial(results, form), jax.ShapeDtypeStruct(shape, np.float32)
        )
        return np.ones((y.shape[0], 1, y.shape[2]))
    end = push(walk, np.ones(shape), site.path)
    return results(form, pull(walk, end, site.path))
