"""Integers known before the function runs: every function against jax, and what stays unknown."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ifjax.jaxprs import constants as static
from tests.jaxprs.rules.commuting import Walked

A = np.array([[3, -1, 2], [0, 5, -4]], np.int32)
B = np.array([[1, 1, -2], [7, 5, 4]], np.int32)

COMPUTED = {
    "arithmetic": lambda: lax.rem(-(jnp.asarray(A) * 3 + B - 1), jnp.asarray(B)),
    "logic": lambda: jnp.where(((A < B) | (A == 3)) & (B != 5), jnp.asarray(A), B),
    "order": lambda: lax.max(jnp.asarray(A), lax.min(jnp.asarray(B), 2)) >= 1,
    "clamp": lambda: lax.clamp(np.int32(0), jnp.asarray(A), np.int32(2)) <= jnp.asarray(B),
    "shape": lambda: jnp.asarray(A).T.reshape(6)[1:6:2][::-1][:, None].squeeze(1) > 0,
    "joined": lambda: jnp.concatenate([jnp.asarray(A), B], 1).astype(np.int8),
    "counted": lambda: lax.broadcasted_iota(np.int32, (2, 3), 1) + lax.iota(np.int32, 3),
    "cases": lambda: lax.select_n(jnp.asarray(A) % 3, jnp.asarray(A), B, 2 * A),
    "wrapped around": lambda: jnp.asarray(np.full(3, 2**31 - 1, np.int32)) + 1,
    "calls": lambda: jax.jit(lambda a, b: (a - b, jnp.where(a > 0, a, b)))(jnp.asarray(A), B)[1],
    "remainder": lambda: jnp.asarray(A) % 4,
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.promotes(
    dtypes="its functions mix dtypes", ranks="its networks add vectors to matrices"
)
def test_values_are_those_of_jax(name):
    f = COMPUTED[name]
    walked = Walked(lambda x: jnp.sum(x) + f(), np.zeros(2))
    found = [x for x in walked.frame.numbers.values() if x.shape == f().shape]
    assert any(np.array_equal(x, f()) and x.dtype == f().dtype for x in found)


@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_what_depends_on_data_is_unknown():
    def f(x, n):
        positions = jnp.argsort(x) + n
        return positions + jnp.cumsum(positions), lax.iota(int, 2) * 0.5

    walked = Walked(f, np.zeros(2), np.int64(3))
    inner = walked.frame.jaxpr
    assert all(walked.frame.number(v) is None for v in inner.outvars)
    assert all(walked.frame.number(v) is None for v in inner.invars)


@pytest.mark.parametrize(
    "value",
    [1.5, np.zeros(3), np.zeros(static.LIMIT + 1, int), jax.random.key(0), "text", None],
    ids=["float", "floats", "large", "key", "text", "none"],
)
def test_only_integers_of_moderate_size_count(value):
    assert static.as_number(value) is None


@pytest.mark.parametrize("value", [True, 3, np.int8(4), np.arange(3), jnp.arange(3)])
def test_integers_count(value):
    assert np.array_equal(static.as_number(value), value)


def test_one_jitted_function_of_two_arguments_has_two_values():
    """A call is walked anew for every use."""
    double = jax.jit(lambda i: 2 * i)

    with jax.enable_x64(True):
        walked = Walked(
            lambda x: (
                lax.dynamic_slice(x, (double(np.int32(0)),), (2,))
                + lax.dynamic_slice(x, (double(np.int32(1)),), (2,))
            ),
            np.arange(6.0),
        )
    assert walked.signature() == "(a+a+b) > a"
