"""The evaluator against the functions themselves, and what an observer sees of them."""

from __future__ import annotations

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ifjax.jaxprs.evaluate import bind, evaluate
from ifjax.jaxprs.program import flatten
from tests.graph.laws import array
from tests.jaxprs.test_program import ARGS, as_jaxpr, both, calls, names


def run(program, *args, **options):
    found = evaluate(program, dict(zip(program.inputs, args, strict=True)), **options)
    return [found[n] for n in program.outputs]


@pytest.mark.parametrize("program", both(calls, *ARGS, data=[False, False, True]))
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_through_every_kind_of_call(program):
    for got, want in zip(run(program, *ARGS), calls(*ARGS), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_calls_may_stay_whole():
    (program, _) = both(calls, *ARGS, calls=False)
    assert {*names(program.steps)} & {"pjit", "jit"}
    np.testing.assert_allclose(run(program, *ARGS)[0], calls(*ARGS)[0], rtol=1e-6)


def test_values_are_freed_after_their_last_use():
    def chain(x):
        y = x + 1.0
        for _ in range(20):
            x = jnp.sin(x)
        return x * y

    alive: list[weakref.ref] = []
    peak = []

    def apply(step, operands):
        results = bind(step, operands)
        alive.extend(map(weakref.ref, results))
        peak.append(sum(r() is not None for r in alive))
        return results

    x = array(3)
    (program, _) = both(chain, x)
    (found,) = run(program, x, apply=apply)
    np.testing.assert_allclose(found, chain(x), rtol=1e-6)
    assert len(alive) == 22
    assert max(peak) == 3  # y, an operand, a result


def test_parameters_alone_determine_a_part():
    def f(w, x):
        kernel = jnp.sin(w) * 2
        return x @ kernel, kernel.sum()

    w, x = array(3, 4), array(2, 3)
    (program, _) = both(f, w, x, data=[False, True])
    seen = []
    found = evaluate(program, {0: w}, lambda s: seen.append(s.step))
    assert [*found] == program.outputs[1:]
    np.testing.assert_allclose(found[program.outputs[1]], np.sin(w).sum() * 2, rtol=1e-6)
    assert not any(any(step.data) for step in seen)
    (product,) = (s for s in program.steps if s.equation.primitive.name == "dot_general")
    (kernel,) = (n for n in product.inputs if not program.data[n])
    values = evaluate(program, {0: w}, keep=[kernel])
    np.testing.assert_allclose(values[kernel], 2 * np.sin(w), rtol=1e-6)


def test_an_observer_gives_what_others_wait_for():
    """A mean that is that of what it is taken off: equations that read it come later."""

    def f(mean, x):
        slope = jnp.exp(mean)  # stands before what the mean is of
        return (jnp.sin(x) - mean) * slope

    x = array(5)
    (program, _) = both(f, jnp.zeros(()), x, data=[False, True])
    order = []

    def observe(seen):
        order.append(seen.step.equation.primitive.name)
        if order[-1] == "sin":
            return {program.inputs[0]: seen.results[0].mean()}
        return None

    found = evaluate(program, {program.inputs[1]: x}, observe)
    mean = np.sin(x).mean()
    np.testing.assert_allclose(
        found[program.outputs[0]], (np.sin(x) - mean) * np.exp(mean), rtol=1e-5
    )
    assert names(program.steps)[0] == "exp"
    assert order[0] == "sin"
    with pytest.raises(ValueError, match=r"values \[0\] are known"):
        evaluate(program, dict(enumerate((jnp.zeros(()), x))), observe)


def scanned(w, h, xs):
    def step(h, x):
        h = jnp.tanh(h @ w) + x
        return h, (h.sum(), x)

    return lax.scan(step, h, xs)


def backwards(w, h, xs):
    return lax.scan(lambda h, x: (jnp.sin(h) @ w + x, h), h, xs, reverse=True)


def looped(w, h, xs):
    def body(carry):
        i, h = carry
        return i + 1, lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ w), h) + xs[0]

    return lax.while_loop(lambda carry: carry[0] < 3, body, (0, h))[1]


def branched(w, h, xs):
    h = lax.cond(True, lambda h: jnp.tanh(h @ w), lambda h: h, h)
    return lax.switch(jnp.int32(7), [jnp.sin, jnp.cos, lambda h: h @ w + xs[1]], h)


LOOP_ARGS = (array(3, 3), array(2, 3, seed=1), array(4, 2, 3, seed=2))


@pytest.mark.parametrize("f", [scanned, backwards, looped, branched])
def test_inside_of_loops_turn_by_turn(f):
    want = jax.tree.leaves(f(*LOOP_ARGS))
    for program in both(f, *LOOP_ARGS, data=[False, True, True]):
        seen = []
        found = run(program, *LOOP_ARGS, observe=seen.append, inside=lambda step: True)
        for a, b in zip(found, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        products = [s for s in seen if s.step.equation.primitive.name == "dot_general"]
        turns = {
            "scanned": [(0,), (1,), (2,), (3,)],
            "backwards": [(3,), (2,), (1,), (0,)],
            "looped": [(i, j) for i in range(3) for j in range(2)],
            "branched": [(), ()],
        }[f.__name__]
        assert [s.turns for s in products] == turns
        assert all(s.step.data == (True, False) for s in products)
        assert all(s.step.callers for s in products)
        for s in products:
            np.testing.assert_allclose(s.results[0], s.operands[0] @ s.operands[1], rtol=1e-5)
        whole = []
        run(program, *LOOP_ARGS, observe=whole.append)
        assert not any(s.step.equation.primitive.name == "dot_general" for s in whole)


def test_what_is_carried_becomes_data():
    def f(w, xs):
        return lax.scan(lambda h, x: (h @ w + x, None), jnp.zeros((2, 3)), xs)[0]

    args = LOOP_ARGS[0], LOOP_ARGS[2]
    (program, _) = both(f, *args, data=[False, True])
    seen = []
    run(program, *args, observe=seen.append, inside=lambda step: True)
    products = [s.step.data for s in seen if s.step.equation.primitive.name == "dot_general"]
    assert products == [(False, False), *[(True, False)] * 3]


def test_where_traced_values_decide_the_step_stays_whole():
    @jax.jit
    def traced(w, h, n):
        def f(w, h, n):
            h = lax.cond(n > 2, jnp.sin, jnp.cos, h)
            h = lax.fori_loop(0, n, lambda _, h: jnp.tanh(h @ w), h)
            return lax.scan(lambda h, _: (h @ w, None), h, None, length=2)[0]

        seen = []
        program = flatten(as_jaxpr(f, w, h, n), [False, True, True])
        (found,) = run(program, w, h, n, observe=seen.append, inside=lambda step: True)
        count = names(s.step for s in seen)
        assert count.count("dot_general") == 2  # the scan is unrolled, under jit too
        assert {"cond", "while"} <= {*count}
        return found, f(w, h, n)

    found, want = traced(*LOOP_ARGS[:2], 3)
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_nothing_is_given_inside_of_a_loop():
    (program, _) = both(scanned, *LOOP_ARGS)
    with pytest.raises(ValueError, match="between loops"):
        run(program, *LOOP_ARGS, observe=lambda s: {0: 1.0} if s.turns else None,
            inside=lambda step: True)  # fmt: skip
