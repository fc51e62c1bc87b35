"""Axes that number independent copies of a class: layers of a scan, experts, heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from jax.extend.core import JaxprEqn

from ifjax.graph.facts.slices import Slices, positions, sliced
from ifjax.jaxprs import compat
from ifjax.jaxprs.axis_nodes import Factors, Permuted, Segments
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.compat import Atom
from ifjax.jaxprs.traits import contraction_of, traits_of
from ifjax.jaxprs.walk import Axes, Frame, Loop, frames_of

# Kinds of primitives in which what lies at one position of an axis that passes through stays there.
PASSING = {
    *("elementwise", "same", "layout", "move", "join", "reduction", "search", "made", "collective"),
}
RAGGED = "ragged_dot_general"


class Batches(NamedTuple):
    """What numbers independent copies of classes.

    Attributes:
      axes: representatives of the batch axes by representative of the class, outermost first as in
        the first leaf that holds it; classes without are left out.
      shared: of the axes of slices that share copies, or of which a leaf holds one alone, what
        every leaf holds.
    """

    axes: dict[int, list[int]]
    shared: dict[int, Slices]


def batch_axes(
    store: AxisStore,
    leaves: Sequence[Axes],
    frame: Frame | None = None,
    known: Mapping[int, Mapping[int, Slices | None]] | None = None,
) -> Batches:
    """Axes that accompany a class exactly once in every array that holds it.

    The neurons of such a class can be permuted and cut at every position of these axes by
    themselves, the same number everywhere. Not so where the axis is free in a contraction over the
    class, or where data moves along it. What a scan stacks is accompanied by its steps; its
    constants and carries are not. Rows that ragged products deal out to the kernels of a class
    (tokens to experts), all by the same sizes, stand for the kernels; slices of stacks that are
    read one by one stand for their places in these, or for one that they share
    (`ifjax.graph.facts.slices`).

    Args:
      store: the axis store.
      leaves: axes of the parameter leaves.
      frame: the frame of the function.
      known: without a frame, what is known to accompany the classes in all arrays but the leaves,
        and what the leaves hold where slices share entries.

    Returns:
      The axes, and what shares entries along them.
    """
    slices = _known(known or {}) if frame is None else _slices(store, leaves, frame)
    search = _Search(store, slices)
    if frame is not None:
        search.deal(frame)
    for axes in leaves:
        search.array(axes, [])
    if frame is not None:
        search.frame(frame, [])
    if known is not None:
        for root in search.found:
            search.found[root] &= {*known.get(root, ())}
    first: dict[int, list[int]] = {}
    for axes in leaves:
        for root in store.classes_of(axes):
            first.setdefault(root, search.order(axes))
    result = {
        root: sorted(found, key=lambda b, order=first[root]: order.index(b) if b in order else -1)
        for root, found in search.found.items()
        if found and root in first
    }
    for root, found in result.items():  # of two that batch each other only the inner one is batched
        result[root] = [
            b
            for b in found
            if root not in result.get(b, ()) or first[b].index(b) < first[b].index(root)
        ]
    shared = _agreed(result, slices)
    return Batches({root: found for root, found in result.items() if found}, shared)


def _slices(store: AxisStore, leaves: Sequence[Axes], frame: Frame) -> dict[int, dict[int, Slices]]:
    """By class, the slices which hold copies of it, by their axis; one node for several stacks.

    Such an axis is pinned, or cut into single positions, which can be told from no others.
    """
    found = sliced(store, leaves, frame)
    for first, *others in (x.axes for several in found.values() for x in several):
        for other in others:
            store.unify(first, other)
        store.seal(first, "read slice by slice")
    return {root: {store.find(min(x.axes)): x for x in several} for root, several in found.items()}


def _known(known: Mapping[int, Mapping[int, Slices | None]]) -> dict[int, dict[int, Slices]]:
    return {
        root: {b: x for b, x in several.items() if x is not None} for root, several in known.items()
    }


def _agreed(
    axes: Mapping[int, list[int]], slices: Mapping[int, Mapping[int, Slices]]
) -> dict[int, Slices]:
    """What leaves hold along the axes of slices that share entries, by axis.

    A class that would have it otherwise than one before, or every slice for itself, is not batched.
    """
    found: dict[int, Slices] = {}
    alone = {
        b for root, several in axes.items() for b in several if _of(slices, root, b).batch == 0
    }
    for root, several in axes.items():
        for b in [b for b in several if _of(slices, root, b).batch]:
            one, known = _of(slices, root, b), found.get(b)
            same = known is None or (
                known.batch == one.batch
                and all(known.entries.get(i, x) == x for i, x in one.entries.items())
            )
            if b in alone or not same:
                several.remove(b)
            elif known is None:
                found[b] = one
            else:
                both = {**known.entries, **one.entries}
                found[b] = Slices(known.axes | one.axes, both, one.batch)
    return found


def _of(slices: Mapping[int, Mapping[int, Slices]], root: int, axis: int) -> Slices:
    return slices.get(root, {}).get(axis, Slices(frozenset()))


class _Search:
    """Companions that remain possible for every class seen so far."""

    def __init__(self, store: AxisStore, slices: Mapping[int, Collection[int]]) -> None:
        self.store, self.slices = store, slices
        self.found: dict[int, set[int]] = {}
        self._divisors: dict[int, frozenset[int]] = {}
        self._mentioned: dict[int, tuple[int, ...]] = {}
        self._dealt: dict[int, set[tuple[tuple[int, Atom], int, int]]] = {}

    def deal(self, frame: Frame) -> None:
        """Notes for every class by which sizes which rows are dealt out to its kernels."""
        for i, equation in enumerate(frame.jaxpr.eqns):
            for called in frames_of(frame.notes.get(i)):
                self.deal(called)
            if equation.primitive.name != RAGGED:
                continue
            lhs, rhs, sizes = (frame.read(v, self.store) for v in equation.invars[:3])
            numbers = contraction_of(equation)
            rows = equation.params["ragged_dot_dimension_numbers"].lhs_ragged_dimensions
            dealt, kernels = self.store.find(lhs[rows[0]]), self.store.find(sizes[-1])
            by = (id(frame), equation.invars[2]), dealt, kernels
            if rows[0] in numbers.free[0]:
                every = tuple(a for k, a in enumerate(rhs) if k not in numbers.groups)
                for root in self.store.classes_of(every):
                    self._dealt.setdefault(root, set()).add(by)

    def rows(self, root: int) -> tuple[int, int] | None:
        """The rows that stand for the kernels of a class, and the axis that numbers these."""
        found = self._dealt.get(root, ())
        return next(iter(found))[1:] if len(found) == 1 else None

    def order(self, axes: Axes) -> list[int]:
        """Everything along an array, outermost first."""
        return [root for node in axes for root in self.mentioned(node)]

    def divisors(self, node: int) -> frozenset[int]:
        """What is exactly one factor of the axis, or of all its segments."""
        root = self.store.find(node)
        if root not in self._divisors:
            form = self.store.form(root)
            if isinstance(form, Segments):
                parts = [self.divisors(s) for s in self.store.segments(root)]
                found = frozenset.intersection(*parts)
            elif isinstance(form, Factors):
                parts = [self.divisors(f) for f in self.store.factors(root)]
                every = [d for part in parts for d in part]
                found = frozenset(d for d in every if every.count(d) == 1)
                spread = [m for f in self.store.factors(root) for m in {*self.mentioned(f)}]
                found = frozenset(d for d in found if spread.count(d) == 1)
            elif isinstance(form, Permuted):  # nothing stands where it does in other arrays
                found = frozenset()
            else:
                found = frozenset({root} if root != self.store.one else ())
            self._divisors[root] = found
        return self._divisors[root]

    def mentioned(self, node: int) -> tuple[int, ...]:
        """Everything along the axis."""
        root = self.store.find(node)
        if root not in self._mentioned:
            self._mentioned[root] = tuple(self.store.ends(root))
        return self._mentioned[root]

    def array(self, axes: Axes, steps: Sequence[int]) -> None:
        """Narrows what accompanies the classes along an array, in loops over ``steps``."""
        held = {root for root in self.store.classes_of(axes) if self.found.get(root, True)}
        if not held:
            return
        counted = [*map(self.divisors, axes), *({self.store.find(s)} for s in steps)]
        mentions = [*map(self.mentioned, axes), *((self.store.find(s),) for s in steps)]
        once = {
            d
            for i, part in enumerate(counted)
            for d in part
            if not any(d in other for j, other in enumerate(mentions) if j != i)
        }
        for root in held:
            found, rows = self.found.get(root), self.rows(root)
            here = once
            if rows is not None and rows[0] in once and not any(rows[1] in m for m in mentions):
                here = once | {rows[1]}
            here = here | {
                s for s in self.slices.get(root, ()) if not any(s in m for m in mentions)
            }
            self.found[root] = (here if found is None else found & here) - {root}

    def forbid(self, along: Sequence[int], axes: Sequence[int]) -> None:
        """Some axes batch none of the classes along others."""
        bad = {m for node in axes for m in self.mentioned(node)}
        for root in self.store.classes_of(along):
            if self.found.get(root):
                rows = self.rows(root)
                self.found[root] -= bad | ({rows[1]} if rows and rows[0] in bad else set())

    def frame(self, frame: Frame, steps: Sequence[int]) -> None:
        """Reads the arrays of a frame and of its calls.

        What a loop does not make itself, its constants and first carries, is an array outside of
        it as well, where the steps do not accompany it.
        """
        for axes in frame.axes.values():
            self.array(axes, steps)
        for i, equation in enumerate(frame.jaxpr.eqns):
            note = frame.notes.get(i)
            inner = frames_of(note)
            own = [note.steps] if isinstance(note, Loop) and note.steps is not None else []
            for called in inner:
                self.frame(called, [*steps, *own])
            if not inner:
                self.equation(equation, [frame.read(v, self.store) for v in equation.invars], note)

    def equation(self, equation: JaxprEqn, ins: Sequence[Axes], note: object) -> None:
        """Forbids what an equation mixes: it may come back to the same axis afterwards."""
        name, p, traits = equation.primitive.name, equation.params, traits_of(equation)
        if name == "conv_general_dilated":
            numbers = p["dimension_numbers"]
            lhs, rhs = ins
            features, kernel_out = lhs[numbers.lhs_spec[1]], rhs[numbers.rhs_spec[0]]
            spatial = [lhs[i] for i in numbers.lhs_spec[2:]]
            spatial += [rhs[i] for i in numbers.rhs_spec[2:]]
            self.forbid((*lhs, *rhs), spatial)
            shared = self.divisors(features) & self.divisors(kernel_out)
            batch = lhs[numbers.lhs_spec[0]]
            outer = {*self.mentioned(kernel_out), *self.mentioned(batch)} - shared
            inner = {*self.mentioned(features)} - shared
            self.forbid((features, rhs[numbers.rhs_spec[1]]), [*outer])
            self.forbid((kernel_out, batch), [*inner])
        elif traits.kind == "contraction":
            numbers = contraction_of(equation)
            free = [numbers.free[0], (*numbers.free[1], *numbers.groups)]
            if name == RAGGED:  # rows and kernels that are dealt out are no other entries
                dealt = p["ragged_dot_dimension_numbers"].lhs_ragged_dimensions
                if dealt[0] in numbers.free[0]:
                    free = [tuple(i for i in numbers.free[0] if i not in dealt), numbers.free[1]]
            for k, (one, other) in enumerate(((ins[0], ins[1]), (ins[1], ins[0]))):
                contracted = [one[i] for i in numbers.contracted[k]]
                batch = [one[i] for i in numbers.batch[k]]
                own, beside = [one[i] for i in free[k]], [other[i] for i in free[1 - k]]
                self.forbid((*contracted, *batch), [*own, *beside])
                self.forbid((*own, *batch), contracted)
        elif traits.kind == "ordered":
            over = p[traits.over]
            self._move(ins, [over] if isinstance(over, int) else over)
        elif traits.kind == "window":
            arrays = [axes for axes in ins if axes]  # initial values are scalars
            self._move(arrays, [i for i, n in enumerate(p["window_dimensions"]) if n != 1])
        elif traits.kind == "lookup":
            shape, [known] = compat.shape_of(equation.invars[0]), positions(equation, note)
            partly = [i for i, n in enumerate(p["slice_sizes"]) if n != shape[i]]
            self._move(ins[:1], [i for i in partly if i not in known])
        elif name == "dynamic_update_slice":
            shapes = [compat.shape_of(v) for v in equation.invars[:2]]
            pairs = enumerate(zip(*shapes, strict=True))
            self._move(ins[:2], [i for i, (m, n) in pairs if m != n])
        elif traits.kind not in PASSING:
            for axes in ins:
                self.forbid(axes, axes)

    def _move(self, arrays: Sequence[Axes], over: Sequence[int]) -> None:
        for axes in arrays:
            self.forbid(axes, [axes[i] for i in over])
