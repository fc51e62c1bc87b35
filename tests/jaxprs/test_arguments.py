"""Inputs taken apart and put together again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.jaxprs.arguments import Arguments, is_array, is_key, struct

KEY = jax.random.key(0)


def test_arrays_are_traced_and_the_rest_is_static():
    inputs = (jnp.ones(2), {"mask": np.ones(3), "train": False}, 4)
    found = Arguments.split(inputs)
    assert found.paths == ("inputs/0", "inputs/1/mask")
    assert [tuple(x.shape) for x in found.arrays] == [(2,), (3,)]
    assert [x for _, x in found.static] == [False, 4]
    one, two = np.zeros(2), np.zeros(3)
    joined = found.join([one, two])
    assert joined[0] is one
    assert joined[1] == {"mask": two, "train": False}
    assert joined[2] == 4


def test_keywords_with_random_keys_are_inputs_too():
    found = Arguments.split((jnp.ones(2),), {"rngs": {"dropout": KEY}, "train": True})
    assert found.keywords == {"rngs"}
    assert found.paths == ("inputs/0", "keywords/rngs/dropout")

    def function(params, x, rngs, train):
        return params, x, rngs["dropout"], train

    x, static = np.zeros(2), {"rngs": None, "train": True}
    called = found.call(function, "p", [x, KEY], static)
    assert called[0] == "p"
    assert called[1] is x
    assert called[2] is KEY
    assert called[3] is True


@pytest.mark.parametrize(
    ("value", "array", "key"),
    [
        (KEY, True, True),
        (jax.random.PRNGKey(0), True, True),
        (np.zeros((3, 2), np.uint32), True, True),
        (np.zeros(3, np.uint32), True, False),
        (jnp.ones(2), True, False),
        (np.float32(1), True, False),
        (jax.ShapeDtypeStruct((2,), jnp.float32), True, False),
        (1.0, False, False),
        ("x", False, False),
    ],
)
def test_arrays_and_keys(value, array, key):
    assert is_array(value) == array
    assert is_key(value) == key


def test_structs_have_the_dtype_that_jax_computes_in():
    assert struct(np.ones(2, np.float64)).dtype == np.float32
    assert struct(KEY).dtype == KEY.dtype
    assert struct(2.0).shape == ()
    assert struct(jnp.asarray(2.0)).weak_type == jnp.asarray(2.0).weak_type
