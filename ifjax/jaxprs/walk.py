"""Walks a jaxpr once and lets the rule of every primitive relate the axes of its operands."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.typing import ArrayLike

from ifjax.jaxprs import compat
from ifjax.jaxprs import constants as static
from ifjax.jaxprs import positions as places
from ifjax.jaxprs.axis_store import TIED, AxisStore
from ifjax.jaxprs.compat import AnyJaxpr, Atom, Values
from ifjax.jaxprs.positions import Positions
from ifjax.jaxprs.traits import traits_of

T = TypeVar("T")
Axes = tuple[int, ...]
MAX_RUNS = 64  # runs of equal slices along an axis of a constant, before it is pinned instead


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why something is pinned: the primitive, what about it, and lazily the source line."""

    text: str
    equations: tuple[JaxprEqn, ...] = ()

    def __str__(self) -> str:
        """The reason with the source line of the equation, or of the innermost call with one."""
        line = next(filter(None, map(compat.source_line, self.equations)), "")
        return f"{self.text} at {line}" if line else self.text


@dataclasses.dataclass
class Frame:
    """One walk through one jaxpr: the axes of its variables and what the rules noted."""

    jaxpr: Jaxpr
    constants: list[ArrayLike]
    axes: dict[Var, Axes] = dataclasses.field(default_factory=dict)
    notes: dict[int, object] = dataclasses.field(default_factory=dict)
    numbers: static.Numbers = dataclasses.field(default_factory=dict)
    positions: dict[Var, Positions] = dataclasses.field(default_factory=dict)

    def read(self, atom: Atom, store: AxisStore) -> Axes:
        """Axes of a variable or literal."""
        if isinstance(atom, Literal):
            return tuple(store.fresh(n) for n in np.shape(atom.val))
        return self.axes[atom]

    def number(self, atom: Atom) -> np.ndarray | None:
        """Value of an integer variable or literal that depends on constants alone."""
        if isinstance(atom, Literal):
            return static.as_number(atom.val)
        return self.numbers.get(atom)


@dataclasses.dataclass
class Loop:
    """What a walked scan or while notes: operands are tests, constants, carries, stacked arrays.

    Attributes:
      body: takes constants, carries and a slice of every stacked array.
      condition: of a while; takes tests and carries.
      counts: numbers of tests, constants and carries.
      steps: axis of the steps of a scan.
    """

    body: Frame
    condition: Frame | None
    counts: tuple[int, int, int]
    steps: int | None = None


def loop_parts(counts: Sequence[int], operands: Sequence[T]) -> list[list[T]]:
    """Tests, constants, carries and stacked arrays among a loop's operands."""
    ends = [0, *itertools.accumulate(counts), len(operands)]
    return [list(operands[a:b]) for a, b in itertools.pairwise(ends)]


@dataclasses.dataclass
class Branches:
    """What a walked cond notes: each branch takes all operands but the first, which chooses."""

    frames: tuple[Frame, ...]


def frames_of(note: object) -> list[Frame]:
    """The frames in what a rule has noted."""
    match note:
        case Frame():
            return [note]
        case Loop(body, condition):
            return [body] if condition is None else [body, condition]
        case Branches(frames):
            return list(frames)
    return []


