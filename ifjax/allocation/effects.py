"""What cutting one tie of groups alone does to the network's outputs.

The dense network is walked once, from the inputs on. Where a tie is read first a branch leaves the
walk for every number of neurons: the groups are cut there, what reads them is solved for as
`ifjax.compress` does, products of queries and keys are restored, and the rest of the network is
evaluated as it is. Only experts that tokens are dealt out to are cut without being made up for:
`compress` restores more of those than is counted here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ifjax.activations.progress import shown_progress
from ifjax.allocation.curve import Curve, falling
from ifjax.allocation.ties import Tie
from ifjax.graph.facts.sites import Unit
from ifjax.jaxprs.evaluate import bind
from ifjax.reconstruction.calibration import HELD
from ifjax.reconstruction.journal import Journal
from ifjax.reconstruction.products import Product, products_of
from ifjax.reconstruction.select import Evidence, Timing, choose, evidence, timing
from ifjax.reconstruction.solve import solve, solve_tied
from ifjax.reconstruction.sweep import Ahead, Result, dense_evidence, restore, shared_units
from ifjax.reconstruction.taps import Tap, taps_of
from ifjax.reconstruction.walk import Walk
from ifjax.structure import axis as ex
from ifjax.structure.structure import Group

Compare = Callable[[PyTree, PyTree], float]
Given = Callable[[Tie, int, Sequence[str]], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Where a tie is cut and what is solved for.

    Attributes:
      tie: the tie.
      groups: those of the walked function, the ones that batch others last.
      widths: by name of these, which of the tie's widths is theirs.
      units: what reads them.
      begin: the place where the branch leaves the dense walk.
    """

    tie: Tie
    groups: tuple[Group, ...]
    widths: Mapping[str, int]
    units: tuple[Unit, ...]
    begin: int


@dataclasses.dataclass(frozen=True)
class _Known:
    """What is the same for all branches: taps, timing, evidence of early groups, direction."""

    taps: Mapping[str, Sequence[Tap]]
    products: Mapping[str, Product]
    when: Timing
    early: Mapping[str, Evidence]
    direction: str

    def stop(self, name: str) -> int | None:
        """The place where the neurons of a group are chosen, if they are chosen late."""
        if name in self.products:
            return self.products[name].place
        for place, groups in self.when.late.items():
            if any(g.name == name for g in groups):
                return place
        return None


def measure(
    walk: Walk,
    ties: Sequence[Tie],
    copies: Mapping[str, Sequence[str]],
    held: Sequence[bool],
    levels: int,
    compare: Compare,
    given: Given,
    direction: str,
) -> dict[str, Curve]:
    """Measures the effect of every tie at several widths.

    Args:
      walk: at its beginning.
      ties: what is cut by one number each.
      copies: by name of a group, the names of its groups of the walked function.
      held: by batch, whether outputs are compared on it; the others are what is solved on.
      levels: at how many widths less than all neurons a tie is measured, spread evenly.
      compare: how far outputs have moved.
      given: from a tie, a rung, and the groups of the walked function that no contraction with a
        weight reads, to the neurons that are kept of these; and of others that are not to be chosen
        by what can be reconstructed.
      direction: in which the others are chosen.

    Returns:
      A curve by tie.

    Raises:
      ValueError: where a cut makes outputs that are not finite.
    """
    order = sorted(range(len(held)), key=lambda i: held[i])
    for values in (walk.dense, walk.small):
        values[:] = [values[i] for i in order]
    training = len(held) - sum(held)
    known = _known(
        walk, [name for t in ties for g in t.groups for name in copies[g.name]], direction
    )
    plans = [_plan(walk, tie, copies, known) for tie in ties]
    last = _last(walk, {})
    rungs = {tie.name: _measured(tie, levels) for tie in ties}
    curves: dict[str, Curve] = {}
    with shown_progress(1 + sum(map(len, rungs.values())), "allocate", "cuts") as done:
        dense = _outputs(_branch(walk), 0, training)
        done()
        at = 0
        for plan in sorted(plans, key=lambda plan: plan.begin):
            walk.run(range(at, plan.begin), {}, last)
            at = plan.begin
            tie, memo, effects = plan.tie, dict[str, Evidence](), []
            for rung in rungs[tie.name]:
                small = _cut(walk, plan, rung, known, memo, training, given)
                moved = [compare(a, b) for a, b in zip(dense, small, strict=True)]
                effects.append(float(np.mean(moved)))
                done()
            curves[tie.name] = _curve(tie, rungs[tie.name], effects)
    return curves


def _curve(tie: Tie, rungs: Sequence[int], effects: Sequence[float]) -> Curve:
    if not np.isfinite(effects).all():
        raise ValueError(
            f"{tie.name}: cutting it makes outputs that are not finite on the calibration inputs; "
            "exclude it, or raise its floor"
        )
    return falling([*rungs, tie.top], [*effects, 0.0]) if tie.is_whole else falling(rungs, effects)


def _measured(tie: Tie, levels: int) -> list[int]:
    """The rungs where a tie is measured: from the lowest on; all neurons have no effect."""
    count = min(levels, tie.top if tie.is_whole else tie.top + 1)
    steps = count if tie.is_whole else max(count - 1, 1)
    return sorted({math.floor(i * tie.top / steps + 0.5) for i in range(count)})


def _known(walk: Walk, names: Sequence[str], direction: str) -> _Known:
    groups = [walk.resized.structure.group[name] for name in names]
    taps = taps_of(walk, names)
    products = products_of(walk, [g for g in groups if g.name not in taps and g.exact])
    when = timing(groups, taps, products)
    early = dense_evidence(walk, when.early, taps) if when.early else {}
    return _Known(taps, products, when, early, direction)


