"""The walk through a jaxpr: constants, reasons, and abstract evaluation of what was walked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ifjax.jaxprs import compat
from ifjax.jaxprs import walk as flow
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.rules import rule_of
from ifjax.jaxprs.walk import Context, Frame, Reason, constant_axes, walk
from ifjax.structure import axis as ex


def runs(value) -> list[list[int]]:
    """Sizes of the free classes along every axis of a constant; 0 where it is pinned."""
    store = AxisStore()
    found = []
    for node in constant_axes(store, value):
        e = store.resolve(node, str)
        parts = e.segments if isinstance(e, ex.Sum) else (e,)
        found.append([p.size if isinstance(p, ex.Atom) else 0 for p in parts])
    return found


def test_constants_are_split_into_runs_of_equal_slices():
    assert runs(np.zeros((4, 3))) == [[4], [3]]
    assert runs(np.repeat([1.0, 2.0, 1.0], [2, 4, 3])) == [[2, 4, 3]]
    assert runs(np.kron(np.eye(2), np.ones((2, 3)))) == [[2, 2], [3, 3]]
    assert runs(np.arange(5)) == [[0]]
    assert runs(np.eye(4)) == [[0], [0]]
    assert runs(np.ones((3, 1, 0))) == [[3], [0], [0]]
    assert runs(np.array(2.0)) == []
    assert runs(np.array([1, 1, 2, 3])) == [[2, 0]]
    assert runs(np.full(4, np.nan)) == [[0]]
    assert runs(np.array([True, True, False, False])) == [[2, 2]]
    assert runs(jnp.array([[1, 1], [1, 1]], jnp.bfloat16)) == [[2], [2]]


def test_constants_with_too_many_runs_random_keys_and_tracers_are_pinned(monkeypatch):
    assert runs(jax.random.split(jax.random.key(0), 3)) == [[0]]
    monkeypatch.setattr(flow, "MAX_RUNS", 1)
    assert runs(np.repeat([1.0, 2.0, 3.0], 2)) == [[0]]
    assert runs(np.repeat([1.0, 2.0], 2)) == [[2, 2]]
    inside = []
    jax.jit(lambda x: inside.append(runs(x)) or x)(jnp.zeros(3))
    assert inside == [[[0]]]


def walked(f, *shapes):
    closed = jax.make_jaxpr(f)(*(jnp.zeros(s) for s in shapes))
    store = AxisStore()
    inputs = [tuple(store.fresh(n) for n in s) for s in shapes]
    frame, outputs = walk(Context(store, rule_of), closed, inputs)
    return frame, store, inputs, outputs


def test_walking_relates_the_outputs_to_the_inputs():
    _, store, [x, w], [y] = walked(lambda x, w: jax.jit(jnp.tanh)(x @ w), (2, 3), (3, 4))
    assert store.find(x[1]) == store.find(w[0])
    assert [store.find(a) for a in y] == [store.find(x[0]), store.find(w[1])]


def test_a_reason_names_the_line_of_the_innermost_call_that_has_one():
    closed = jax.make_jaxpr(lambda x: jax.nn.log_softmax(x))(jnp.zeros(3))
    call = closed.eqns[0]
    silent = getattr(call.params["jaxpr"], "jaxpr", call.params["jaxpr"]).eqns[0]
    assert str(Reason("why")) == "why"
    assert "test_walk.py" in str(Reason("why", (silent, call)))


def test_a_frame_reads_literals_of_no_axes():
    closed = jax.make_jaxpr(lambda x: x * 2.0)(jnp.zeros(3))
    (equation,) = closed.eqns
    assert Frame(compat.unpack(closed)[0], []).read(equation.invars[1], AxisStore()) == ()
