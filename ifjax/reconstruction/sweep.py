"""From the input to the output: choose, cut, solve."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ifjax.activations.progress import shown_progress
from ifjax.graph.facts.sites import Unit
from ifjax.reconstruction.journal import Journal
from ifjax.reconstruction.products import (
    Product,
    chosen_of_product,
    mix,
    product_grams,
    products_by_place,
    products_of,
    restored,
)
from ifjax.reconstruction.ragged import ragged_stops
from ifjax.reconstruction.ragged_solve import solve_ragged
from ifjax.reconstruction.select import Evidence, Timing, choose, combined, evidence, timing
from ifjax.reconstruction.solve import Solved, solve, solve_tied
from ifjax.reconstruction.taps import Tap, entries_of, taps_of
from ifjax.reconstruction.walk import Walk
from ifjax.structure import axis as ex
from ifjax.structure.structure import Group


@dataclasses.dataclass(frozen=True)
class Chosen:
    """How the neurons of a group were chosen.

    Attributes:
      group: its name.
      size: neurons before.
      kept: neurons that are left.
      how: on what they were chosen.
    """

    group: str
    size: int
    kept: int
    how: str


@dataclasses.dataclass
class Result:
    """What a sweep has done.

    Attributes:
      chosen: by group.
      solved: by unit, in order.
      follows: contractions whose weights were not solved for: path or source line, and why.
    """

    chosen: list[Chosen] = dataclasses.field(default_factory=list)
    solved: list[Solved] = dataclasses.field(default_factory=list)
    follows: list[tuple[str, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Given:
    """What is decided before the sweep.

    Attributes:
      kept: by group name, the neurons that are kept.
      matrices: of groups whose neurons are merged, what takes dense values to merged ones.
      leaves: where neurons are merged, all small leaves in the order of the tree; else none.
      direction: in which the neurons of the other groups are chosen.
    """

    kept: Mapping[str, np.ndarray]
    matrices: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    leaves: Sequence[Any] = ()
    direction: str = "backward"


def sweep(
    walk: Walk,
    given: Given,
    blind: Callable[[Sequence[Group]], Mapping[str, np.ndarray]],
    held: Sequence[bool],
    journal: Journal,
) -> Result:
    """Cuts every group of the walk's structure and solves for what consumes them.

    Args:
      walk: at its beginning.
      given: neurons that are kept; the others' are chosen by what can be reconstructed.
      blind: chooses for groups that no contraction with a weight reads.
      held: by batch, whether it is held out for choosing shrinkages.
      journal: of what was done before, by a run that was killed.

    Returns:
      What was done; the small leaves are those of the walk.
    """
    structure = walk.resized.structure
    names = {n: leaf.path for n, leaf in zip(walk.leaves, structure.leaves, strict=True)}
    result = Result()
    groups = structure.in_order()
    open_groups = [g for g in groups if g.name not in given.kept]
    taps = taps_of(walk, [g.name for g in groups])
    products = products_of(walk, [g for g in groups if g.name not in taps and g.exact])
    when = timing(open_groups, taps, products)
    _choose_early(walk, groups, given, when, taps, blind, journal, result)
    _solve_tied(walk, held, names, journal, result)
    units = {unit.stop: unit for unit in walk.sites.units}
    deferred = {p: unit.stop + 0.5 for unit in units.values() for p in unit.places}
    last = walk.last_use(deferred)
    at_place = products_by_place(products)
    dealt = dict.fromkeys(ragged_stops(walk), False)
    before = {*when.late, *at_place, *dealt}
    stops = sorted({*before, *units})
    at = 0
    with shown_progress(len(stops), "compress", "stops") as done:
        for stop in stops:
            if stop in before:
                walk.run(range(at, stop), deferred, last)
                at = stop
            for group in when.late.get(stop, ()):
                _choose_late(walk, group, taps[group.name], given.direction, journal, result)
            for product in at_place.get(stop, ()):
                restore(walk, product, given.direction, held, names, journal, result)
            if stop in dealt:
                make = functools.partial(solve_ragged, walk, stop, held, names)
                solved = journal.solve(f"ragged {stop}", walk, names, make)
                result.solved += [solved] if solved else []
                dealt[stop] = solved is not None
            if stop in units:
                walk.run(range(at, stop + 1), deferred, last)
                at = stop + 1
                _correct(walk, units[stop], held, names, journal, result)
                walk.settle(units[stop], last)
            done()
    add_follows(walk, names, result, [place for place, is_solved in dealt.items() if is_solved])
    return result


def add_follows(
    walk: Walk, names: Mapping[int, str], result: Result, solved: Sequence[int] = ()
) -> None:
    """Notes the contractions that are no sites, and leaves that were given.

    Args:
      walk: of the function.
      names: paths of the leaves.
      result: where it is noted.
      solved: places of those that were solved for all the same.
    """
    for place, reason in walk.sites.follows:
        step = walk.program.steps[place]
        leaves = {names[n] for k in step.inputs for n in walk.program.origins.get(k, ())}
        if place not in solved:
            result.follows.append((", ".join(sorted(leaves)), reason))
    result.follows += [(names[n], "it was given") for n in sorted(walk.fixed)]


def restore(
    walk: Walk,
    product: Product,
    direction: str,
    held: Sequence[bool],
    names: dict[int, str],
    journal: Journal,
    result: Result,
) -> None:
    """Cuts the dimensions of a product of activations, and corrects those that are left.

    Args:
      walk: at the product.
      product: the product; its group may be cut already.
      direction: whether dimensions are removed or taken one after the other.
      held: by batch, whether it is held out for choosing the shrinkage.
      names: paths of the leaves.
      journal: of what was done before.
      result: where it is noted.
    """
    group, index = product.group, None
    is_open = group.name not in walk.sizes
    if not is_open and not product.sides:
        return
    grams = product_grams(walk, product, held)
    if is_open:
        found = journal.remember(
            f"choose {group.name}",
            functools.partial(chosen_of_product, walk, product, direction, grams),
        )
        index = found[group.name].reshape(-1, group.kept)
        result.chosen.append(Chosen(group.name, group.size, group.kept, "what it multiplies"))
    if product.sides:
        matrices = journal.remember(
            f"restore {group.name}",
            functools.partial(restored, product, grams, index, is_split=any(held)),
        )
        mix(walk, product, matrices, index)
        rows, positions, *numbers = matrices["numbers"].tolist()
        paths = tuple(names[n] for side in product.sides for n in side.leaves)
        result.solved.append(Solved(paths, int(rows), int(positions), *numbers))
    if index is not None:
        walk.keep(group, index.reshape(*entries_of(walk, group), group.kept))


class _Kept(dict[int, Any]):
    """Dense values of the neurons that are kept, in the place of the compressed function's."""

    def __init__(self, walk: Walk, dense: Mapping[int, Any]) -> None:
        super().__init__()
        self.walk, self.dense = walk, dense

    def __missing__(self, number: int) -> Any:
        return self.walk.restricted(self.dense[number], number)


