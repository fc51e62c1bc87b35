"""Which values of a function turn with the channels of a group, and which stay as they are.

Let every row x of a group's channels become x Q, with Q orthogonal, in all leaves that hold them.
A sum of two turned values is turned, and so is a turned one times a number; a contraction of two
turned values over the channels stays what it was, for Q Q' = 1; and so does a sum of squares, which
is what an RMS norm divides by. An activation function of single channels does nothing of the kind.
What is said here of every value follows from its equation alone; nothing is evaluated but
parameters, of which it is looked at whether they are the same for all channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import jax.numpy as jnp
import numpy as np

from ifjax.jaxprs import compat
from ifjax.jaxprs.program import Step
from ifjax.jaxprs.traits import contraction_of, traits_of
from ifjax.reconstruction.bearing import (
    EVEN,
    SQUARES,
    STILL,
    TURNED,
    ZERO,
    Bearing,
    Reader,
    per_channel,
)
from ifjax.reconstruction.walk import Walk
from ifjax.structure import axis as ex

REWRITE = "write it without, or leave this group as it is"


def find_bearings(walk: Walk, name: str) -> tuple[dict[int, Bearing], tuple[Reader, ...]]:
    """Says of every value that holds the channels of a group what becomes of it.

    Args:
      walk: of the function.
      name: of the group.

    Returns:
      Bearings by number, and the contractions that read scaled values.

    Raises:
      ValueError: where something is done to the channels that turning them would change.
    """
    found = _Bearings(walk, name)
    for place, step in enumerate(walk.program.steps):
        found.add(place, step)
    return found.of, tuple(found.readers)


class _Bearings:
    """The bearings of the values of a program, equation after equation.

    Attributes:
      of: those that are known, by number.
      readers: contractions of scaled values.
    """

    def __init__(self, walk: Walk, name: str) -> None:
        """Leaves that scale activations stay, all others turn."""
        self.walk, self.name, self.readers = walk, name, list[Reader]()
        self._along: dict[int, tuple[int, ...]] = {}
        self._even: dict[int, bool] = {}
        scaling = self._scaling()
        self.of: dict[int, Bearing] = {
            n: STILL if n in scaling else TURNED for n in walk.full if self.count(n)
        }
        for n, value in walk.program.constants.items():
            if self.count(n):
                self.of[n] = STILL if np.any(np.asarray(value)) else ZERO

    def _scaling(self) -> set[int]:
        """The leaves that multiply activations channel by channel."""
        program, found = self.walk.program, set[int]()
        for step in program.steps:
            if step.equation.primitive.name in ("mul", "div") and sum(step.data) == 1:
                n = step.inputs[step.data.index(False)]
                leaves = self.walk.program.origins.get(n, ()) if self.count(n) else ()
                found.update(leaf for leaf in leaves if self.count(leaf))
        return found

    def along(self, number: int) -> tuple[int, ...]:
        """How often the channels lie along every axis of a value."""
        if number not in self._along:
            axes = self.walk.axes(number)
            self._along[number] = tuple([*ex.atoms(e)].count(self.name) for e in axes)
        return self._along[number]

    def count(self, number: int) -> int:
        """How often a value holds the channels."""
        return sum(self.along(number))

    def held(self, number: int) -> Bearing:
        """The bearing of an operand; what does not hold the channels is the same for all."""
        if number in self.of:
            found = self.of[number]
            is_own = found == STILL and not self.walk.program.data[number]
            return Bearing("still", ((number, 1),)) if is_own else found
        constants = self.walk.program.constants
        is_zero = number in constants and not np.any(np.asarray(constants[number]))
        return ZERO if is_zero else EVEN

    def refuse(self, step: Step, what: str, remedy: str = REWRITE) -> NoReturn:
        """Raises ValueError: what was found, where, and what to do."""
        names = dict(zip(self.walk.full, self.walk.resized.structure.leaves, strict=True))
        origins = self.walk.program.origins
        leaves = {names[k].path for n in step.inputs for k in origins.get(n, ())}
        of = f" (with {', '.join(sorted(leaves)[:3])})" if leaves else ""
        where = line_of(step)
        raise ValueError(
            f"{self.name}: expected channels that can be rotated, but {where} {what}{of}; {remedy}"
        )

    def add(self, place: int, step: Step) -> None:
        """Follows one equation."""
        outputs = [n for n in step.outputs if self.count(n)]
        if not step.outputs or not (outputs or any(map(self.count, step.inputs))):
            return
        kind = traits_of(step.equation).kind
        if kind == "same" and len(step.inputs) == len(step.outputs):
            found = [self.same(step, k) for k in range(len(step.inputs))]
            pairs = zip(step.outputs, found, strict=True)
        else:
            rule = _RULES.get(kind, _Bearings.other)
            found = self.contraction(place, step) if kind == "contraction" else rule(self, step)
            pairs = ((n, found) for n in step.outputs)
        for n, bearing in pairs:
            if self.count(n):
                is_own = bearing.kind == "still" and not self.walk.program.data[n]
                self.of[n] = STILL if is_own else bearing

    def common(self, step: Step, bearings: Iterable[Bearing], what: str) -> Bearing:
        """The bearing that some operands have in common."""
        kinds = {b for b in bearings if b != ZERO}
        if len(kinds) < 2:
            return kinds.pop() if kinds else ZERO
        if all(b.stays for b in kinds):
            return _resting(kinds)
        if any(b.kind == "scaled" for b in kinds):
            what += ", and scales channels of which that is not true"
        self.refuse(step, what)

    # rules

    def other(self, step: Step) -> Bearing:
        """Anything else."""
        name, kind = step.equation.primitive.name, traits_of(step.equation).kind
        held = [self.held(n) for n in step.inputs if self.count(n)]
        if kind == "control":
            self.refuse(step, f"reads them inside of a {name} that does not come apart")
        if not held or not all(b.stays for b in held):
            self.refuse(step, f"applies {name} to single channels")
        return _resting(held)

    def same(self, step: Step, k: int) -> Bearing:
        """An operand as it is."""
        held = self.held(step.inputs[k])
        floating = jnp.issubdtype(compat.dtype_of(step.equation.outvars[k]), jnp.inexact)
        if not held.stays and not floating:
            self.refuse(step, "makes integers of them")
        return held

    def layout(self, step: Step) -> Bearing:
        """Entries at other places."""
        before, after = self.count(step.inputs[0]), self.count(step.outputs[0])
        if before and before != after:
            self.refuse(step, "repeats them along another of their axes")
        return self.held(step.inputs[0])

    def move(self, step: Step) -> Bearing:
        """Some of the entries."""
        return self.held(step.inputs[0])

    def lookup(self, step: Step) -> Bearing:
        """Rows of a table."""
        if any(map(self.count, step.inputs[1:])):
            self.refuse(step, "looks up positions that they decide on")
        return self.held(step.inputs[0])

    def join(self, step: Step) -> Bearing:
        """Operands side by side."""
        numbers = [n for n in step.inputs if self.count(n)]
        if step.equation.primitive.name == "pad":
            numbers = step.inputs[:2]
        what = "joins turned channels with what does not turn"
        return self.common(step, map(self.held, numbers), what)

    def write(self, step: Step) -> Bearing:
        """One operand written into another."""
        traits = traits_of(step.equation)
        held = [self.held(n) for n in step.inputs[traits.sources]]
        if not traits.adds and not all(b.stays for b in held):
            self.refuse(step, f"applies {step.equation.primitive.name} to single channels")
        return self.common(step, held, "writes into them what does not turn")

    def elementwise(self, step: Step) -> Bearing:
        """Entry by entry."""
        name, held = step.equation.primitive.name, [self.held(n) for n in step.inputs]
        match name:
            case "add" | "add_any" | "sub":
                return self.common(step, held, "adds what does not turn with them")
            case "neg":
                return held[0]
            case "mul":
                return self.product(step, held)
            case "div" if held[1].stays:
                return self.scaled(step, held[0], held[1], -1)
            case "square" | "integer_pow" if held[0] == TURNED:
                if step.equation.params.get("y", 2) == 2:
                    return SQUARES
            case "select_n" if held[0] in (EVEN, ZERO):
                return self.common(step, held[1:], "chooses between them and what does not turn")
        if not all(b.stays for b in held):
            self.refuse(
                step,
                f"applies {name} to single channels, as activation functions do",
                "what adds, contracts or divides by RMS norms lets channels turn, nothing else",
            )
        return _resting(held)

    def product(self, step: Step, held: Sequence[Bearing]) -> Bearing:
        """A product, entry by entry."""
        a, b = held
        if b.stays or a.stays:
            return self.scaled(step, *((a, b) if b.stays else (b, a)), 1)
        along = [self.along(n) for n in step.inputs]
        if a == b == TURNED and along[0] == along[1]:
            return SQUARES
        self.refuse(step, "multiplies channels with one another")

    def scaled(self, step: Step, held: Bearing, by: Bearing, power: int) -> Bearing:
        """An operand times, or over, one that stays."""
        if ZERO in (held, by):
            return ZERO
        if by == EVEN:
            return held
        if by.kind == "still" and not by.factors:
            if held.stays:
                return STILL
            self.refuse(step, "multiplies each of them by a number that data decide on")
        factors = tuple((n, p * power) for n, p in by.factors if not self.is_even(n))
        factors = (*held.factors, *factors)
        if held.stays:
            return Bearing("still", factors) if factors else EVEN
        if held == SQUARES and factors:
            self.refuse(step, "scales the squares of channels")
        return Bearing("scaled", factors) if factors else held

    def is_even(self, number: int) -> bool:
        """Whether a value of parameters is the same for all channels."""
        if number not in self._even:
            found = per_channel(self.walk, number, self.name)
            self._even[number] = found is not None and bool((found == found[0]).all())
        return self._even[number]

    def reduction(self, step: Step) -> Bearing:
        """Sums and the like."""
        [number, *_], name = step.inputs, step.equation.primitive.name
        held, over = self.held(number), step.equation.params["axes"]
        count = sum(self.along(number)[i] for i in over)
        if held.stays:
            exact = name == "reduce_sum" or held.kind != "still"
            return held if exact and not count else STILL
        if name != "reduce_sum":
            self.refuse(step, f"applies {name} to single channels")
        if not count or (held == SQUARES and count == self.count(number)):
            return held
        self.refuse(
            step,
            "sums over the channels, as a layer norm does to take their mean away",
            "of norms RMS norms alone let channels turn",
        )

    def ordered(self, step: Step) -> Bearing:
        """What goes along an axis."""
        traits, held = traits_of(step.equation), [self.held(n) for n in step.inputs]
        over = step.equation.params[traits.over] if traits.over else ()
        over = over if isinstance(over, Sequence) else (over,)
        count = sum(self.along(n)[i] for n in step.inputs if self.count(n) for i in over)
        if all(b.stays for b in held):
            return STILL if count else _resting(held)
        if count or not traits.affine:
            self.refuse(step, f"applies {step.equation.primitive.name} to single channels")
        return held[0]

    def window(self, step: Step) -> Bearing:
        """Windows that move."""
        held, name = self.held(step.inputs[0]), step.equation.primitive.name
        if name != "reduce_window_sum" and not held.stays:
            self.refuse(step, f"applies {name} to single channels")
        return held

    def made(self, step: Step) -> Bearing:
        """Counted or drawn."""
        if step.equation.primitive.name != "iota":
            self.refuse(step, "draws a random number for each of them")
        return STILL if self.along(step.outputs[0])[step.equation.params["dimension"]] else EVEN

    def contraction(self, place: int, step: Step) -> Bearing:
        """Sums of products."""
        found, held = contraction_of(step.equation), [self.held(n) for n in step.inputs[:2]]
        turns = not all(b.stays for b in held)
        over, free = [
            [
                sum(self.along(n)[i] for i in axes[k]) if self.count(n) else 0
                for k, n in enumerate(step.inputs[:2])
            ]
            for axes in (found.contracted, found.free)
        ]
        groups = [step.equation.params.get(f"{g}_group_count", 1) for g in ("feature", "batch")]
        beside = any(
            c + f != self.count(n) for c, f, n in zip(over, free, step.inputs, strict=False)
        )
        if turns and (beside or groups != [1, 1]):
            self.refuse(step, "has a product of its own for each of them")
        carried = [held[k] for k in (0, 1) if free[k]]
        if turns and any(over) and ZERO not in held:
            self.contracted(place, step, held)
            carried = [held[k] for k in (0, 1) if free[k]]
        if SQUARES in carried:
            self.refuse(step, "contracts squares of channels")
        return self.common(step, carried, "combines them with what does not turn")

    def contracted(self, place: int, step: Step, held: Sequence[Bearing]) -> None:
        """A contraction over the channels: both turn, or one is scaled and the other a weight."""
        if held[0] == held[1] == TURNED:
            return
        for k in (0, 1):
            once = self.count(step.inputs[k]) == 1
            if held[k].kind == "scaled" and held[1 - k] == TURNED and once and not step.data[1 - k]:
                self.readers.append(Reader(place, k, held[k].factors))
                return
        if any(b.kind == "scaled" for b in held):
            self.refuse(step, "contracts scaled channels, and no weight that could take the scale")
        self.refuse(step, "sums over the channels with numbers that do not turn")


def line_of(step: Step) -> str:
    """Where in the user's code a step, or the call that it is inside of, comes from."""
    lines = map(compat.source_line, (step.equation, *step.callers))
    return next(filter(None, lines), step.equation.primitive.name)


def _resting(bearings: Iterable[Bearing]) -> Bearing:
    """What is made, entry by entry, of values that stay."""
    return EVEN if all(b in (EVEN, ZERO) for b in bearings) else STILL


_RULES: dict[str, Callable[[_Bearings, Step], Bearing]] = {
    name: getattr(_Bearings, name)
    for name in (
        *("layout", "move", "lookup", "join", "write", "elementwise", "reduction"),
        *("ordered", "window", "made"),
    )
}
