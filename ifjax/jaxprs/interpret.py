"""A walked jaxpr evaluated on abstract values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from jax.extend.core import JaxprEqn, Literal
from jax.typing import ArrayLike

from ifjax.jaxprs import compat
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.compat import Atom
from ifjax.jaxprs.walk import Axes, Branches, Frame, Loop, loop_parts

V = TypeVar("V")  # an abstract value


@dataclasses.dataclass
class Control(Generic[V]):
    """How abstract values pass through loops and branches.

    Attributes:
      join: gets values of which one is taken, and the values that decide which; returns one value.
      step: what a slice of a stacked array is.
      stack: what the stacked results of all steps are.
      settle: gets initial carries and the function from carries to the next ones; returns carries
        that hold before every step. By default joins until nothing changes.
      settling: positive while carries are being found: what is seen then need not hold in the end.
    """

    join: Callable[[Sequence[V], Sequence[V]], V]
    step: Callable[[V], V] = lambda value: value
    stack: Callable[[V], V] = lambda value: value
    settle: Callable[[list[V], Callable[[list[V]], list[V]]], list[V]] | None = None
    settling: int = 0

    def settled(self, carries: list[V], run: Callable[[list[V]], list[V]]) -> list[V]:
        """Carries that hold before every step."""
        if self.settle is not None:
            return self.settle(carries, run)
        self.settling += 1
        after: list[V] | None = None
        while after != carries:
            carries = carries if after is None else after
            after = [self.join(pair, ()) for pair in zip(carries, run(carries), strict=True)]
        self.settling -= 1
        return carries


def interpret(
    frame: Frame,
    store: AxisStore,
    inputs: Sequence[V],
    transfer: Callable[[JaxprEqn, list[Axes], list[Axes], list[V]], list[V]],
    constant: Callable[[ArrayLike], V],
    visit: Callable[[Frame, int], None] | None = None,
    control: Control[V] | None = None,
    literal: Callable[[Frame, int, int, ArrayLike], V] | None = None,
) -> list[V]:
    """Evaluates a walked jaxpr, calls included, on abstract values.

    Args:
      frame: the frame of `walk`.
      store: the axis store of the walk.
      inputs: abstract values of the inputs.
      transfer: gets an equation, its operands' and results' axes, its operands' abstract values;
        returns the results' abstract values.
      constant: abstract value of a literal or constant.
      visit: gets the frame and the number of an equation right before ``transfer`` gets it.
      control: how values pass through loops and branches; without it these are equations like
        others, and what is inside them is not seen.
      literal: abstract value of a literal, given the frame, the number of its equation, that of the
        operand, and the value; by default as of a constant.

    Returns:
      Abstract values of the outputs.
    """
    inner, constvars, _ = compat.unpack(frame.jaxpr)
    values = dict(zip(constvars, map(constant, frame.constants), strict=True))
    values.update(zip(inner.invars, inputs, strict=True))

    def read(atom: Atom) -> V:
        return constant(atom.val) if isinstance(atom, Literal) else values[atom]

    def operand(i: int, k: int, atom: Atom) -> V:
        if literal is not None and isinstance(atom, Literal):
            return literal(frame, i, k, atom.val)
        return read(atom)

    def run(inside: Frame, operands: Sequence[V]) -> list[V]:
        return interpret(inside, store, operands, transfer, constant, visit, control, literal)

    for i, equation in enumerate(inner.eqns):
        operands = [operand(i, k, v) for k, v in enumerate(equation.invars)]
        note = frame.notes.get(i)
        if isinstance(note, Frame):
            results = run(note, operands)
        elif control is not None and isinstance(note, Branches):
            taken = [run(branch, operands[1:]) for branch in note.frames]
            results = [control.join(outs, operands[:1]) for outs in zip(*taken, strict=True)]
        elif control is not None and isinstance(note, Loop):
            results = _interpret_loop(note, operands, run, control)
        else:
            ins = [frame.read(v, store) for v in equation.invars]
            outs = [frame.read(v, store) for v in equation.outvars]
            if visit is not None:
                visit(frame, i)
            results = transfer(equation, ins, outs, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in inner.outvars]


def _interpret_loop(
    loop: Loop,
    operands: list[V],
    run: Callable[[Frame, Sequence[V]], list[V]],
    control: Control[V],
) -> list[V]:
    """Finds carries that hold before every step, then walks the body with them."""
    tests, constants, carries, stacked = loop_parts(loop.counts, operands)
    slices = [control.step(value) for value in stacked]

    def advance(carries: list[V]) -> list[V]:
        return run(loop.body, [*constants, *carries, *slices])

    carries = control.settled(carries, lambda c: advance(c)[: len(c)])
    decide = run(loop.condition, [*tests, *carries]) if loop.condition is not None else []
    after = advance(carries)
    n = len(carries)
    pairs = zip(carries, after[:n], strict=True)
    return [*(control.join(p, decide) for p in pairs), *map(control.stack, after[n:])]