class Ahead:
    """A walk of the dense function alone, which comes to the stop of one unit after another."""

    def __init__(self, walk: Walk, units: Sequence[Unit], place: int = 0) -> None:
        """From the place to which the walk has come, before the first of the units."""
        self.walk = walk.alone(lambda dense: _Kept(walk, dense))
        self.skip = dict.fromkeys(range(len(walk.program.steps)), 0.0)
        self.last = walk.last_use({p: u.stop + 0.5 for u in units for p in u.places})
        self.place = place

    def __call__(self, unit: Unit) -> Walk:
        """The walk at the unit's stop."""
        self.walk.run(range(self.place, unit.stop + 1), self.skip, self.last)
        self.place = unit.stop + 1
        return self.walk


def _choose_late(
    walk: Walk,
    group: Group,
    taps: Sequence[Tap],
    direction: str,
    journal: Journal,
    result: Result,
) -> None:
    """Cuts a group whose consumers read one value, by what the compressed network has there."""

    def make() -> dict[str, np.ndarray]:
        found = evidence(walk, group, taps, dense=False)
        return {group.name: choose(walk, group, found, direction)}

    walk.keep(group, journal.remember(f"choose {group.name}", make)[group.name])
    how = "what its consumers read"
    result.chosen.append(Chosen(group.name, group.size, group.kept, how))


def shared_units(walk: Walk, cut: set[str]) -> list[tuple[Unit, ...]]:
    """Units that share weights, of which one reads or gives something that is cut.

    Args:
      walk: of the function.
      cut: names of the groups.

    Returns:
      The units, those that share weights together.
    """
    found = []
    for units in walk.sites.tied:
        read = {n for unit in units for site in unit.sites for n in (site.input, unit.end)}
        if not cut.isdisjoint(name for n in read for e in walk.axes(n) for name in ex.atoms(e)):
            found.append(units)
    return found


