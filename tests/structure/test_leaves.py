import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.structure.leaves import checked_leaves
from tests import reference

PLAN = reference.trace("mlp", reference.init("mlp", 0, (4, 3))).structure


def params():
    return reference.init("mlp", 0, (4, 3))


def test_checked_leaves_are_the_very_arrays():
    given = params()
    leaves = checked_leaves(given, PLAN)
    assert set(leaves) == set(given)
    assert all(leaves[path] is given[path] for path in given)


def test_the_precision_may_differ_from_the_plan_s():
    half = {path: jnp.asarray(x, jnp.bfloat16) for path, x in params().items()}
    assert checked_leaves(half, PLAN)["fc0.bias"].dtype == jnp.bfloat16


def test_arrays_that_a_jitted_function_closes_over_are_looked_at():
    bad = {**params(), "fc0.bias": jnp.full(4, jnp.nan)}
    good = {path: jnp.asarray(x) for path, x in params().items()}

    def total(leaves):
        return jax.jit(lambda s: s * checked_leaves(leaves, PLAN)["fc0.bias"].sum())(2.0)

    assert np.isfinite(total(good))
    with pytest.raises(ValueError, match=r"fc0\.bias: expected finite weights, got 4 of 4"):
        total(bad)


def test_abstract_leaves_have_no_values_to_check():
    struct = jax.eval_shape(lambda: params())
    shapes = jax.eval_shape(lambda p: checked_leaves(p, PLAN), struct)
    assert shapes["fc0.weight"].shape == (4, 6)


def test_the_first_missing_leaf_is_named_with_its_shape():
    given = {k: v for k, v in params().items() if not k.startswith("fc1")}
    with pytest.raises(
        ValueError, match=r"fc1\.bias: expected a leaf of shape \(3,\), got none \(2 "
    ):
        checked_leaves(given, PLAN)


def test_a_negative_variance_is_named():
    def f(p, x):
        h = (x @ p["w"] - p["m"]) / jnp.sqrt(p["v"] + 1e-5) * p["g"] + p["b"]
        return jax.nn.relu(h) @ p["o"]

    p = {k: jnp.ones(6) for k in "mvgb"} | {"w": jnp.ones((4, 6)), "o": jnp.ones((6, 3))}
    structure = ifjax.trace(f, p, jnp.ones((1, 4))).structure
    checked_leaves(p, structure)
    with pytest.raises(ValueError, match="v: expected variances, got a negative number"):
        checked_leaves({**p, "v": -p["v"]}, structure)


def test_structs_and_other_kinds_of_numbers_are_refused():
    struct = jax.eval_shape(lambda: params())
    with pytest.raises(TypeError, match=r"expected an array, got a ShapeDtypeStruct.*small_struct"):
        checked_leaves(struct, PLAN)
    whole = {**params(), "fc0.bias": np.zeros(4, np.int32)}
    with pytest.raises(ValueError, match=r"fc0\.bias: expected dtype float32, got int32"):
        checked_leaves(whole, PLAN)
    with pytest.raises(ValueError, match=r"fc0\.bias: expected dtype float32, got complex64"):
        checked_leaves({**whole, "fc0.bias": np.zeros(4, np.complex64)}, PLAN)
