"""One unit: the weights that bring its end back to what the dense network has there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ifjax.activations.moments import (
    Moments,
    NormalForm,
    added,
    kernel,
    moments,
    parts_of,
    reading,
    results,
    summed,
)
from ifjax.graph.facts.sites import Site, Unit
from ifjax.jaxprs import compat
from ifjax.parallel.hosts import agreed, on_host
from ifjax.reconstruction import precision
from ifjax.reconstruction.along import pull
from ifjax.reconstruction.leaves import Offset, admits_any, find_offset, write_offset, write_weight
from ifjax.reconstruction.ridge import Known, best_gain, fit
from ifjax.reconstruction.taps import form_of, is_even, slopes
from ifjax.reconstruction.walk import Walk
from ifjax.tree import promoted


@dataclasses.dataclass(frozen=True)
class Solved:
    """What became of a unit.

    Attributes:
      sites: paths of the leaves that were solved for; of the offset where it was alone.
      rows: how many numbers the kernels read at a position.
      positions: how many positions there were.
      shrinkage: the one that was chosen; infinite where the weights stay as they are, or behind a
        norm that times one number, for none gave a smaller error on inputs that were held out.
      before: error at the end of the unit with the weights as they were, behind a norm over neurons
        that are cut times the number that fits best; relative to the deviation of the dense values.
      after: error after; not the least one where products keep their variance (`by_moments`).
      held_before: the same on the inputs that were held out for choosing the shrinkage.
      held_after: with what was solved without them.
      offset: path of the bias or offset that took up the means, or of several that are joined.
    """

    sites: tuple[str, ...]
    rows: int
    positions: int
    shrinkage: float
    before: float
    after: float
    held_before: float
    held_after: float
    offset: str | None = None


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What is solved for at a unit.

    Attributes:
      at: a contraction, in the form of whose results targets are.
      form: its normal form.
      sites: the contractions that are solved for; none where all are given, and the offset is not.
      forms: their normal forms.
      shapes: of their weights.
      scales: what their outputs are multiplied by.
      starts: their kernels, scaled.
      offset: leaves that take up the means.
      stays: whether sums stay on the device.
      is_normed: whether what is read went through a norm, or the like, over neurons that are cut.
    """

    at: Site
    form: NormalForm
    sites: tuple[Site, ...]
    forms: tuple[NormalForm, ...]
    shapes: tuple[tuple[int, ...], ...]
    scales: tuple[Float[np.ndarray, "B O"], ...]
    starts: tuple[Float[np.ndarray, "B _ O"], ...]
    offset: Offset | None
    stays: bool = False
    is_normed: bool = False


@dataclasses.dataclass
class _Shared:
    """What units have in common that read the same rows.

    Attributes:
      last: stop of the last of them.
      sums: Gram matrices of batches that are not held out, and of those that are.
      known: what `fit` makes of them.
    """

    last: int
    sums: dict[bool, Moments] = dataclasses.field(default_factory=dict)
    known: Known = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Sums:
    """Moments of batches that are not held out and of those that are; the dense deviation."""

    parts: dict[bool, Moments] = dataclasses.field(default_factory=dict)
    spread: float = 0.0


def solve(walk: Walk, unit: Unit, held: Sequence[bool], names: dict[int, str]) -> Solved | None:
    """Solves for the weights of a unit, and for an offset on its path.

    Args:
      walk: at the unit's stop, with both functions' values.
      unit: the unit.
      held: by batch, whether it is held out for choosing the shrinkage.
      names: paths of the leaves.

    Returns:
      What became of it; None where its sites cannot be solved for together.
    """
    problem = _posed(walk, unit, 1)
    if problem is None:
        return None
    stays = precision.stays(sum(x.shape[1] for x in problem.starts))
    seen = set[str]().union(*(walk.atoms(site.input) for site in problem.sites))
    is_normed = any(not e.group.exact and e.group.name in seen & walk.normed for e in walk.events)
    problem, sums = dataclasses.replace(problem, stays=stays, is_normed=is_normed), _Sums()
    shared = _shared(walk, problem)
    _gather(walk, problem, unit, held, sums, shared)
    for key in [key for key, x in walk.shared.items() if x.last <= unit.stop]:
        del walk.shared[key]
    return _finished(walk, problem, held, sums, names, shared.known if shared else None)


def solve_tied(
    walk: Walk,
    units: Sequence[Unit],
    held: Sequence[bool],
    names: dict[int, str],
    ahead: Callable[[Unit], Walk],
) -> Solved | None:
    """Solves for weights that several units share, on what the dense function computes.

    The compressed function's own values at one use depend on the weights at the others; in their
    place stand the dense values of the neurons that are kept.

    Args:
      walk: for the leaves.
      units: the one with most sites first.
      held: by batch, whether it is held out.
      names: paths of the leaves.
      ahead: gives a walk that has come to a unit's stop, unit after unit in the program's order.

    Returns:
      What became of them; None where their outputs are scaled differently.
    """
    problem = _posed(walk, units[0], len(units))
    if problem is None or not all(_is_alike(walk, problem, unit) for unit in units):
        return None
    sums = _Sums()
    for unit in sorted(units, key=lambda unit: unit.stop):
        _gather(ahead(unit), problem, unit, held, sums)
    return _finished(walk, problem, held, sums, names)