def _solve_tied(
    walk: Walk, held: Sequence[bool], names: dict[int, str], journal: Journal, result: Result
) -> None:
    """Solves for weights that are read several times, where they read something that is cut."""
    for units in shared_units(walk, set(walk.sizes)):
        solved = journal.solve(
            f"tied {units[0].stop}",
            walk,
            names,
            lambda units=units: solve_tied(walk, units, held, names, Ahead(walk, units)),
        )
        if solved is None:
            leaves = {n for unit in units for s in unit.sites for n in s.leaves}
            free = leaves - walk.fixed
            reason = "read several times, scaled differently"
            if free != leaves:
                reason = "read several times, together with what was given"
            if free:
                result.follows.append((", ".join(sorted(names[n] for n in free)), reason))
        else:
            result.solved.append(solved)


def _correct(
    walk: Walk,
    unit: Unit,
    held: Sequence[bool],
    names: dict[int, str],
    journal: Journal,
    result: Result,
) -> None:
    """Solves for a unit where what it reads is no longer the dense network's, data or leaves."""
    read = {n for p in unit.places for n in walk.program.steps[p].inputs}
    made = {n for p in unit.places for n in walk.program.steps[p].outputs}
    leaves = {leaf for n in read for leaf in walk.program.origins.get(n, ())}
    if walk.dirty & (read - made) or walk.fixed & leaves:
        key = f"unit {unit.stop}"
        solved = journal.solve(key, walk, names, lambda: solve(walk, unit, held, names))
        if solved is None:
            for site in unit.sites:
                if walk.fixed.intersection((*site.leaves, *site.gains)):
                    continue
                paths = ", ".join(names[n] for n in site.leaves)
                reason = "its outputs are scaled from position to position"
                if site.gains:
                    reason = "its norm is none that a factor of its own makes up for"
                result.follows.append((paths, reason))
        else:
            result.solved.append(solved)


def _choose_early(
    walk: Walk,
    groups: Sequence[Group],
    given: Given,
    when: Timing,
    taps: Mapping[str, Sequence[Tap]],
    blind: Callable[[Sequence[Group]], Mapping[str, np.ndarray]],
    journal: Journal,
    result: Result,
) -> None:
    """Cuts the groups whose neurons are given, or chosen on the dense network."""
    known = dict(given.kept)
    how = dict.fromkeys(given.kept, "importance")
    how |= dict.fromkeys(given.matrices, "importance; the others merged into them")
    if when.blind:
        known |= blind(when.blind)
        how |= {g.name: "no consumer; by importance" for g in when.blind}
    if when.early:

        def make() -> dict[str, np.ndarray]:
            parts = dense_evidence(walk, when.early, taps)
            return {g.name: choose(walk, g, parts[g.name], given.direction) for g in when.early}

        found = journal.remember("early", make)
        for group in when.early:
            known[group.name] = found[group.name]
            how[group.name] = f"{len(taps[group.name])} consumers, dense"
    for group in groups:
        if group.name in known:
            walk.keep(group, np.asarray(known[group.name]), given.matrices.get(group.name))
            result.chosen.append(Chosen(group.name, group.size, group.kept, how[group.name]))
    for number, leaf in zip(walk.leaves, given.leaves, strict=False):
        walk.write(number, leaf)


def dense_evidence(
    walk: Walk, groups: Sequence[Group], taps: Mapping[str, Sequence[Tap]]
) -> dict[str, Evidence]:
    """What says how much the neurons of groups matter that are read in several places.

    Args:
      walk: at its beginning; it stays there.
      groups: the groups.
      taps: of each.

    Returns:
      The evidence by group, of one pass of the dense function.
    """
    wanted = {}
    for group in groups:
        for tap in taps[group.name]:
            wanted.setdefault(tap.place, []).append((group, tap))
    ahead = walk.alone()
    everything = dict.fromkeys(range(len(walk.program.steps)), 0.0)
    last = walk.last_use({})
    parts: dict[str, list[Any]] = {g.name: [] for g in groups}
    done = 0
    for place in sorted(wanted):
        ahead.run(range(done, place), everything, last)
        done = place
        for group, tap in wanted[place]:
            parts[group.name].append(evidence(ahead, group, [tap], dense=True))
    return {g.name: combined(parts[g.name], g) for g in groups}
