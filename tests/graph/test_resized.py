"""A function evaluated at the widths of its groups; see test_shrink.py for what users call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.graph.resized import resized
from ifjax.jaxprs.arguments import Arguments

RNG = np.random.default_rng(0)
SHAPES = {"a": (3, 8), "b": (8, 2)}
PARAMS = {k: jnp.asarray(RNG.normal(size=s), jnp.float32) for k, s in SHAPES.items()}
X = jnp.ones((4, 3))


def network(p, x, scale):
    h = x @ p["a"]
    return (h - jnp.mean(h, -1, keepdims=True)) @ p["b"] * scale


GRAPH = ifjax.trace(network, PARAMS, X, 2.0)


def test_it_is_the_function_of_arrays_of_these_widths():
    """The mean over eight neurons becomes one over five."""
    structure = GRAPH.spec(keep=5, method="prune").structure
    small = {"a": PARAMS["a"][:, :5], "b": PARAMS["b"][:5]}
    arguments = Arguments.split((X, 2.0))
    found = resized(network, structure, small, arguments, {})
    got = found(jax.tree.leaves(small), arguments.arrays)
    np.testing.assert_allclose(got, network(small, X, 2.0), rtol=1e-5, atol=1e-6)
    assert found.constants() == []


def test_a_function_that_splits_a_group_is_refused():
    structure = GRAPH.spec(keep=5, method="prune").structure
    small = {"a": PARAMS["a"][:, :5], "b": PARAMS["b"][:5]}

    def halves(p, x):
        return (x @ p["a"])[:, :4] @ p["b"][:4]

    with pytest.raises(ValueError, match="the spec does not cover this function: it cuts group a"):
        resized(halves, structure, small, Arguments.split((X,)), {})