def _posed(walk: Walk, unit: Unit, uses: int) -> _Problem | None:
    sites = tuple({s.leaves: s for s in _agreeing(walk, unit)}.values())  # one of every leaf
    is_given = all(walk.fixed.intersection(s.leaves) for s in unit.sites)
    at = next((s for s in sites or unit.sites if sites or (is_given and is_even(walk, s))), None)
    if at is None:
        return None
    form = form_of(walk, at.step, at.side)
    offset = find_offset(walk, at, form, uses)
    if not sites and offset is None:
        return None
    forms = tuple(form_of(walk, s.step, s.side) for s in sites)
    weights = [walk.parameter(s.weight, dense=False) for s in sites]
    scales = tuple(slopes(walk, s) for s in sites)
    starts = tuple(
        np.asarray(kernel(f, on_host(w)), np.float64) * s[:, None]
        for f, w, s in zip(forms, weights, scales, strict=True)
    )
    shapes = tuple(tuple(w.shape) for w in weights)
    return _Problem(at, form, sites, forms, shapes, scales, starts, offset)


def _is_alike(walk: Walk, problem: _Problem, unit: Unit) -> bool:
    """Whether a unit's sites are some of the problem's, in the same form and scale."""
    pairs = _paired(problem, unit)
    if len(pairs) != len(unit.sites) or len(_agreeing(walk, unit)) != len(unit.sites):
        return False
    return all(
        form_of(walk, site.step, site.side) == problem.forms[i]
        and np.allclose(slopes(walk, site), problem.scales[i], rtol=1e-5)
        for i, site in pairs
    )


def _paired(problem: _Problem, unit: Unit) -> list[tuple[int, Site]]:
    """Which of the problem's sites the sites of a unit are."""
    leaves = [s.leaves for s in problem.sites]
    return [(leaves.index(s.leaves), s) for s in unit.sites if s.leaves in leaves]


def _shared(walk: Walk, problem: _Problem) -> _Shared | None:
    """What other units that read the same have found, or will find; None where there are none.

    The same are equal rows of one value at one width.
    """

    def rows_of(sites: Sequence[Site]) -> tuple[Hashable, ...]:
        shapes = (compat.shape_of(s.step.equation.invars[1 - s.side]) for s in sites)
        forms = (form_of(walk, s.step, s.side) for s in sites)
        return tuple(map(reading, forms, shapes))

    inputs = [s.input for s in problem.sites]
    alike = [u for u in walk.sites.units if [s.input for s in u.sites] == inputs]
    own = rows_of(problem.sites) if len(alike) > 1 else ()
    stops = [u.stop for u in alike if len(alike) > 1 and rows_of(u.sites) == own]
    if len(stops) < 2:
        return None
    cut = {e.group.name for e in walk.events}
    widths = tuple(len(cut & walk.atoms(n)) for n in inputs)
    return walk.shared.setdefault((*inputs, own, widths), _Shared(max(stops)))


def _gather(
    walk: Walk,
    problem: _Problem,
    unit: Unit,
    held: Sequence[bool],
    sums: _Sums,
    shared: _Shared | None = None,
) -> None:
    """Adds the moments at a unit; Gram matrices that it shares are those of the first unit."""
    pairs = _paired(problem, unit)
    index, sites = [i for i, _ in pairs], [s for _, s in pairs]
    forms = tuple(problem.forms[i] for i in index)
    shapes = tuple(problem.shapes[i] for i in index)
    add = summed if problem.stays else added
    is_first = shared is not None and not shared.sums
    for batch, is_held in enumerate(held):
        target, dense = _target(walk, unit, sites, problem.at, batch)
        sums.spread += float(jnp.var(dense)) * dense.size
        for x, t in _parts(walk, sites, forms, shapes, batch, target):
            if shared is not None and is_first:
                part = moments(forms, shapes, x, None)
                shared.sums[is_held] = add(shared.sums.get(is_held), part)
            part = moments(forms, shapes, x, t, gram=shared is None)
            part = _embedded(part, problem, index) if shared is None else part
            sums.parts[is_held] = add(sums.parts.get(is_held), part)
    if shared is not None:
        for is_held, part in sums.parts.items():
            known = shared.sums[is_held]
            sums.parts[is_held] = part._replace(rows=known.rows, gram=known.gram)


def _embedded(part: Moments, problem: _Problem, index: Sequence[int]) -> Moments:
    """Moments of a unit's sites as the problem's: what a leaf reads in several places adds up."""
    if list(index) == list(range(len(problem.sites))):
        return part
    bounds = np.cumsum([0, *(x.shape[1] for x in problem.starts)])
    at = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in index])
    b, k, o = (problem.starts[0].shape[0], int(bounds[-1]), problem.starts[0].shape[2])
    gram, rows, cross = np.zeros((b, k, k)), np.zeros((b, k)), np.zeros((b, k, o))
    np.add.at(gram, (slice(None), at[:, None], at), on_host(part.gram))  # type: ignore
    np.add.at(rows, (slice(None), at), on_host(part.rows))  # type: ignore
    np.add.at(cross, (slice(None), at), on_host(part.cross))  # type: ignore
    return part._replace(gram=gram, rows=rows, cross=cross)


