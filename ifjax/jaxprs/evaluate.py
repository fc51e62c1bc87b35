"""Evaluates a program equation by equation, while an observer looks on.

An equation runs once its operands are known, whoever made them known: given parameters alone, what
parameters alone determine is evaluated; and an observer may hand in a value that others wait for. A
value is freed after its last use.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.typing import ArrayLike
from jaxtyping import Array

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import Values
from ifjax.jaxprs.program import Program, Step, flatten
from ifjax.jaxprs.traits import traits_of
from ifjax.jaxprs.walk import Branches, Frame, Loop, loop_parts


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an observer gets to see.

    Attributes:
      step: the equation that was evaluated.
      operands: its operands.
      results: its results.
      turns: the turn of every loop around it that is taken apart, the outermost first.
    """

    step: Step
    operands: Values
    results: Values
    turns: tuple[int, ...] = ()


Observer = Callable[[Seen], Mapping[int, ArrayLike] | None]
Apply = Callable[[Step, Values], Values]


def bind(step: Step, operands: Values) -> Values:
    """The results of an equation, as it stands."""
    return compat.bind(step.equation, operands)


def evaluate(
    program: Program,
    values: Mapping[int, ArrayLike],
    observe: Observer = lambda seen: None,
    *,
    apply: Apply = bind,
    keep: Iterable[int] | None = None,
    inside: Callable[[Step], bool] = lambda step: False,
) -> dict[int, ArrayLike]:
    """Evaluates a program, or as much of it as what is known allows.

    Args:
      program: made by `flatten`.
      values: known values by number, traced or not; constants need not be among them.
      observe: gets every equation's operands and results; may return further values by number, for
        which others wait.
      apply: evaluates an equation.
      keep: numbers of the values to be returned; None for the outputs.
      inside: whether to take a loop or branch apart, so that the equations inside are seen turn by
        turn, but for the conditions of while loops. A scan is unrolled; where a traced value
        decides how to go on, the rest of the step stays whole.

    Returns:
      The kept values by number, those that became known.

    Raises:
      ValueError: if the observer gives a value that is known already, or gives one inside a loop.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from ifjax.jaxprs.program import flatten
      >>> w, x = jnp.ones((2, 2)), jnp.ones(2)
      >>> program = flatten(jax.make_jaxpr(lambda w, x: x @ (2 * w))(w, x), [False, True])
      >>> names = []
      >>> evaluate(program, {0: w, 1: x}, lambda s: names.append(s.step.equation.primitive.name))
      {4: Array([4., 4.], dtype=float32)}
      >>> names
      ['mul', 'dot_general']
      >>> [kernel] = {n for n in program.steps[1].inputs if not program.data[n]}
      >>> evaluate(program, {0: w}, keep=[kernel])[kernel].tolist()  # of parameters alone
      [[2.0, 2.0], [2.0, 2.0]]
    """
    kept = frozenset(program.outputs if keep is None else keep)
    known = {**program.constants, **values}
    left = Counter(itertools.chain.from_iterable(step.inputs for step in program.steps))
    unknown = [{n for n in step.inputs if n not in known} for step in program.steps]
    waiting: dict[int, list[int]] = defaultdict(list)
    for place, numbers in enumerate(unknown):
        for number in numbers:
            waiting[number].append(place)
    ready = [place for place, numbers in enumerate(unknown) if not numbers]  # a heap: in order

    def learn(found: Mapping[int, ArrayLike]) -> None:
        for number, value in found.items():
            if left[number] or number in kept:
                known[number] = value
            for place in waiting.pop(number, ()):
                unknown[place].remove(number)
                if not unknown[place]:
                    heapq.heappush(ready, place)

    while ready:
        step = program.steps[heapq.heappop(ready)]
        operands = [known[n] for n in step.inputs]
        results = _taken_apart(program, step, operands, observe, apply, inside)
        if results is None:
            results = apply(step, operands)
        given = observe(Seen(step, operands, results)) or {}
        left.subtract(step.inputs)
        for number in step.inputs:
            if not left[number] and number not in kept:
                known.pop(number, None)
        learn(dict(zip(step.outputs, results, strict=True)))
        if not given.keys().isdisjoint(known):
            raise ValueError(
                f"values {sorted(given.keys() & known.keys())} are known: an observer may give "
                "those alone that nothing else does"
            )
        learn(given)
    return {n: known[n] for n in kept if n in known}


