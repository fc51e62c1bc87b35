"""Two evaluations of a function side by side: with the dense parameters, and with fewer.

The compressed one is evaluated at the widths of the moment: an *event* keeps some neurons of a
group, and narrows at once the leaves and all values that are alive.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ifjax.graph.facts.sites import Sites, Unit
from ifjax.graph.resized import Resized
from ifjax.jaxprs.evaluate import bind
from ifjax.jaxprs.program import Program, Step
from ifjax.namespace import namespace
from ifjax.parallel.hosts import is_apart, on_device, on_host, put
from ifjax.parallel.sharding import fitted
from ifjax.reconstruction.events import Event, merge, narrow
from ifjax.reconstruction.segments import Job, Key, compiled, expanded, job_of
from ifjax.structure import axis as ex
from ifjax.structure.structure import Group


@dataclasses.dataclass
class Walk:
    """Both evaluations, as far as they have come.

    Attributes:
      resized: the walked function; its widths are those of the moment.
      program: its equations.
      sites: where it can be corrected.
      full: dense leaves by number.
      leaves: compressed leaves by number.
      dense: by batch, values of the dense function that are still needed.
      small: by batch, those of the compressed one.
      events: what has been kept so far.
      changed: leaves that are no longer the dense ones.
      fixed: those of them that were given, and are not solved for.
      dirty: values that are no longer the dense ones.
      shared: sums over what several units read, from the first of them to the last.
      mesh: where leaves or inputs lie on devices of several processes, their mesh.
    """

    resized: Resized
    program: Program
    sites: Sites
    full: dict[int, Any]
    leaves: dict[int, Any]
    dense: list[dict[int, Any]]
    small: list[dict[int, Any]]
    events: list[Event] = dataclasses.field(default_factory=list)
    changed: set[int] = dataclasses.field(default_factory=set)
    fixed: set[int] = dataclasses.field(default_factory=set)
    dirty: set[int] = dataclasses.field(default_factory=set)
    shared: dict[Hashable, Any] = dataclasses.field(default_factory=dict)
    mesh: Mesh | None = None
    memo: dict[bool, dict[int, Any]] = dataclasses.field(
        default_factory=lambda: {True: {}, False: {}}
    )

    # facts

    @functools.cached_property
    def _variables(self) -> dict[int, Any]:
        frames = [self.resized.analysis.frame, *(s.frame for s in self.program.steps)]
        by_frame = {id(frame): frame for frame in frames if frame is not None}
        return {
            n: by_frame[frame].axes[var]
            for (frame, var), n in reversed(self.program.numbers.items())
            if frame in by_frame and var in by_frame[frame].axes
        }

    @functools.cached_property
    def _owner(self) -> dict[int, str]:
        find = self.resized.analysis.store.find
        return {find(node): name for name, node in self.resized.atoms.items()}

    @functools.cached_property
    def _pinned(self) -> dict[int, str]:
        find = self.resized.analysis.store.find
        return {find(node): name for name, node in self.resized.named.items()}

    def axes(self, number: int) -> tuple[ex.Expression, ...]:
        """What lies along the axes of a value."""
        store = self.resized.analysis.store
        return tuple(
            store.resolve(node, lambda root: self._owner.get(root, f"#{root}"), self._pinned)
            for node in self._variables.get(number, ())
        )

    def atoms(self, number: int) -> set[str]:
        """Names of what lies along the axes of a value."""
        return {name for e in self.axes(number) for name in ex.atoms(e)}

    @functools.cached_property
    def normed(self) -> frozenset[str]:
        """Groups over whose neurons activations alone are summed, as norms of them do."""
        found = set[str]()
        for step in self.program.steps:
            if step.data and all(step.data):
                read = set[str]().union(*map(self.atoms, step.inputs))
                found |= read.difference(*map(self.atoms, step.outputs))
        return frozenset(found)

    @property
    def sizes(self) -> dict[str, int]:
        """Present widths of the groups that are cut already."""
        return {e.group.name: e.index.shape[-1] for e in self.events}

    def last_use(self, deferred: Mapping[int, float]) -> dict[int, float]:
        """By number, when it is used for the last time; deferred steps run after a place.

        Values of parameters alone are used where what is made of them is.
        """
        last: dict[int, float] = {}
        for place, step in reversed([*enumerate(self.program.steps)]):
            used = float(deferred.get(place, place))
            if not any(step.data):
                used = max((last.get(n, -1.0) for n in step.outputs), default=-1.0)
            for n in (*step.inputs, *step.outputs):
                last[n] = max(last.get(n, -1.0), used)
        return last

    # parameters

    def parameter(self, number: int, dense: bool) -> Any:
        """A value of parameters alone, dense or at the present widths.

        Leaves of the host are brought to the device for it, until `forget`.
        """
        memo = self.memo[dense]
        leaves = self.full if dense else self.leaves
        stack = [number]
        while stack:
            n = stack[-1]
            if n in leaves and n not in memo:
                is_same = not dense and leaves[n] is self.full[n]
                memo[n] = self.parameter(n, True) if is_same else on_device(leaves[n])
            if n in memo:
                stack.pop()
            elif n in self.program.constants:
                memo[n] = self._constant(n, dense)
            else:
                step = self.program.steps[self.program.made[n]]
                missing = [k for k in step.inputs if k not in memo]
                if missing:
                    stack += missing
                    continue
                operands = [memo[k] for k in step.inputs]
                results = bind(step, operands) if dense else self.resized.rebuild(step, operands)
                memo |= zip(step.outputs, results, strict=True)
        return memo[number]

    def forget(self, end: float, last: Mapping[int, float]) -> None:
        """Where leaves are on the host, frees what of the device's is not needed after a place."""
        if not self.streams:
            return
        for memo in self.memo.values():
            for n in [n for n in memo if last.get(n, -1.0) <= end]:
                del memo[n]

    @functools.cached_property
    def streams(self) -> bool:
        """Whether leaves are on the host."""
        return any(isinstance(x, np.ndarray) for x in self.full.values())

    def _constant(self, number: int, dense: bool) -> Any:
        value = self.program.constants[number]
        axes = self._variables.get(number, ())
        return value if dense or not axes else self.resized.constant(value, axes)

    def value(self, batch: int, number: int, dense: bool) -> Any:
        """A value of one batch."""
        if not self.program.data[number]:
            return self.parameter(number, dense)
        return (self.dense if dense else self.small)[batch][number]

    def check_finite(self, step: Step, *sums: Any, names: Sequence[str] = ()) -> None:
        """Raises ValueError, with names of the leaves or these, for sums that are not finite."""
        if all(namespace(x).isfinite(x).all() for x in sums):
            return
        numbers = {n for k in step.inputs for n in self.program.origins.get(k, ())}
        pairs = zip(self.leaves, self.resized.structure.leaves, strict=True)
        paths = ", ".join(names or [leaf.path for n, leaf in pairs if n in numbers])
        raise ValueError(
            f"{paths}: what it reads or gives on the calibration inputs is not finite; expected "
            "inputs on which the network gives finite values"
        )

    # steps

    def run(
        self, places: Iterable[int], skip: Mapping[int, float], last: Mapping[int, float]
    ) -> None:
        """Evaluates steps for all batches, both ways.

        Args:
          places: of the steps.
          skip: places of steps that the compressed function leaves out for now.
          last: by number, the place after which it is not needed.
        """
        steps = [(p, self.program.steps[p]) for p in places]
        steps = [(p, step) for p, step in steps if any(step.data) and step.outputs]
        if not steps:
            return
        jobs, same = [], set[int]()
        for place, step in steps:
            jobs.append(job_of(step, True, functools.partial(bind, step)))
            if self._differs(step):
                self.dirty.update(step.outputs)
            if place in skip:
                continue
            if step.outputs[0] in self.dirty:
                jobs.append(
                    job_of(step, False, functools.partial(self.resized.rebuild, step), same)
                )
            else:
                same.update(step.outputs)
        end = steps[-1][0]
        made = {key for job in jobs for key in job.outputs}
        wanted = sorted(key for key in made if last.get(key[0], -1) > end)
        read = {n for _, step in steps for n in (*step.inputs, *step.outputs)}
        gone = [n for n in read if last.get(n, -1) <= end]
        call = self._compiled(jobs, wanted)
        for batch, (dense, small) in enumerate(zip(self.dense, self.small, strict=True)):
            found = call(lambda key, batch=batch: self.value(batch, *key))
            for (n, is_dense), x in found.items():
                if is_dense:
                    dense[n] = x
                if not is_dense or n in same:
                    small[n] = x
            for n in gone:
                small.pop(n, None)
                dense.pop(n, None)
        self.forget(float(end), last)

    def _compiled(
        self, jobs: Sequence[Job], wanted: Sequence[Key]
    ) -> Callable[[Callable[[Key], Any]], dict[Key, Any]]:
        """Equations as one function; constants stay what they are, for what asks for them."""
        if not wanted:
            return lambda value: {}
        return compiled(
            [*self._expansions(jobs), *jobs],
            lambda key: self.parameter(*key) if key[0] in self.program.constants else None,
            lambda key: self.value(0, *key),
            wanted,
        )

    @functools.cached_property
    def _expanded(self) -> set[int]:
        return expanded(self.program)

    def _expansions(self, jobs: Sequence[Job]) -> list[Job]:
        """What makes the large values that jobs read, such as masks for every example: in place."""
        found: dict[tuple[int, bool], Job] = {}
        keys = [key for job in jobs for key in job.inputs]
        while keys:
            n, dense = keys.pop()
            if n not in self._expanded or (place := self.program.made[n], dense) in found:
                continue
            step = self.program.steps[place]
            evaluate = functools.partial(bind if dense else self.resized.rebuild, step)
            found[place, dense] = job = job_of(step, dense, evaluate)
            keys += job.inputs
        return [found[key] for key in sorted(found)]

    def _differs(self, step: Step) -> bool:
        """Whether operands differ from the dense ones, or results are of a width that is cut."""
        if any(
            n in self.dirty or not self.changed.isdisjoint(self.program.origins.get(n, ()))
            for n in step.inputs
        ):
            return True
        cut = self.sizes.keys()
        return bool(cut) and any(cut & self.atoms(n) for n in step.outputs)

    def settle(self, unit: Unit, last: Mapping[int, float]) -> None:
        """Evaluates a unit's steps for the compressed function, and frees what they read."""
        steps = [self.program.steps[p] for p in unit.places]
        for step in steps:
            if self._differs(step):
                self.dirty.update(step.outputs)
        gone = [
            n for s in steps for n in (*s.inputs, *s.outputs) if last.get(n, -1) <= unit.stop + 0.5
        ]
        jobs, known = [], set[int]()
        for step in steps:
            if step.outputs[0] in self.dirty:
                jobs.append(job_of(step, False, functools.partial(self.resized.rebuild, step)))
            elif step.outputs[0] in self.dense[0]:
                known.update(step.outputs)
            else:
                jobs.append(job_of(step, False, functools.partial(bind, step)))
        made = {n for job in jobs for n, _ in job.outputs}
        wanted = sorted((n, False) for n in made if n not in gone)
        for batch, small in enumerate(self.small):
            small |= {n: self.dense[batch][n] for n in known}
        call = self._compiled(jobs, wanted)
        for batch, small in enumerate(self.small):
            found = call(lambda key, batch=batch: self.value(batch, *key))
            small |= {n: x for (n, _), x in found.items()}
            for n in gone:
                small.pop(n, None)
                self.dense[batch].pop(n, None)
        self.forget(unit.stop + 0.5, last)

    def alone(self, beside: Callable[[dict[int, Any]], dict[int, Any]] = lambda dense: {}) -> Walk:
        """The dense function from here on; ``beside`` stands in the place of compressed values."""
        dense = [dict(values) for values in self.dense]
        small = [beside(values) for values in dense]
        return dataclasses.replace(self, dense=dense, small=small, shared={})

    # events

    def keep(self, group: Group, index: np.ndarray, matrix: np.ndarray | None = None) -> None:
        """Keeps some neurons of a group, into which others may have been merged by a matrix."""
        event = Event(group, index, self.sizes, matrix)
        structure = self.resized.structure
        for n, leaf in zip(self.leaves, structure.leaves, strict=True):
            if any(group.name in ex.atoms(e) for e in leaf.axes):
                self.write(n, narrow(self.leaves[n], leaf.axes, event))
        for small in self.small:
            for n in list(small):
                new = narrow(small[n], self.axes(n), event)
                if new is not small[n]:
                    small[n] = new
                    self.dirty.add(n)
        self.events.append(event)
        root = self.resized.analysis.store.find(self.resized.atoms[group.name])
        self.resized.widths[root] = index.shape[-1]
        self.resized.parts.clear()
        self.memo[False].clear()

    def restricted(self, x: Any, number: int, but: str = "") -> Any:
        """A dense value with what the compressed one has of it, but for one group."""
        axes = self.axes(number)
        for event in self.events:
            if event.group.name != but:
                x = merge(x, axes, event)
        return x

    def write(self, leaf: int, value: Any) -> None:
        """Gives a leaf of the compressed function another value; it stays where it is."""
        full = self.full[leaf]
        if isinstance(full, np.ndarray):
            value = value if isinstance(value, np.ndarray) else np.array(on_host(value))
        elif len(full.sharding.device_set) > 1:
            value = put(value, fitted(full.sharding, value.shape))
        elif not isinstance(value, jax.Array) or is_apart(value):
            value = jnp.asarray(on_host(value))
        self.leaves[leaf] = value
        self.changed.add(leaf)
        memo = self.memo[False]
        for n in [n for n in memo if n == leaf or leaf in self.program.origins.get(n, ())]:
            del memo[n]

    # of a unit

    def shape(self, number: int) -> tuple[int, ...]:
        """The shape of a value at the present widths."""
        return tuple(map(self.resized.size, self._variables[number]))

    def rest(self, batch: int, unit: Unit, outputs: Mapping[int, Any]) -> Any:
        """The end of a unit where its sites give other outputs."""
        known = dict(outputs)
        skip = {s.place for s in unit.sites}
        for place in unit.places:
            if place in skip:
                continue
            step = self.program.steps[place]
            operands = [
                known[n] if n in known else self.value(batch, n, False) for n in step.inputs
            ]
            known |= zip(step.outputs, self.resized.rebuild(step, operands), strict=True)
        return known[unit.end]