def _finished(
    walk: Walk,
    problem: _Problem,
    held: Sequence[bool],
    sums: _Sums,
    names: dict[int, str],
    known: Known | None = None,
) -> Solved:
    """Solves, and writes the weights and the offset."""
    training, test, spread = sums.parts[False], sums.parts.get(True), sums.spread or 1.0
    every = (x for part in sums.parts.values() for x in (part.gram, part.cross))
    walk.check_finite(problem.at.step, spread, *every)
    b, _, o = training.cross.shape
    start = np.concatenate([np.zeros((b, 0, o)), *problem.starts], 1)
    gain = 1.0
    if problem.is_normed:
        found = best_gain(training, test, start, problem.offset is not None)
        gain = agreed(found, walk.mesh)
        start = start * gain
    found = agreed(fit(training, test, start, problem.offset is not None, known), walk.mesh)
    solved = on_host(found.weights, np.float64)
    parts = np.split(solved, np.cumsum([x.shape[1] for x in problem.starts]), 1)
    for i, (site, part) in enumerate(zip(problem.sites, parts, strict=False)):
        if found.shrinkage < math.inf or gain != 1:
            write_weight(walk, site, problem.forms[i], problem.scales[i], part)
    offset = None if found.offsets is None else problem.offset
    if offset is not None:
        shifts = on_host(found.offsets, np.float64)
        write_offset(walk, problem.at, problem.form, offset, shifts)
    taken_up = tuple(names[n] for n in offset.leaves) if offset else ()
    share = sum(held) / len(held) or 1.0
    return Solved(
        tuple(names[leaf] for s in problem.sites for leaf in s.leaves) or taken_up,
        start.shape[1],
        sum(int(part.count) for part in sums.parts.values()),
        found.shrinkage,
        found.before / spread,
        found.after / spread,
        found.held_before / (share * spread),
        found.held_after / (share * spread),
        " + ".join(taken_up) or None,
    )


def _agreeing(walk: Walk, unit: Unit) -> tuple[Site, ...]:
    """The sites that can be solved for together: the same positions and outputs, in one order."""
    found: list[Site] = []
    pattern = None
    shape = walk.shape(unit.end)
    entries = np.arange(math.prod(shape)).reshape(shape) if len(unit.sites) > 1 else None
    for site in unit.sites:
        if walk.fixed.intersection((*site.leaves, *site.gains)):
            continue
        if not is_even(walk, site) or not admits_any(walk, site):
            continue
        if len(unit.sites) > 1:
            form = form_of(walk, site.step, site.side)
            arranged = results(form, pull(walk, entries, site.path))
            pattern = arranged if pattern is None else pattern
            if not np.array_equal(arranged, pattern):
                continue
        found.append(site)
    return tuple(found)


def _target(
    walk: Walk, unit: Unit, sites: Sequence[Site], at: Site, batch: int
) -> tuple[Float[Array, "B N O"], Array]:
    """What the sites are to give at the end of the unit, in normal form; and the dense end."""
    dense = walk.restricted(walk.value(batch, unit.end, True), unit.end)
    solved = {s.place for s in sites}
    outputs = {}
    for site in unit.sites:
        if site.place in solved:
            dtype = compat.dtype_of(site.step.equation.outvars[0])  # the path may convert
            outputs[site.output] = jnp.zeros(walk.shape(site.output), dtype)
        else:
            operands = [walk.value(batch, n, False) for n in site.step.inputs]
            [outputs[site.output]] = walk.resized.rebuild(site.step, operands)
    rest = promoted(dense) - promoted(walk.rest(batch, unit, outputs))
    form = form_of(walk, at.step, at.side)
    return results(form, pull(walk, rest, at.path)), dense


def _parts(
    walk: Walk,
    sites: Sequence[Site],
    forms: Sequence[NormalForm],
    shapes: Sequence[tuple[int, ...]],
    batch: int,
    target: Float[Array, "B N O"],
) -> Iterator[tuple[tuple[Array, ...], Float[Array, "B n O"]]]:
    """What is read of a batch, and the target: a few examples at a time where patches are large."""
    inputs = tuple(walk.value(batch, s.input, False) for s in sites)
    every = zip(sites, forms, inputs, shapes, strict=True)
    counts = [parts_of(f, x.shape, w, walk.shape(s.output)) for s, f, x, w in every]
    count = max(counts, default=1)
    axes = [f.numbers.lhs_spec[0] if f.window else -1 for f in forms]
    if count == 1 or -1 in axes:
        yield inputs, target
        return
    for i in range(count):
        cut = []
        for x, a in zip(inputs, axes, strict=True):
            size = x.shape[a] // count
            cut.append(jax.lax.slice_in_dim(x, i * size, (i + 1) * size, axis=a))
        n = target.shape[1] // count
        yield tuple(cut), target[:, i * n : (i + 1) * n]
