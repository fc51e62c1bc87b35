"""Numbers that come from widths: those that belong to a reduction follow it, the others stay.

A number belongs to a reduction over neurons where it is applied to that very sum and undoes how it
grows with their number: the n of a mean, the n - 1 of a deviation, the sqrt(n) of an l2 norm that
becomes the root of a mean square. Every value carries the degree in which it grows with the sums
that it is made of: one for a sum, a half for its root, zero for a mean. The other numbers that come
from a width are told, for only their author knows what they should become.

Where a literal comes from it does not say. So the function is traced once more at other widths,
where it can be, and its numbers are compared (`ifjax.graph.twin`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.typing import ArrayLike

from ifjax.graph.facts.belonging import Candidate, Kept, belongs, is_plain
from ifjax.graph.facts.origins import NOTHING, Origins
from ifjax.graph.facts.sums import (
    ARITHMETIC,
    ROOTS,
    Of,
    Scaling,
    Sum,
    Value,
    added,
    close,
    computed,
    constant,
    made_of,
    multiplied,
    powered,
)
from ifjax.jaxprs import compat
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.traits import traits_of
from ifjax.jaxprs.walk import Axes, Frame, Reason
from ifjax.jaxprs.width_number import Followed, is_common, readings

KEEPING = {"slice", "abs", "neg", "real", "conj"}  # beside those that change no entry
BESIDE = {"add", "add_any", "sub", "max", "min"}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers of a function that come from widths.

    Attributes:
      followed: those that follow, with the frame and the number of their equation.
      kept: those that stay.
      asks: classes of which it matters for what follows what the numbers are at other widths.
      wonders: further ones, of which it matters for what is told.
    """

    followed: list[tuple[Frame, int, Followed]]
    kept: list[Kept]
    asks: frozenset[int]
    wonders: frozenset[int]

    def note(self) -> None:
        """Notes at the equations what follows, for rebuilding them."""
        for frame, i, followed in self.followed:
            frame.notes[i] = followed


def find_numbers(
    frame: Frame, store: AxisStore, inputs: int, twins: Sequence[Mapping[int, Jaxpr]] = ()
) -> Numbers:
    """Looks for the numbers that come from widths.

    Args:
      frame: the frame of the function.
      store: its axis store.
      inputs: how many inputs the function has.
      twins: the same function's jaxprs at other widths, by the `id` of a frame, see `twin.paired`.

    Returns:
      What follows, what stays, and whose other widths would tell more.
    """
    return _Search(store, twins).run(frame, inputs)