def _plan(walk: Walk, tie: Tie, copies: Mapping[str, Sequence[str]], known: _Known) -> _Plan:
    structure = walk.resized.structure
    widths = {name: i for i, g in enumerate(tie.groups) for name in copies[g.name]}
    groups = structure.in_order([structure.group[name] for name in widths])
    places = {t.place for g in groups for t in known.taps.get(g.name, ())}
    units = tuple(u for u in walk.sites.units if places.intersection(s.place for s in u.sites))
    shared = [unit for units in shared_units(walk, set(widths)) for unit in units]
    starts = [u.places[0] for u in (*units, *shared)]
    early = {g.name for g in groups if known.stop(g.name) is None}
    starts += [stop for g in groups if (stop := known.stop(g.name)) is not None]
    if early:
        starts.append(_first(walk, early))
    return _Plan(tie, tuple(groups), widths, units, min(starts))


def _first(walk: Walk, names: set[str]) -> int:
    """The place of the first value that holds a group."""
    inputs = {n for values in walk.dense for n in values}
    if any(names.intersection(ex.atoms(e)) for n in inputs for e in walk.axes(n)):
        return 0
    for place, step in enumerate(walk.program.steps):
        if any(step.data) and any(
            names.intersection(ex.atoms(e)) for n in step.outputs for e in walk.axes(n)
        ):
            return place
    return len(walk.program.steps)


def _last(walk: Walk, deferred: Mapping[int, float]) -> dict[int, float]:
    """Where values are used for the last time; outputs are kept."""
    return walk.last_use(deferred) | dict.fromkeys(walk.program.outputs, math.inf)


def _branch(walk: Walk) -> Walk:
    """A walk that goes on from the same place by itself, with nothing cut so far."""
    branch = dataclasses.replace(
        walk,
        resized=dataclasses.replace(walk.resized, widths={}, parts={}),
        leaves=dict(walk.full),
        dense=[dict(values) for values in walk.dense],
        small=[dict(values) for values in walk.dense],
        events=[],
        changed=set(),
        dirty=set(),
        memo={True: walk.memo[True], False: {}},
    )
    for fact in ("_variables", "_owner", "_pinned", "normed"):  # the same for all branches
        branch.__dict__[fact] = getattr(walk, fact)
    return branch


def _cut(
    walk: Walk,
    plan: _Plan,
    rung: int,
    known: _Known,
    memo: dict[str, Evidence],
    training: int,
    given: Given,
) -> list[PyTree]:
    """The outputs on the batches that are held out, where a tie is cut to a rung."""
    branch = _branch(walk)
    kept = plan.tie.ladder[rung]
    cut = [dataclasses.replace(g, kept=kept[plan.widths[g.name]]) for g in plan.groups]
    groups = {g.name: g for g in cut if g.kept < g.size}
    stops = {name: known.stop(name) for name in groups}
    blind = [g.name for g in known.when.blind if g.name in groups]
    indices = given(plan.tie, rung, blind)
    for name, group in groups.items():
        if name in indices:
            branch.keep(group, indices[name])
        elif stops[name] is None:
            branch.keep(group, choose(branch, group, known.early[name], known.direction))
    names = dict(zip(branch.leaves, (x.path for x in walk.resized.structure.leaves), strict=True))
    held = [i % HELD == HELD - 1 for i in range(training)]
    if training > 1:
        held[-1] = held[-1] or not any(held)
    for units in shared_units(branch, set(groups)):
        solve_tied(branch, units, held, names, Ahead(branch, units, plan.begin))
    deferred = {p: u.stop + 0.5 for u in plan.units for p in u.places}
    last = _last(branch, deferred)
    products = {name: known.products[name] for name in groups if name in known.products}
    late = {name: stop for name, stop in stops.items() if stop is not None and name not in indices}
    late |= {name: product.place for name, product in products.items()}
    at = plan.begin
    for stop in sorted({*late.values(), *(u.stop for u in plan.units)}):
        for name in [name for name, place in late.items() if place == stop]:
            branch.run(range(at, stop), deferred, last)
            at = stop
            if name in products:
                product = dataclasses.replace(products[name], group=groups[name])
                restore(branch, product, known.direction, held, names, Journal(), Result())
                continue
            found = memo.get(name) or evidence(branch, groups[name], known.taps[name], dense=False)
            if len(groups) == 1:  # nothing was cut before: the same at every rung
                memo[name] = found
            branch.keep(groups[name], choose(branch, groups[name], found, known.direction))
        for unit in plan.units:
            if unit.stop == stop:
                branch.run(range(at, stop + 1), deferred, last)
                at = stop + 1
                solve(branch, unit, held, names)
                branch.settle(unit, last)
    return _outputs(branch, at, training)


def _outputs(branch: Walk, at: int, training: int) -> list[PyTree]:
    """The outputs on the batches that are held out, evaluated from a place on."""
    last = _last(branch, {})
    steps = [(p, s) for p, s in enumerate(branch.program.steps) if p >= at and any(s.data)]
    found = []
    for batch in range(training, len(branch.small)):
        branch.small[batch] = values = dict(branch.small[batch])
        for place, step in steps:
            operands = [branch.value(batch, n, False) for n in step.inputs]
            apply = branch.resized.rebuild if branch.events else bind
            values |= zip(step.outputs, apply(step, operands), strict=True)
            _free(values, (*step.inputs, *step.outputs), last, place)
        outputs = [branch.value(batch, n, False) for n in branch.program.outputs]
        found.append(jax.tree.unflatten(branch.resized.analysis.out_tree, outputs))
    return found


def _free(
    values: dict[int, Any], numbers: Iterable[int], last: Mapping[int, float], place: int
) -> None:
    for n in numbers:
        if last.get(n, -1) <= place:
            values.pop(n, None)
