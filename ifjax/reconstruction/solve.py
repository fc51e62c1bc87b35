"""One unit: the weights that bring its end back to what the dense network has there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ifjax.activations.moments import (
    Moments,
    NormalForm,
    added,
    kernel,
    moments,
    parts_of,
    results,
    weight,
)
from ifjax.graph.facts.sites import Path, Site, Unit, View, view_of
from ifjax.reconstruction.ridge import SHRINKAGES, ridge, squared_error
from ifjax.reconstruction.taps import form_of, is_even, slopes
from ifjax.reconstruction.walk import Walk
from ifjax.tree import promoted

TINY = 1e-6  # of the largest slope: below it an output hardly depends on the weight


@dataclasses.dataclass(frozen=True)
class Solved:
    """What became of a unit.

    Attributes:
      sites: paths of the leaves that were solved for.
      rows: how many numbers the kernels read at a position.
      positions: how many positions there were.
      shrinkage: the one that was chosen.
      before: error at the end of the unit before, relative to the deviation of the dense values.
      after: error after.
      held_before: the same on the inputs that were held out for choosing the shrinkage.
      held_after: with what was solved without them.
      offset: path of the bias or offset that took up the means.
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
class _Offset:
    """A leaf that is added along the path: from the leaf to the end of the unit."""

    leaf: int
    path: Path


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What is solved for at a unit.

    Attributes:
      sites: the contractions.
      forms: their normal forms.
      shapes: of their weights.
      scales: what their outputs are multiplied by.
      starts: their kernels, scaled.
      offset: a leaf that takes up the means.
    """

    sites: tuple[Site, ...]
    forms: tuple[NormalForm, ...]
    shapes: tuple[tuple[int, ...], ...]
    scales: tuple[Float[np.ndarray, "B O"], ...]
    starts: tuple[Float[np.ndarray, "B _ O"], ...]
    offset: _Offset | None


@dataclasses.dataclass
class _Sums:
    """Moments of batches that are not held out and of those that are; the dense deviation."""

    training: Moments | None = None
    test: Moments | None = None
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
    sums = _Sums()
    _gather(walk, problem, unit, held, sums)
    return _finished(walk, problem, held, sums, names)


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
    sites = tuple({s.view.leaf: s for s in _agreeing(walk, unit)}.values())  # one of every leaf
    if not sites:
        return None
    forms = tuple(form_of(walk, s.step, s.side) for s in sites)
    weights = [walk.parameter(s.weight, dense=False) for s in sites]
    scales = tuple(slopes(walk, s) for s in sites)
    starts = tuple(
        np.asarray(kernel(f, w), np.float64) * s[:, None]
        for f, w, s in zip(forms, weights, scales, strict=True)
    )
    shapes = tuple(tuple(w.shape) for w in weights)
    return _Problem(sites, forms, shapes, scales, starts, _offset(walk, sites[0], forms[0], uses))


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
    leaves = [s.view.leaf for s in problem.sites]
    return [(leaves.index(s.view.leaf), s) for s in unit.sites if s.view.leaf in leaves]


def _gather(walk: Walk, problem: _Problem, unit: Unit, held: Sequence[bool], sums: _Sums) -> None:
    """Adds the moments at a unit."""
    pairs = _paired(problem, unit)
    index, sites = [i for i, _ in pairs], [s for _, s in pairs]
    forms = [problem.forms[i] for i in index]
    shapes = [problem.shapes[i] for i in index]
    for batch, is_held in enumerate(held):
        target, dense = _target(walk, unit, sites, batch)
        sums.spread += float(jnp.var(dense)) * dense.size
        for part in _parts(walk, sites, forms, shapes, batch, target):
            whole = _embedded(part, problem, index)
            if is_held:
                sums.test = added(sums.test, whole)
            else:
                sums.training = added(sums.training, whole)


def _embedded(part: Moments, problem: _Problem, index: Sequence[int]) -> Moments:
    """Moments of a unit's sites as the problem's: what a leaf reads in several places adds up."""
    if list(index) == list(range(len(problem.sites))):
        return part
    bounds = np.cumsum([0, *(x.shape[1] for x in problem.starts)])
    at = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in index])
    b, k, o = (problem.starts[0].shape[0], int(bounds[-1]), problem.starts[0].shape[2])
    gram, rows, cross = np.zeros((b, k, k)), np.zeros((b, k)), np.zeros((b, k, o))
    np.add.at(gram, (slice(None), at[:, None], at), np.asarray(part.gram))  # type: ignore
    np.add.at(rows, (slice(None), at), np.asarray(part.rows))  # type: ignore
    np.add.at(cross, (slice(None), at), np.asarray(part.cross))  # type: ignore
    return part._replace(gram=gram, rows=rows, cross=cross)


def _finished(
    walk: Walk, problem: _Problem, held: Sequence[bool], sums: _Sums, names: dict[int, str]
) -> Solved:
    """Solves, and writes the weights and the offset."""
    training, test, spread = sums.training, sums.test, sums.spread or 1.0
    assert training is not None
    walk.check_finite(problem.sites[0].step, spread, training.gram, training.cross)
    start, offset = np.concatenate(problem.starts, 1), problem.offset
    whole = training if test is None else added(test, training)
    best, errors = _best_shrinkage(training, test, start, offset is not None)
    solved, shifts = ridge(whole, start, best, offset is not None)
    before = squared_error(whole, start, np.zeros_like(shifts))
    after = squared_error(whole, solved, shifts)
    parts = np.split(solved, np.cumsum([x.shape[1] for x in problem.starts])[:-1], 1)
    for i, (site, part) in enumerate(zip(problem.sites, parts, strict=True)):
        _write(walk, site, problem.forms[i], problem.scales[i], part)
    if offset is not None:
        _shift(walk, problem.sites[0], problem.forms[0], offset, shifts)
    share = sum(held) / len(held) or 1.0
    return Solved(
        tuple(names[s.view.leaf] for s in problem.sites),
        start.shape[1],
        int(whole.count),
        best,
        before / spread,
        after / spread,
        errors[0] / (share * spread),
        errors[1] / (share * spread),
        names[offset.leaf] if offset else None,
    )


def _agreeing(walk: Walk, unit: Unit) -> tuple[Site, ...]:
    """The sites that can be solved for together: the same positions and outputs, in one order."""
    found: list[Site] = []
    pattern = None
    shape = walk.shape(unit.end)
    entries = np.arange(math.prod(shape)).reshape(shape)
    for site in unit.sites:
        if not is_even(walk, site):
            continue
        form = form_of(walk, site.step, site.side)
        arranged = results(form, walk.pull(entries, site.path))
        if pattern is None:
            pattern = arranged
        elif not np.array_equal(arranged, pattern):
            continue
        found.append(site)
    return tuple(found)


def _target(
    walk: Walk, unit: Unit, sites: Sequence[Site], batch: int
) -> tuple[Float[Array, "B N O"], Array]:
    """What the sites are to give at the end of the unit, in normal form; and the dense end."""
    dense = walk.restricted(walk.dense[batch][unit.end], unit.end)
    solved = {s.place for s in sites}
    outputs = {}
    for site in unit.sites:
        if site.place in solved:
            shape = walk.shape(site.output)
            outputs[site.output] = jnp.zeros(shape, dense.dtype)
        else:
            operands = [walk.value(batch, n, False) for n in site.step.inputs]
            [outputs[site.output]] = walk.resized.rebuild(site.step, operands)
    rest = promoted(dense) - promoted(walk.rest(batch, unit, outputs))
    form = form_of(walk, sites[0].step, sites[0].side)
    return results(form, walk.pull(rest, sites[0].path)), dense


def _parts(
    walk: Walk,
    sites: Sequence[Site],
    forms: Sequence[NormalForm],
    shapes: Sequence[tuple[int, ...]],
    batch: int,
    target: Float[Array, "B N O"],
) -> Iterator[Moments]:
    """Moments of a batch, of a few examples at a time where patches are large."""
    forms, shapes = tuple(forms), tuple(shapes)
    inputs = tuple(walk.value(batch, s.input, False) for s in sites)
    every = zip(sites, forms, inputs, shapes, strict=True)
    count = max(parts_of(f, x.shape, w, walk.shape(s.output)) for s, f, x, w in every)
    axes = [f.numbers.lhs_spec[0] if f.window else -1 for f in forms]
    if count == 1 or -1 in axes:
        yield moments(forms, shapes, inputs, target)
        return
    for i in range(count):
        cut = []
        for x, a in zip(inputs, axes, strict=True):
            size = x.shape[a] // count
            cut.append(jax.lax.slice_in_dim(x, i * size, (i + 1) * size, axis=a))
        n = target.shape[1] // count
        yield moments(forms, shapes, tuple(cut), target[:, i * n : (i + 1) * n])


def _best_shrinkage(
    training: Moments, test: Moments | None, start: np.ndarray, intercept: bool
) -> tuple[float, tuple[float, float]]:
    """The shrinkage with the least error on what was held out; that error before and after."""
    if test is None:
        return 0.01, (float("nan"), float("nan"))
    errors = {}
    for shrinkage in SHRINKAGES:
        errors[shrinkage] = squared_error(test, *ridge(training, start, shrinkage, intercept))
    best = min(errors, key=errors.__getitem__)
    none = np.zeros(start.shape[::2])
    return best, (squared_error(test, start, none), errors[best])


def _write(walk: Walk, site: Site, form: NormalForm, scale: np.ndarray, solved: np.ndarray) -> None:
    """Puts solved weights into the leaf that the weight is made of."""
    w = walk.parameter(site.weight, dense=False)
    tiny = np.abs(scale) <= TINY * np.abs(scale).max(initial=0)
    old = np.asarray(kernel(form, w), np.float64)
    new = np.where(tiny[:, None], old, solved / np.where(tiny, 1, scale)[:, None])
    change = np.asarray(weight(form, new - old, tuple(w.shape)))
    leaf = np.array(walk.leaves[site.view.leaf])
    shape = leaf.shape
    at = walk.push(np.arange(leaf.size).reshape(shape), site.view.spine, scaled=False)
    factor = walk.push(np.ones(shape), site.view.spine)
    flat = leaf.astype(np.float64).reshape(-1)
    used = np.abs(factor) > TINY * np.abs(factor).max(initial=0)
    flat[at[used]] += change[used] / factor[used]
    walk.write(site.view.leaf, jnp.asarray(flat.reshape(shape), leaf.dtype))


def _offset(walk: Walk, site: Site, form: NormalForm, uses: int) -> _Offset | None:
    """The last leaf that is added on the path with a value per output: a bias or norm's offset.

    It is read as often as the weights are, and nowhere else.
    """
    norms = {m.path for g in walk.resized.structure.groups for m in g.members if m.role == "mean"}
    norms |= {n.mean for n in walk.resized.structure.norms}
    paths = [leaf.path for leaf in walk.resized.structure.leaves]
    inputs = walk.program.inputs
    for i in reversed(range(len(site.path))):
        place, k = site.path[i]
        step = walk.program.steps[place]
        if step.equation.primitive.name not in ("add", "add_any", "sub") or step.data[1 - k]:
            continue
        number = step.inputs[1 - k]
        found = view_of(walk.program, walk.sites.made, walk.sites.origins, number, spread=True)
        if not isinstance(found, View) or len(walk.sites.reads[found.leaf]) != uses:
            continue
        leaf = walk.leaves[found.leaf]
        if paths[inputs.index(found.leaf)] in norms or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        offset = _Offset(found.leaf, (*found.spine, (place, 1 - k), *site.path[i + 1 :]))
        if _carries_shifts(walk, site, form, offset):
            return offset
    return None


def _carries_shifts(walk: Walk, site: Site, form: NormalForm, offset: _Offset) -> bool:
    """Whether a leaf can shift every output of a site on its own, the same at all positions."""
    at, slope = _entries(walk, site, form, offset)
    outputs = at.shape[0] * at.shape[2]
    return bool(
        (at == at[:, :1]).all()
        and len(np.unique(at[:, 0])) == outputs
        and np.ptp(slope, axis=1).max(initial=0) <= 1e-5 * np.abs(slope).max(initial=0)
    )


def _entries(
    walk: Walk, site: Site, form: NormalForm, offset: _Offset
) -> tuple[Int[np.ndarray, "B N O"], Float[np.ndarray, "B N O"]]:
    """Which entry of the leaf shifts each result of a site, and by how much."""
    shape = walk.leaves[offset.leaf].shape
    index = np.arange(math.prod(shape)).reshape(shape)
    at = walk.push(index, offset.path, scaled=False)
    slope = walk.push(np.ones(shape), offset.path)
    return tuple(results(form, walk.pull(x, site.path)) for x in (at, slope))  # type: ignore


def _shift(
    walk: Walk, site: Site, form: NormalForm, offset: _Offset, shifts: Float[np.ndarray, "B O"]
) -> None:
    """Adds what shifts the outputs to the leaf."""
    at, slope = _entries(walk, site, form, offset)
    at, slope = at[:, 0], slope.mean(1)
    used = np.abs(slope) > TINY * np.abs(slope).max(initial=0)
    leaf = np.asarray(walk.leaves[offset.leaf])
    flat = leaf.astype(np.float64).reshape(-1)
    flat[at[used]] += shifts[used] / slope[used]
    walk.write(offset.leaf, jnp.asarray(flat.reshape(leaf.shape), leaf.dtype))
