"""Functions that a training state holds, at the widths of a spec."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ifjax
from ifjax.fusion.fuse_tree import small_function, with_small_functions

PARAMS = {"w1": jnp.eye(3, 4), "w2": jnp.ones((4, 2))}
X = jnp.arange(6.0).reshape(2, 3)


def network(p, x):
    return x @ p["w1"] @ p["w2"]


def module(variables, x):
    return network(variables["params"], x)


SPEC = ifjax.trace(network, PARAMS, X).spec(0.5, method="prune")
SMALL = ifjax.fuse_params(PARAMS, SPEC)
EXPECTED = np.asarray(network(SMALL, X))


def test_parameters_alone_or_in_a_collection():
    np.testing.assert_allclose(small_function(network, SPEC)(SMALL, X), EXPECTED)
    np.testing.assert_allclose(small_function(module, SPEC)({"params": SMALL}, X), EXPECTED)
    whole = ifjax.trace(module, {"params": PARAMS}, X).spec(0.5, method="prune")
    np.testing.assert_allclose(small_function(network, whole)(SMALL, X), EXPECTED)
    np.testing.assert_allclose(small_function(module, whole)({"params": SMALL}, X), EXPECTED)


def test_the_same_function_is_given_again():
    assert small_function(network, SPEC) is small_function(network, SPEC)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: Any
    apply_fn: Callable = dataclasses.field(metadata={"static": True})


def test_states_anywhere_in_a_tree_hold_the_small_function():
    found = with_small_functions([State(SMALL, network), jnp.ones(2)], SPEC)
    np.testing.assert_allclose(found[0].apply_fn(found[0].params, X), EXPECTED)
    plain = {"w": jnp.ones(2)}
    assert with_small_functions(plain, SPEC) is plain