Run = Callable[
    [Frame | Jaxpr | ClosedJaxpr, Values, list[bool], Observer], tuple[Values, list[bool]]
]


def _taken_apart(
    program: Program,
    step: Step,
    operands: Values,
    observe: Observer,
    apply: Apply,
    inside: Callable[[Step], bool],
) -> Values | None:
    """The results of a loop or branch whose equations are seen; None where it stays whole."""
    if traits_of(step.equation).kind != "control" or not inside(step):
        return None
    programs: dict[tuple[int, ...], Program] = {}
    flags = list(step.data)

    def run(
        body: Frame | Jaxpr | ClosedJaxpr, args: Values, data: list[bool], watch: Observer
    ) -> tuple[Values, list[bool]]:
        key = (id(body), *data)
        if key not in programs:
            programs[key] = flatten(body, data, callers=(step.equation, *step.callers))
        inner = programs[key]
        values = dict(zip(inner.inputs, args, strict=True))
        found = evaluate(inner, values, watch, apply=apply, inside=inside)
        return [found[n] for n in inner.outputs], [inner.data[n] for n in inner.outputs]

    def watch(*turn: int) -> Observer:
        def look(seen: Seen) -> None:
            if observe(dataclasses.replace(seen, turns=(*turn, *seen.turns))):
                raise ValueError("an observer may give values between loops, not inside of one")

        return look

    match step.equation.primitive.name:
        case "scan":
            return _scan(step, operands, flags, run, watch)
        case "while":
            return _while(step, operands, flags, run, watch, apply)
    return _branch(step, operands, flags, run, watch)


def _scan(
    step: Step, operands: Values, flags: list[bool], run: Run, watch: Callable[..., Observer]
) -> Values | None:
    p, note = step.equation.params, step.note
    body = note.body if isinstance(note, Loop) else p["jaxpr"]
    counts = (0, *compat.scan_counts(step.equation))
    _, constants, carries, arrays = loop_parts(counts, operands)
    stacked = cast("list[Array]", arrays)
    _, fixed, moving, sliced = loop_parts(counts, flags)
    length, n = p["length"], counts[2]
    if not length:
        return None
    rows: list[list[ArrayLike]] = [[] for _ in step.outputs[n:]]
    for turn in reversed(range(length)) if p["reverse"] else range(length):
        args = [*constants, *carries, *(x[turn] for x in stacked)]
        results, data = run(body, args, [*fixed, *moving, *sliced], watch(turn))
        carries, moving = results[:n], data[:n]
        for row, x in zip(rows, results[n:], strict=True):
            row.append(x)
    return [*carries, *(jnp.stack(row[::-1] if p["reverse"] else row) for row in rows)]


def _while(
    step: Step,
    operands: Values,
    flags: list[bool],
    run: Run,
    watch: Callable[..., Observer],
    apply: Apply,
) -> Values | None:
    p, note = step.equation.params, step.note
    walked = isinstance(note, Loop)
    condition = (note.condition if walked else None) or p["cond_jaxpr"]
    body = note.body if walked else p["body_jaxpr"]
    counts = p["cond_nconsts"], p["body_nconsts"], len(step.outputs)
    tests, constants, carries, _ = loop_parts(counts, operands)
    asked, fixed, moving, _ = loop_parts(counts, flags)
    for turn in itertools.count():
        more = run(condition, [*tests, *carries], [*asked, *moving], lambda seen: None)[0][0]
        if isinstance(more, Tracer) or jnp.ndim(more):
            return apply(step, [*tests, *constants, *carries])
        if not more:
            return carries
        carries, moving = run(body, [*constants, *carries], [*fixed, *moving], watch(turn))


def _branch(
    step: Step, operands: Values, flags: list[bool], run: Run, watch: Callable[..., Observer]
) -> Values | None:
    if isinstance(operands[0], Tracer) or jnp.ndim(operands[0]):
        return None
    note = step.note
    bodies = note.frames if isinstance(note, Branches) else step.equation.params["branches"]
    chosen = bodies[min(max(int(np.asarray(operands[0])), 0), len(bodies) - 1)]
    return run(chosen, operands[1:], flags[1:], watch())[0]