@dataclasses.dataclass
class Context:
    """What a rule may do: relate axes, pin them, walk into a call, leave a note for rebuilding."""

    store: AxisStore
    rule: Callable[[str], Any]
    equation: JaxprEqn | None = None
    note: object = None
    macs: list[Axes] = dataclasses.field(default_factory=list)
    callers: tuple[JaxprEqn, ...] = ()
    frame: Frame | None = None
    chosen: list[int] = dataclasses.field(default_factory=list)

    def place(self, variable: Var, node: int, reason: str, counted: bool = False) -> None:
        """Notes that a result holds positions along an axis, see `ifjax.jaxprs.positions`."""
        assert self.frame is not None
        state = "counted" if counted else "found"
        self.frame.positions[variable] = Positions(node, self.reason(reason), state)
        if not counted:
            self.chosen.append(node)

    def follow_positions(self) -> None:
        """Notes the positions among an equation's results; pins axes that are read by them."""
        frame, equation = self.frame, self.equation
        assert frame is not None
        assert equation is not None
        held = {
            k: frame.positions[v]
            for k, v in enumerate(equation.invars)
            if isinstance(v, Var) and v in frame.positions
        }
        if not held or traits_of(equation).kind == "call":  # which is handed them
            return
        found = places.after(equation, held, self.store.size, self.unify)
        for one in held.values() if found is None else ():
            self.store.pin(one.node, one.reason)
        for k, one in (found or {}).items():
            frame.positions[equation.outvars[k]] = one

    def position(self, atom: Atom) -> int | None:
        """The axis that an operand holds positions of."""
        found = None
        if self.frame is not None and isinstance(atom, Var):
            found = self.frame.positions.get(atom)
        return found.node if found is not None and found.state == "found" else None

    def number(self, atom: Atom) -> np.ndarray | None:
        """Value of an integer operand that depends on constants alone."""
        return None if self.frame is None else self.frame.number(atom)

    def reason(self, text: str) -> Reason:
        """A reason that names this equation's primitive and source line."""
        assert self.equation is not None
        return Reason(f"{self.equation.primitive.name}: {text}", (self.equation, *self.callers))

    def unify(self, a: int, b: int) -> None:
        """States that two axes hold the same neurons."""
        if a != b:
            self.store.unify(a, b, self.reason("axes regrouped without a common factor"), self.tied)

    def unify_arrays(self, arrays: Sequence[Axes]) -> None:
        """States that arrays hold the same neurons, axis by axis."""
        for axes in arrays[1:]:
            for a, b in zip(arrays[0], axes, strict=True):
                self.unify(a, b)

    def tied(self) -> Reason:
        """Why axes are pinned that hold the same neurons in two orders, as x + x[order]."""
        return self.reason(TIED)

    def pin(self, nodes: Sequence[int], text: str) -> None:
        """Fixes axes, with the reason."""
        for node in nodes:
            self.store.pin(node, self.reason(text))

    def pinned(self, shape: Sequence[int], text: str) -> Axes:
        """Fresh axes that cannot be cut."""
        reason = self.reason(text)
        return tuple(self.store.pinned(n, reason) for n in shape)

    def pinned_instead(self, nodes: Sequence[int], size: int, text: str) -> int:
        """An axis that cannot be cut, in the place of others, which are fixed too."""
        self.pin(nodes, text)
        return self.pinned([size], text)[0]

    def opaque(self, operands: Sequence[Axes], text: str) -> list[Axes]:
        """The axes of this equation's results where nothing of it can be cut."""
        assert self.equation is not None
        for axes in operands:
            self.pin(axes, text)
        return [self.pinned(compat.shape_of(v), text) for v in self.equation.outvars]

    def fresh(self, shape: Sequence[int]) -> Axes:
        """Fresh free axes."""
        return tuple(self.store.fresh(n) for n in shape)

    def call(
        self, jaxpr: AnyJaxpr, inputs: Sequence[Axes], fixed: Sequence[Atom] = ()
    ) -> tuple[Frame, list[Axes]]:
        """Walks the jaxpr of a call; returns its frame, to be noted, and its outputs' axes.

        Of a loop or a branch, ``fixed`` are the operands that its first inputs always are.
        """
        equation, note, callers = self.equation, self.note, self.callers
        assert equation is not None
        self.callers = (equation, *callers)
        inner, _, _ = compat.unpack(jaxpr)
        here = self.frame if traits_of(equation).kind == "call" else None
        fixed = fixed if here is None else equation.invars
        known = zip(inner.invars, map(self.number, fixed), strict=False)
        given: static.Numbers = {v: x for v, x in known if x is not None}
        held: dict[Var, Positions] | None = None
        if here is not None:
            held = {
                v: here.positions[atom]
                for v, atom in zip(inner.invars, equation.invars, strict=True)
                if isinstance(atom, Var) and atom in here.positions
            }
        frame, outputs = walk(self, jaxpr, inputs, numbers=given, positions=held)
        if here is not None:
            for outer, own in zip(equation.outvars, inner.outvars, strict=True):
                if isinstance(own, Var) and own in frame.positions:
                    here.positions[outer] = frame.positions[own]
            results = zip(equation.outvars, map(frame.number, inner.outvars), strict=True)
            here.numbers.update({v: x for v, x in results if x is not None})
        self.equation, self.note, self.callers = equation, note, callers
        return frame, outputs


