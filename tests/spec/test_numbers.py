"""Numbers of numpy and jax as Python's."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.spec.numbers import is_real, plain_number


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.float32(0.1), 0.1),
        (np.float64(0.1), 0.1),
        (jnp.bfloat16(0.5), 0.5),
        (jnp.int32(3), 3),
        (np.bool_(True), True),
        (2, 2),
        ("a", "a"),
        (None, None),
    ],
)
def test_a_number_is_python_s(value, plain):
    found = plain_number(value)
    assert (found, type(found)) == (plain, type(plain))


def test_arrays_and_tracers_are_themselves():
    array = np.ones(1)
    assert plain_number(array) is array
    assert jax.eval_shape(lambda x: x if plain_number(x) is x else None, 1.0) is not None


def test_real_numbers():
    assert all(map(is_real, (1, 0.5, float("nan"), fractions.Fraction(1, 2))))
    assert not any(map(is_real, (True, "1", None, 1j, np.ones(1))))
