"""A walk that holds inputs alone: all else is computed from them when it is read."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ifjax.graph.facts.sites import Unit
from ifjax.reconstruction.segments import Job, Key
from ifjax.reconstruction.walk import Walk
from ifjax.structure.structure import Group

Values = dict[int, Any]


class _Again(Walk):
    """A walk of one batch on the way of a `Recomputed`, whose programs it uses."""

    programs: dict[Hashable, Callable[..., Any]]

    def _compiled(
        self, jobs: Sequence[Job], wanted: Sequence[Key]
    ) -> Callable[[Callable[[Key], Any]], dict[Key, Any]]:
        values = [n for j in jobs for n, _ in (*j.inputs, *j.outputs)]
        made = [self.resized.size(a) for n in values for a in self._all(n)]
        rebuilt = [getattr(j.evaluate, "func", None) == self.resized.rebuild for j in jobs]
        form = tuple((j.inputs, j.outputs) for j in jobs), tuple(made), tuple(rebuilt)
        key = (*form, tuple(wanted))
        if key not in self.programs:
            self.programs[key] = super()._compiled(jobs, wanted)
        return self.programs[key]

    def _all(self, number: int) -> Sequence[int]:
        return self._variables.get(number, ())


@dataclasses.dataclass
class Recomputed(Walk):
    """Both evaluations, of which the values of one batch are known at a time.

    It notes how it goes on. When a value is read, a walk of this batch alone goes the same way from
    the inputs on, at the widths and with the leaves of the moment. ``dense`` and ``small`` hold
    inputs alone.

    Attributes:
      way: what a walk has to do to come to where this one is.
      place: steps before it are evaluated then.
      beside: of the dense function alone, what stands in the place of compressed values.
      known: the batch whose values are known, and these.
      programs: what was compiled, by what it is made of.
    """

    way: list[Callable[[Walk], None]] = dataclasses.field(default_factory=list)
    place: int = 0
    beside: Callable[[Values], Values] | None = None
    known: tuple[int, Values, Values] | None = None
    programs: dict[Hashable, Callable[..., Any]] = dataclasses.field(default_factory=dict)

    def value(self, batch: int, number: int, dense: bool) -> Any:
        """A value of one batch; those of the batch before are known no longer."""
        if not self.program.data[number]:
            return self.parameter(number, dense)
        if self.known is None or self.known[0] != batch:
            self.known = None
            self.known = (batch, *self._evaluated(batch))
        _, full, cut = self.known
        return (full if dense else cut)[number]

    def _evaluated(self, batch: int) -> tuple[Values, Values]:
        """What both functions have of a batch."""
        walk = _Again.__new__(_Again)  # with all facts that are known by now
        vars(walk).update(vars(self))
        walk.dense, walk.small = [dict(self.dense[batch])], [dict(self.small[batch])]
        for go_on in self.way:
            go_on(walk)
        [dense], [small] = walk.dense, walk.small
        return dense, small if self.beside is None else self.beside(dense)

    def run(
        self, places: Iterable[int], skip: Mapping[int, float], last: Mapping[int, float]
    ) -> None:
        """Goes on over these places."""
        places = list(places)
        self._mark(places)
        self.place = max([self.place, *(p + 1 for p in places)])
        self.way.append(lambda walk: walk.run(places, skip, last))

    def settle(self, unit: Unit, last: Mapping[int, float]) -> None:
        """Leaves a unit's steps out no longer."""
        self._mark(unit.places)
        self.way.append(lambda walk: walk.settle(unit, last))

    def _mark(self, places: Iterable[int]) -> None:
        """What differs from the dense values is known before it is evaluated."""
        self.known = None
        for step in (self.program.steps[p] for p in places):
            if any(step.data) and self._differs(step):
                self.dirty.update(step.outputs)

    def alone(self, beside: Callable[[Values], Values] = lambda dense: {}) -> Walk:
        """The dense function by itself, from its beginning on."""
        walk = copy.copy(self)
        walk.way, walk.place, walk.beside, walk.known = [], 0, beside, None
        walk.shared = {}
        return walk

    def keep(self, group: Group, index: np.ndarray, matrix: np.ndarray | None = None) -> None:
        """Keeps some neurons of a group; what holds it will be computed at its new width."""
        super().keep(group, index, matrix)
        self.known = None
        for step in self.program.steps[: self.place]:
            held = (n for n in step.outputs if group.name in self.atoms(n))
            self.dirty.update(held)

    def write(self, leaf: int, value: Any) -> None:
        """Gives a leaf of the compressed function another value."""
        super().write(leaf, value)
        self.known = None


def recomputing(walk: Walk) -> Recomputed:
    """A walk at its beginning, as one that holds its inputs alone."""
    return Recomputed(**{f.name: getattr(walk, f.name) for f in dataclasses.fields(walk)})
