"""The state owns its buffers and says what it lacks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ifjax.training import create_state


def test_the_state_copies_what_it_is_given() -> None:
    variables = {"params": {"w": jnp.ones(3)}, "batch_stats": {"mean": np.zeros(2, np.float32)}}
    state = create_state(variables, optax.sgd(0.1, momentum=0.9), seed=4)
    assert int(state.step) == 0
    np.testing.assert_array_equal(
        jax.random.key_data(state.key), jax.random.key_data(jax.random.key(4))
    )
    jax.tree.map(np.testing.assert_array_equal, state.variables, variables)
    jax.tree.map(lambda leaf: leaf.delete(), state.variables)
    np.testing.assert_array_equal(variables["params"]["w"], 1)


def test_a_bare_tree_is_told_how_to_be_wrapped() -> None:
    with pytest.raises(ValueError, match='"params": params'):
        create_state({"w": jnp.ones(3)}, optax.sgd(0.1))
