import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax import tree


def test_leaves_are_named_by_their_path():
    nested = {"a": {"kernel": jnp.ones(2)}, "b": [jnp.zeros(1), (jnp.ones(3),)]}
    leaves = tree.leaves_by_path(nested)
    assert list(leaves) == ["a/kernel", "b/0", "b/1/0"]
    got = tree.with_leaves(nested, {path: 2 * x for path, x in leaves.items()})
    assert jax.tree.structure(got) == jax.tree.structure(nested)
    np.testing.assert_array_equal(got["b"][1][0], np.full(3, 2))


def test_values_inside_jit_are_not_looked_at():
    seen = []

    @jax.jit
    def function(x):
        seen.append(tree.is_concrete(x))
        return x

    function(jnp.ones(2))
    assert seen == [False]
    assert tree.is_concrete(np.ones(2), jnp.ones(2), [1])


def test_two_leaves_of_one_path_are_refused():
    same = {"a/b": jnp.ones((4, 8)), "a": {"b": jnp.ones((8, 3))}}
    with pytest.raises(ValueError, match="two leaves of the parameters have the path a/b"):
        tree.leaves_by_path(same)
    with pytest.raises(ValueError, match="two leaves of params have the path a/b"):
        ifjax.trace(lambda p, x: x @ p["a/b"] @ p["a"]["b"], same, jnp.ones((1, 4)))
