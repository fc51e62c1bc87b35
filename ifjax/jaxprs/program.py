"""A function as one flat program: the equations of its calls among its own, on numbered values."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.typing import ArrayLike

from ifjax.jaxprs import compat
from ifjax.jaxprs.traits import traits_of
from ifjax.jaxprs.walk import Frame


@dataclasses.dataclass(frozen=True)
class Step:
    """One equation of a program, and where it stands.

    Attributes:
      equation: as its jaxpr has it.
      inputs: numbers of its operands.
      outputs: numbers of its results.
      data: by operand, whether it depends on the data.
      callers: the equations of the calls and loops around it, the innermost first.
      frame: of a walked function, the frame it stands in.
      index: its place among the equations of its jaxpr, ``frame.notes.get(index)`` is its note.
    """

    equation: JaxprEqn
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    data: tuple[bool, ...]
    callers: tuple[JaxprEqn, ...] = ()
    frame: Frame | None = None
    index: int = 0

    @property
    def note(self) -> object:
        """What the rule of its primitive noted when the function was walked."""
        return None if self.frame is None else self.frame.notes.get(self.index)


@dataclasses.dataclass
class Program:
    """The equations of a function with those of its calls among them, on numbered values.

    Attributes:
      steps: in an order in which they can be evaluated.
      inputs: numbers of the inputs.
      outputs: numbers of the outputs.
      constants: values that are known beforehand: closed over, or literal.
      data: by number, whether a value depends on the data.
      uses: by number, how often a value is an operand or an output.
      numbers: of a walked function, numbers by the frame's `id` and the variable.
    """

    steps: list[Step] = dataclasses.field(default_factory=list)
    inputs: list[int] = dataclasses.field(default_factory=list)
    outputs: list[int] = dataclasses.field(default_factory=list)
    constants: dict[int, ArrayLike] = dataclasses.field(default_factory=dict)
    data: list[bool] = dataclasses.field(default_factory=list)
    uses: list[int] = dataclasses.field(default_factory=list)
    numbers: dict[tuple[int, Var], int] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def made(self) -> dict[int, int]:
        """By number of a value, the place of the step that makes it."""
        return {n: place for place, step in enumerate(self.steps) for n in step.outputs}

    @functools.cached_property
    def origins(self) -> dict[int, frozenset[int]]:
        """By number of a value of parameters alone, the inputs that it depends on."""
        found = {n: frozenset({n}) for n in self.inputs if not self.data[n]}
        for step in self.steps:
            if not any(step.data):
                whole = frozenset[int]().union(*(found.get(n, ()) for n in step.inputs))
                found |= dict.fromkeys(step.outputs, whole)
        return found

    def _fresh(self, data: bool) -> int:
        self.data.append(data)
        self.uses.append(0)
        return len(self.data) - 1

    def _constant(self, value: ArrayLike) -> int:
        number = self._fresh(False)
        self.constants[number] = value
        return number

    def _use(self, numbers: Sequence[int]) -> tuple[int, ...]:
        for number in numbers:
            self.uses[number] += 1
        return tuple(numbers)

    def _add(
        self,
        function: Frame | Jaxpr | ClosedJaxpr,
        operands: Sequence[int],
        callers: tuple[JaxprEqn, ...],
        calls: Callable[[JaxprEqn], bool],
    ) -> list[int]:
        """Adds the equations of a jaxpr; returns the numbers of its outputs."""
        frame = function if isinstance(function, Frame) else None
        inner, constvars, constants = _unpack(function)
        known: dict[Var, int] = dict(zip(inner.invars, operands, strict=True))
        known |= zip(constvars, map(self._constant, constants), strict=True)

        def number(atom: Var | Literal) -> int:
            return self._constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for i, equation in enumerate(inner.eqns):
            ins = [number(v) for v in equation.invars]
            body = traits_of(equation).body if calls(equation) else ""
            if body:
                note = None if frame is None else frame.notes[i]
                called = note if isinstance(note, Frame) else equation.params[body]
                outs = self._add(called, ins, (equation, *callers), calls)
            else:
                data = tuple(self.data[n] for n in ins)
                outs = [self._fresh(any(data)) for _ in equation.outvars]
                numbers = self._use(ins), tuple(outs)
                self.steps.append(Step(equation, *numbers, data, callers, frame, i))
            known |= zip(equation.outvars, outs, strict=True)
        if frame is not None:
            self.numbers |= {(id(frame), var): n for var, n in known.items()}
        return [number(v) for v in inner.outvars]


def _unpack(function: Frame | Jaxpr | ClosedJaxpr) -> tuple[Jaxpr, list[Var], list[ArrayLike]]:
    """The jaxpr, its constant variables and their values."""
    if not isinstance(function, Frame):
        return compat.unpack(function)
    inner, constvars, _ = compat.unpack(function.jaxpr)
    return inner, constvars, function.constants


def flatten(
    function: Frame | Jaxpr | ClosedJaxpr,
    data: Sequence[bool],
    *,
    calls: bool | Callable[[JaxprEqn], bool] = True,
    callers: tuple[JaxprEqn, ...] = (),
) -> Program:
    """Takes the calls of a function apart.

    Args:
      function: a jaxpr, or the frame of a walked one.
      data: for every input, whether it is data (and not a parameter).
      calls: whether to take calls apart, or which; the others are steps.
      callers: equations of the calls and loops around the function, the innermost first.

    Returns:
      The program; loops and branches are single steps of it.

    Raises:
      ValueError: if ``data`` is not as long as the function has inputs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jaxpr = jax.make_jaxpr(lambda w, x: jax.nn.relu(x @ w))(jnp.ones((3, 4)), jnp.ones(3))
      >>> [step.equation.primitive.name for step in flatten(jaxpr, [False, True]).steps]
      ['dot_general', 'max']
    """
    inner, _, _ = _unpack(function)
    if len(data) != len(inner.invars):
        raise ValueError(f"expected a flag for each of {len(inner.invars)} inputs, got {len(data)}")
    program = Program()
    program.inputs += map(program._fresh, data)
    asked = calls if callable(calls) else lambda equation: bool(calls)
    outputs = program._add(function, program.inputs, callers, asked)
    program.outputs += program._use(outputs)
    return program
