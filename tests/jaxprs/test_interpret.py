"""Walked jaxprs evaluated on abstract values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from ifjax.jaxprs.interpret import interpret
from tests.jaxprs.test_walk import walked


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["flat", "jit", "remat"]
)
def test_interpreting_follows_calls(wrap):
    """Counting contractions on the way: an abstract value is how many lie behind it."""

    def f(x, w):
        return wrap(lambda x: jnp.tanh(x @ w) @ w)(x) + x

    frame, store, _, _ = walked(f, (2, 3), (3, 3))

    def transfer(equation, ins, outs, values):
        assert len(ins) == len(values)
        dot = equation.primitive.name == "dot_general"
        return [max(values) + dot] * len(outs)

    assert interpret(frame, store, [0, 0], transfer, lambda _: 0) == [2]
