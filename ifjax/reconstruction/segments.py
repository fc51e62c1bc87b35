"""Pieces of a program, compiled as one function each; pieces that are alike share it.

Two layers of a network are the same equations on other numbers. A piece is therefore known by its
*form*: primitives, parameters, shapes and which value goes where. What it reads, weights too, are
arguments.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import Values
from ifjax.jaxprs.compiling import UNSIMPLIFIED, compiler_options
from ifjax.jaxprs.program import Program, Step

Key = tuple[int, bool]  # a value's number, and whether the dense function's is meant


@dataclasses.dataclass(frozen=True)
class Job:
    """One equation to be evaluated.

    Attributes:
      evaluate: gives its results.
      inputs: what it reads.
      outputs: what it makes.
    """

    evaluate: Callable[[Values], Values]
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]


def job_of(
    step: Step,
    dense: bool,
    evaluate: Callable[[Values], Values],
    same: Collection[int] = (),
) -> Job:
    """A step of one of the two functions; some of what the small one reads is the dense one's."""
    inputs = tuple((n, dense or n in same) for n in step.inputs)
    return Job(evaluate, inputs, tuple((n, dense) for n in step.outputs))


def expanded(program: Program) -> set[int]:
    """Values of constants alone, or larger than the parameters that they are made of.

    A mask for every example is as large as a value of the function. They are made where they are
    read, each time anew, and not kept.
    """
    found: set[int] = set()
    for step in program.steps:
        if any(step.data) or not step.outputs:
            continue
        made, read = (
            max((math.prod(compat.shape_of(v)) for v in variables), default=0)
            for variables in (step.equation.outvars, step.equation.invars)
        )
        has_leaves = any(program.origins.get(n) for n in step.outputs)
        if not has_leaves or made > read or not found.isdisjoint(step.inputs):
            found.update(step.outputs)
    return found


def compiled(
    jobs: Sequence[Job],
    constants: Callable[[Key], Any],
    first: Callable[[Key], Any],
    wanted: Sequence[Key],
) -> Callable[[Callable[[Key], Any]], dict[Key, Any]]:
    """Several equations as one compiled function.

    Args:
      jobs: in an order in which they can be evaluated.
      constants: the value where it is known beforehand and may decide on shapes, or None.
      first: any other value that is read, for its shape and dtype.
      wanted: what is needed afterwards.

    Returns:
      The function: given what gives the values that are read, the wanted ones.

    Example:
      >>> job = Job(lambda x: [x[0] * 2], ((0, True),), ((1, True),))
      >>> call = compiled([job], lambda key: None, lambda key: np.ones(3), [(1, True)])
      >>> call(lambda key: np.arange(3.0))[1, True].tolist()
      [0.0, 2.0, 4.0]
    """
    made = {key for job in jobs for key in job.outputs}
    outside = dict.fromkeys(k for job in jobs for k in job.inputs if k not in made)
    given = {key: constants(key) for key in outside}
    read = [key for key, value in given.items() if value is None]
    fixed = {key: value for key, value in given.items() if value is not None}

    def function(*args: Any) -> list[Any]:
        known = {**fixed, **dict(zip(read, args, strict=True))}
        for job in jobs:
            results = job.evaluate([known[key] for key in job.inputs])
            known |= zip(job.outputs, results, strict=True)
        return [known[key] for key in wanted]

    inner, constvars, consts = compat.unpack(jax.make_jaxpr(function)(*map(first, read)))
    piece = _Piece(inner, tuple(constvars), _form(inner, constvars))

    evaluated = _call if compiler_options(inner.eqns) is None else _call_unsimplified

    def call(value: Callable[[Key], Any]) -> dict[Key, Any]:
        results = evaluated(piece, consts, [value(key) for key in read])
        return dict(zip(wanted, results, strict=True))

    return call


@dataclasses.dataclass(frozen=True, eq=False)
class _Piece:
    """A traced piece; equal to all that have its form."""

    jaxpr: Jaxpr
    constvars: tuple[Var, ...]
    form: Hashable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Piece) and self.form == other.form

    def __hash__(self) -> int:
        return hash(self.form)


def _evaluated(piece: _Piece, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    variables = [*piece.constvars, *piece.jaxpr.invars]
    known = dict(zip(variables, [*consts, *args], strict=True))

    def value(atom: compat.Atom) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in piece.jaxpr.eqns:
        results = compat.bind(equation, list(map(value, equation.invars)))
        known |= zip(equation.outvars, results, strict=True)
    return list(map(value, piece.jaxpr.outvars))


_call = jax.jit(_evaluated, static_argnums=0)
_call_unsimplified = jax.jit(_evaluated, static_argnums=0, compiler_options=UNSIMPLIFIED)


@dataclasses.dataclass(frozen=True, eq=False)
class _Itself:
    """What is equal to itself alone, and stays alive to be so."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _form(jaxpr: Jaxpr, constvars: Sequence[Var]) -> Hashable:
    """Everything about a jaxpr but the names of its variables and where it was written."""
    numbers: dict[Var, int] = {}

    def atom(a: compat.Atom) -> Hashable:
        if isinstance(a, Literal):
            value = np.asarray(a.val)
            return (value.tobytes(), str(value.dtype), a.aval)
        return numbers.setdefault(a, len(numbers)), a.aval

    head = tuple(map(atom, [*constvars, *jaxpr.invars]))
    equations = tuple(
        (
            equation.primitive,
            _parameter(equation.params),
            equation.ctx,
            tuple(map(atom, equation.invars)),
            tuple(map(atom, equation.outvars)),
        )
        for equation in jaxpr.eqns
    )
    return head, equations, tuple(map(atom, jaxpr.outvars))


def _parameter(value: Any) -> Hashable:
    """A parameter of an equation, to be compared."""
    if isinstance(value, (Jaxpr, ClosedJaxpr)):
        inner, constvars, consts = compat.unpack(value)
        return _form(inner, constvars), tuple(map(_Itself, consts))
    if isinstance(value, dict):
        return tuple((name, _parameter(x)) for name, x in sorted(value.items()))
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_parameter, value))
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return type(value), value
