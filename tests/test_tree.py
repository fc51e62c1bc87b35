import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax import tree
from tests import reference

PLAN = reference.trace("mlp", reference.init("mlp", 0, (4, 3))).plan


def params():
    return reference.init("mlp", 0, (4, 3))


def test_leaves_are_named_by_their_path():
    nested = {"a": {"kernel": jnp.ones(2)}, "b": [jnp.zeros(1), (jnp.ones(3),)]}
    leaves = tree.leaves_by_path(nested)
    assert list(leaves) == ["a/kernel", "b/0", "b/1/0"]
    got = tree.with_leaves(nested, {path: 2 * x for path, x in leaves.items()})
    assert jax.tree.structure(got) == jax.tree.structure(nested)
    np.testing.assert_array_equal(got["b"][1][0], np.full(3, 2))


def test_checked_leaves_are_the_very_arrays():
    given = params()
    leaves = tree.checked_leaves(given, PLAN)
    assert set(leaves) == set(given)
    assert all(leaves[path] is given[path] for path in given)


def test_the_precision_may_differ_from_the_plan_s():
    half = {path: jnp.asarray(x, jnp.bfloat16) for path, x in params().items()}
    assert tree.checked_leaves(half, PLAN)["fc0.bias"].dtype == jnp.bfloat16


def test_values_inside_jit_are_not_looked_at():
    seen = []

    @jax.jit
    def function(x):
        seen.append(tree.is_concrete(x))
        return x

    function(jnp.ones(2))
    assert seen == [False]
    assert tree.is_concrete(np.ones(2), jnp.ones(2), [1])


def test_arrays_that_a_jitted_function_closes_over_are_looked_at():
    bad = {**params(), "fc0.bias": jnp.full(4, jnp.nan)}
    good = {path: jnp.asarray(x) for path, x in params().items()}

    def total(leaves):
        return jax.jit(lambda s: s * tree.checked_leaves(leaves, PLAN)["fc0.bias"].sum())(2.0)

    assert np.isfinite(total(good))
    with pytest.raises(ValueError, match=r"fc0\.bias: expected finite weights, got 4 of 4"):
        total(bad)


def test_abstract_leaves_have_no_values_to_check():
    struct = jax.eval_shape(lambda: params())
    shapes = jax.eval_shape(lambda p: tree.checked_leaves(p, PLAN), struct)
    assert shapes["fc0.weight"].shape == (4, 6)


def test_the_first_missing_leaf_is_named_with_its_shape():
    given = {k: v for k, v in params().items() if not k.startswith("fc1")}
    with pytest.raises(
        ValueError, match=r"fc1\.bias: expected a leaf of shape \(3,\), got none \(2 "
    ):
        tree.checked_leaves(given, PLAN)


def test_two_leaves_of_one_path_are_refused():
    same = {"a/b": jnp.ones((4, 8)), "a": {"b": jnp.ones((8, 3))}}
    with pytest.raises(ValueError, match="two leaves of the parameters have the path a/b"):
        tree.leaves_by_path(same)
    with pytest.raises(ValueError, match="two leaves of params have the path a/b"):
        ifjax.trace(lambda p, x: x @ p["a/b"] @ p["a"]["b"], same, jnp.ones((1, 4)))


def test_a_negative_variance_is_named():
    def f(p, x):
        h = (x @ p["w"] - p["m"]) / jnp.sqrt(p["v"] + 1e-5) * p["g"] + p["b"]
        return jax.nn.relu(h) @ p["o"]

    p = {k: jnp.ones(6) for k in "mvgb"} | {"w": jnp.ones((4, 6)), "o": jnp.ones((6, 3))}
    plan = ifjax.trace(f, p, jnp.ones((1, 4))).plan
    tree.checked_leaves(p, plan)
    with pytest.raises(ValueError, match="v: expected variances, got a negative number"):
        tree.checked_leaves({**p, "v": -p["v"]}, plan)
