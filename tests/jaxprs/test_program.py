"""Programs: the equations of calls among the others, numbered."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.program import flatten
from ifjax.jaxprs.rules import rule_of
from ifjax.jaxprs.traits import traits_of
from ifjax.jaxprs.walk import Context, walk
from tests.graph.laws import array


def as_jaxpr(f, *args):
    return jax.make_jaxpr(f)(*args)


def as_frame(f, *args):
    """The same, walked."""
    jaxpr, store = jax.make_jaxpr(f)(*args), AxisStore()
    axes = [tuple(map(store.fresh, v.aval.shape)) for v in jaxpr.jaxpr.invars]
    return walk(Context(store, rule_of), jaxpr, axes)[0]


def both(f, *args, data=None, **options):
    """Programs of the function as it is and as it is walked."""
    data = data or [True] * len(args)
    return [flatten(form(f, *args), data, **options) for form in (as_jaxpr, as_frame)]


def names(steps):
    return [step.equation.primitive.name for step in steps]


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
TABLE = array(4, 4, seed=9)


def calls(w, b, x):
    """Every kind of call, one inside the other; a constant, a literal, and a result unused."""
    h = jax.jit(lambda x: jax.nn.relu(x @ w) + jnp.sin(b))(x)
    jnp.exp(h)
    h = jax.checkpoint(lambda h: jax.jit(jnp.tanh)(h @ TABLE))(h)
    return doubled(h), h, 1.0


ARGS = (array(3, 4), array(4, seed=1), array(5, 3, seed=2))


@pytest.mark.parametrize("program", both(calls, *ARGS, data=[False, False, True]))
def test_calls_are_taken_apart(program):
    assert all(not traits_of(step.equation).body for step in program.steps)
    by_data = dict(zip(names(program.steps), (any(s.data) for s in program.steps), strict=True))
    assert by_data["sin"] is False
    assert by_data["max"] is by_data["tanh"] is by_data["dot_general"] is True
    read = [n for step in program.steps for n in step.inputs] + program.outputs
    assert program.uses == [read.count(n) for n in range(len(program.uses))]
    made = [n for step in program.steps for n in step.outputs]
    assert sorted([*program.inputs, *program.constants, *made]) == [*range(len(program.data))]


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_numbers_of_a_walked_function_name_its_variables():
    frame = as_frame(calls, *ARGS)
    program = flatten(frame, [True] * 3)
    assert [program.numbers[id(frame), v] for v in frame.jaxpr.invars] == program.inputs
    for step in program.steps:
        assert step.frame is not None
        assert step.frame.jaxpr.eqns[step.index] is step.equation
        for var, number in zip(step.equation.outvars, step.outputs, strict=True):
            assert program.numbers[id(step.frame), var] == number


def test_steps_know_the_calls_around_them():
    def f(x):
        return jax.jit(lambda x: jnp.sin(x))(x) + jnp.cos(x)

    steps = flatten(as_jaxpr(f, 1.0), [True]).steps
    assert [len(step.callers) for step in steps] == [1, 0, 0]


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_as_many_flags_as_inputs():
    with pytest.raises(ValueError, match="each of 3 inputs, got 1"):
        flatten(as_jaxpr(calls, *ARGS), [True])