class _Search:
    """One walk through a function's equations."""

    def __init__(self, store: AxisStore, twins: Sequence[Mapping[int, Jaxpr]]) -> None:
        self.store, self.twins = store, twins
        self.origins = Origins()
        self.here: tuple[Frame, int] | None = None
        self.followed: dict[tuple[int, int], tuple[Frame, int, Followed]] = {}
        self.kept: dict[tuple[int, int], Kept] = {}
        self.asks: set[int] = set()
        self.wonders: set[int] = set()
        self.uses: dict[int, Counter[Var]] = {}

    def run(self, frame: Frame, inputs: int) -> Numbers:
        control: Control[Value] = Control(
            join=lambda values, _: values[0] if len({*values}) == 1 else self._new(),
            settle=lambda carries, _: [self._new() for _ in carries],
        )
        values = [self._new() for _ in range(inputs)]
        interpret(
            *(frame, self.store, values, self._transfer, constant),
            visit=self._visit,
            control=control,
            literal=self._literal,
        )
        asked = (frozenset(self.asks), frozenset(self.wonders))
        return Numbers([*self.followed.values()], [*self.kept.values()], *asked)

    def _new(self) -> Value:
        return Value(origin=self.origins.new())

    def _visit(self, frame: Frame, i: int) -> None:
        self.here = (frame, i)

    def _literal(self, frame: Frame, i: int, k: int, value: ArrayLike) -> Value:
        """A literal, with what stands in its place at the other widths."""
        found = constant(value)
        others = [twin[id(frame)] for twin in self.twins if id(frame) in twin]
        atoms = [other.eqns[i].invars[k] for other in others]
        numbers = [constant(a.val).number for a in atoms if isinstance(a, Literal)]
        known = [x for x in numbers if x is not None]
        if found.number is None or not known:
            return found
        different = (x for x in known if not close(x, found.number, 1e-12))
        return dataclasses.replace(found, other=next(different, found.number))

    def _transfer(
        self, equation: JaxprEqn, ins: list[Axes], outs: list[Axes], values: list[Value]
    ) -> list[Value]:
        if traits_of(equation).kind == "same":
            return [self._used_once(v, equation) for v in values]
        name = equation.primitive.name
        origins = self.origins.of(equation, [v.origin for v in values])
        if len(outs) == 1:
            found = self._result(name, equation, ins, values)
            if found is not None:
                found = dataclasses.replace(found, origin=origins[0])
                return [self._used_once(found, equation)]
        return [Value(origin=o) for o in origins]

    def _used_once(self, value: Value, equation: JaxprEqn) -> Value:
        """The value, scaled by a number that is to be told only where nothing else reads it."""
        if value.scaling is None:
            return value
        assert self.here is not None
        jaxpr = self.here[0].jaxpr
        if id(jaxpr) not in self.uses:
            read = (v for e in jaxpr.eqns for v in e.invars)
            atoms = [v for v in (*read, *jaxpr.outvars) if not isinstance(v, Literal)]
            self.uses[id(jaxpr)] = Counter(atoms)
        if any(self.uses[id(jaxpr)][v] != 1 for v in equation.outvars):
            return dataclasses.replace(value, scaling=None)
        return value

    def _result(
        self, name: str, equation: JaxprEqn, ins: list[Axes], values: list[Value]
    ) -> Value | None:
        """What is known of the result of an equation, but for its origin."""
        numbers = [v.number for v in values]
        if name == "integer_pow":
            values = [*values, Value(float(equation.params["y"]))]
            name, numbers = "pow", [v.number for v in values]
        if name in ARITHMETIC and None not in numbers:
            return computed(name, values)
        match name:
            case _ if name in KEEPING or traits_of(equation).kind == "layout":
                return values[0]
            case _ if name in ROOTS:
                return Value(sums=powered(values[0].sums, ROOTS[name]))
            case "pow" if numbers[1] is not None:
                if equation.primitive.name == "pow":
                    product = values[0].product
                    self._decide(equation, 1, values[1], product, int(bool(product)), ins[0])
                power = Fraction(numbers[1]).limit_denominator(12)
                return Value(sums=powered(values[0].sums, power))
            case "log":
                return Value(sums=tuple(dataclasses.replace(s, log=True) for s in values[0].sums))
            case "reduce_sum" | "reduce_prod":
                found = values[0].summed(tuple(ins[0][i] for i in equation.params["axes"]))
                return found if name == "reduce_sum" else Value(product=found.sums)
            case "dot_general":
                return self._contracted(equation, ins, values)
            case "mul" | "div":
                scaled = numbers.count(None) == 1
                return (self._scaled if scaled else self._times)(equation, ins, values)
            case "select_n":
                return added([v for v in values[1:] if v.number is None] or [Value()])
            case "clamp":
                return values[1]
            case _ if name in BESIDE:
                return self._beside(name, equation, ins, values)
        return None

    # what the primitives do to sums

    def _contracted(self, equation: JaxprEqn, ins: list[Axes], values: list[Value]) -> Value:
        """A product of a value with itself is a sum of squares; one with a constant, a sum."""
        (inner, _), (batch, _) = equation.params["dimension_numbers"]
        over = tuple(ins[0][i] for i in inner)
        uniform = [i for i, v in enumerate(values) if v.number is not None]
        if len(uniform) == 1 and not batch:
            (i,) = uniform
            given = [values[1 - i].summed(over)] * 2
            given[i] = values[i]
            return self._scaled(equation, [(), ()], given)
        if values[0].origin == values[1].origin != NOTHING:
            sums = multiplied(*(made_of(v.sums) for v in values))
            return Value(sums=sums).summed(over, "one value")
        return Value().summed(over, "a contraction")

    def _times(self, equation: JaxprEqn, ins: list[Axes], values: list[Value]) -> Value:
        """A product or quotient of two values."""
        del ins
        a, b = values
        divided = equation.primitive.name == "div"
        sign = Fraction(-1 if divided else 1)
        known = NOTHING not in (a.origin, b.origin)
        sums = multiplied(made_of(a.sums), powered(b.sums, sign))
        for one, by in ((a.scaling, 1), (b.scaling, -1 if divided else 1)):
            if one is not None:
                sums = self._scaled_before(one, sums, by)
        if known and a.origin == b.origin:  # a square
            return Value(sums=sums)
        return Value(sums=sums, paired=known or a.paired or b.paired)

    def _scaled(self, equation: JaxprEqn, ins: list[Axes], values: list[Value]) -> Value:
        """A value times a number, or divided by it, or the number divided by the value."""
        i = next(i for i, v in enumerate(values) if v.number is not None)
        value, divided = values[1 - i], equation.primitive.name == "div"
        sums = powered(value.sums, Fraction(-1)) if divided and i == 0 else value.sums
        sign = -1 if divided and i == 1 else 1
        followed = self._decide(equation, i, values[i], sums, sign, ins[1 - i])
        scaling = None
        if followed is not None:
            sums = _changed(sums, followed, sign)
        elif not (divided and i == 0) and self.here is not None:
            scaling = Scaling(*self.here, i, values[i], sign, ins[1 - i])
        return Value(sums=sums, paired=value.paired, scaling=scaling)

    def _scaled_before(self, scaling: Scaling, sums: tuple[Sum, ...], by: int) -> tuple[Sum, ...]:
        """The sums of a quotient whose upper side was multiplied with a number first.

        ``h * sqrt(n) / norm(h)`` is ``h / norm(h) * sqrt(n)``.
        """
        here, sign = self.here, by * scaling.sign
        self.here = (frame, i) = (scaling.frame, scaling.index)
        given = (frame.jaxpr.eqns[i], scaling.operand, scaling.number, sums, sign, scaling.axes)
        followed = self._decide(*given, belated=True)
        self.here = here
        if followed is None:
            return sums
        self.kept.pop((id(frame), i), None)
        return _changed(sums, followed, sign)

    def _beside(self, name: str, equation: JaxprEqn, ins: list[Axes], values: list[Value]) -> Value:
        """A sum of values; a number beside a logarithm may be that of a width."""
        numbers = [i for i, v in enumerate(values) if v.number is not None]
        if len(numbers) != 1:
            return added(values)
        (i,) = numbers
        if name not in ("max", "min"):
            logs = tuple(s for s in values[1 - i].sums if s.log)
            self._decide(equation, i, values[i], logs, 0, ins[1 - i])
        return values[1 - i]

    # what becomes of a number

    def _decide(
        self,
        equation: JaxprEqn,
        operand: int,
        value: Value,
        sums: tuple[Sum, ...],
        sign: int,
        axes: Axes,
        belated: bool = False,
    ) -> Followed | None:
        """Notes a number that follows, or one that stays though it seems to come from a width.

        It is multiplied with a value of these sums and axes where ``sign`` is one, divides it where
        it is minus one, and is added to it where it is zero; where ``belated``, it was told before.
        """
        number, dtype = value.number, compat.dtype_of(equation.outvars[0])
        assert number is not None
        assert self.here is not None
        frame, i = self.here
        if not jnp.issubdtype(dtype, jnp.floating):
            return None
        tolerance = 2 * float(jnp.finfo(dtype).eps)
        changed = None if value.other is None else not close(number, value.other, tolerance)
        places, here = self._places(sums), self.store.classes_of(axes)
        best, found = 0, None
        for place in places:
            statistic = not here & self.store.classes_of(place.over)
            n = self._size(place.over)
            if readings(abs(number), n, tolerance, factors=True):
                self.asks |= self.store.classes_of(place.over)
            for way in readings(abs(number), n, tolerance, factors=bool(changed)):
                rank = belongs(abs(number), way, place, sign, changed, statistic)
                if rank > best:
                    known = value.other if changed else None
                    best = rank
                    found = Followed(operand, place.over, way, known, number < 0)
        if found is not None:
            self.followed[id(frame), i] = (frame, i, found)
            return found
        if belated:
            return None
        if changed is not True and self._is_explained(abs(number), sums, sign, tolerance):
            return None
        near = (*axes, *(node for place in places for node in place.over))
        if not is_common(abs(number)):
            self.wonders |= self.store.classes_of(near)
        beside = axes if sign or changed else ()
        candidates = self._candidates(number, tolerance, changed, places, beside)
        if changed or candidates:
            where = Reason(f"{equation.primitive.name} by {number:g}", (equation,))
            self.kept[id(frame), i] = Kept(number, where, changed, candidates, near, sign)
        return None

    def _is_explained(
        self, number: float, sums: Sequence[Sum], sign: int, tolerance: float
    ) -> bool:
        """Whether a number belongs to a sum over axes that nobody can cut."""
        return any(
            belongs(number, way, s, sign, None, True) > 2
            for s in sums
            if not self.store.classes_of(s.over)
            for way in readings(number, self._size(s.over), tolerance)
        )

    def _candidates(
        self,
        number: float,
        tolerance: float,
        changed: bool | None,
        places: Sequence[Sum],
        axes: Axes,
    ) -> tuple[Candidate, ...]:
        """The widths that a number may come from: what is summed, and what it is applied to."""
        over: dict[Axes, Of | None] = {}
        for place in places:
            over.setdefault(place.over, place.of)
            for node in place.over:
                for root in self.store.classes(node):
                    over.setdefault((root,), place.of)
        for node in axes:
            for nodes in [node, *self.store.classes(node)]:
                over.setdefault((nodes,), None)
        found = []
        for nodes, of in over.items():
            if not self.store.classes_of(nodes):
                continue
            n = self._size(nodes)
            if readings(abs(number), n, tolerance, factors=True):
                self.wonders |= self.store.classes_of(nodes)
            for way in readings(abs(number), n, tolerance, factors=bool(changed)):
                if changed or of is not None or (n > 2 and is_plain(way)):
                    found.append(Candidate(nodes, way, of))
        return tuple(found)

    def _places(self, sums: Sequence[Sum]) -> list[Sum]:
        """Every sum that could be cut, and all of one degree together."""
        found = [s for s in sums if self.store.classes_of(s.over)]
        for one in list(found):
            rest = [s for s in sums if (s.degree, s.log) == (one.degree, one.log)]
            if len(rest) > 1 and one.degree is not None:
                over = tuple(node for s in rest for node in s.over)
                joined = dataclasses.replace(one, over=over)
                if joined not in found:
                    found.append(joined)
        return found

    def _size(self, nodes: Axes) -> int:
        return math.prod(map(self.store.size, nodes))


def _changed(sums: tuple[Sum, ...], followed: Followed, sign: int) -> tuple[Sum, ...]:
    """The sums of a value after a number that follows: their degrees are undone."""
    own = [s for s in sums if s.over == followed.over and s.of != "a contraction"]
    degree = sign * followed.reading.degree
    if own:
        return multiplied(sums, tuple(Sum(s.over, degree, s.of) for s in own if not s.log))
    return tuple(dataclasses.replace(s, degree=Fraction(0)) for s in sums)  # several together