def walk(
    context: Context,
    jaxpr: AnyJaxpr,
    inputs: Sequence[Axes],
    constants: Values = (),
    numbers: static.Numbers | None = None,
    positions: Mapping[Var, Positions] | None = None,
) -> tuple[Frame, list[Axes]]:
    """Relates the axes of all variables of a jaxpr.

    Args:
      context: holds the axis store and the rules.
      jaxpr: open or closed.
      inputs: axes of the jaxpr's inputs.
      constants: values of the constant variables of an open jaxpr.
      numbers: known integers among the inputs, by variable.
      positions: positions along axes among the inputs of a call, which hands on those among its
        results; without, they pin their axes.

    Returns:
      The frame, and the axes of the outputs.
    """
    store = context.store
    inner, constvars, values = compat.unpack(jaxpr)
    values = values or list(constants)
    frame = Frame(inner, values, numbers=static.numbers(constvars, values) | (numbers or {}))
    frame.positions.update(positions or {})
    outer, context.frame = context.frame, frame
    for var, value in zip(constvars, values, strict=True):
        frame.axes[var] = constant_axes(store, value)
    frame.axes.update(zip(inner.invars, inputs, strict=True))
    for i, equation in enumerate(inner.eqns):
        context.equation, context.note = equation, None
        operands = [frame.read(v, store) for v in equation.invars]
        context.follow_positions()
        results = context.rule(equation.primitive.name).flow(context, equation, operands)
        frame.axes.update(zip(equation.outvars, results, strict=True))
        if context.note is not None:
            frame.notes[i] = context.note
        frame.numbers.update(static.evaluate(equation, frame.numbers))
    if positions is None:
        for v in inner.outvars:
            if isinstance(v, Var) and v in frame.positions:
                store.pin(frame.positions[v].node, frame.positions[v].reason)
    context.frame = outer
    return frame, [frame.read(v, store) for v in inner.outvars]


def constant_axes(store: AxisStore, value: ArrayLike) -> Axes:
    """Axes of a closed-over array: a free class per run of equal slices, pinned where too many.

    A rotary table or a mask differs from slice to slice and is pinned; an array of zeros is not.
    """
    shape = np.shape(value)
    dtype = getattr(value, "dtype", None)
    if isinstance(value, Tracer) or dtype is None:
        return tuple(store.pinned(n, "constant that is traced") for n in shape)
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return tuple(store.pinned(n, "constant random key") for n in shape)
    array = np.asarray(value)
    axes = []
    for axis, n in enumerate(shape):
        if n < 2 or array.size == 0:
            axes.append(store.fresh(n))
            continue
        slices = np.moveaxis(array, axis, 0).reshape(n, -1)
        changes = (np.flatnonzero((slices[1:] != slices[:-1]).any(1)) + 1).tolist()
        if len(changes) == n - 1 or len(changes) > MAX_RUNS:
            axes.append(store.pinned(n, "constant whose values depend on the index"))
        else:
            axes.append(
                store.sum([store.fresh(int(r)) for r in np.diff(np.array([0, *changes, n]))])
            )
    return tuple(axes)
