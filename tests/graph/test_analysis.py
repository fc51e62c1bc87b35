"""Arguments taken apart, and outputs that are updated leaves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ifjax.graph.analysis import mirrors
from ifjax.jaxprs.arguments import Arguments, struct


def test_arguments_come_back_as_they_were():
    key = jax.random.key(0)
    inputs = ({"x": np.ones(2), "n": 3}, True, None, "name", key, [jnp.zeros(1), 2.5])
    arguments = Arguments.split(inputs)
    assert [x for _, x in arguments.static] == [3, True, "name", 2.5]
    back = arguments.join(arguments.arrays)
    assert jax.tree.structure(back) == jax.tree.structure(inputs)
    assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(inputs), strict=True))
    assert arguments.join([1, 2, 3])[0] == {"n": 3, "x": 1}


def test_structs_have_the_dtype_that_jax_computes_in():
    assert struct(np.ones(2)).dtype == jnp.float32
    assert struct(np.arange(2)).dtype == jnp.int32
    assert struct(jnp.float32(1)).weak_type is False
    assert struct(jnp.asarray(1.0)).weak_type == jnp.asarray(1.0).weak_type
    assert struct(jax.random.key(0)).dtype == jax.random.key(0).dtype
    with jax.enable_x64(True):
        assert struct(np.ones(2)).dtype == jnp.float64


def leaf(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_mirrors_have_path_shape_and_dtype():
    leaves = [
        ("params/bn/scale", leaf(4)),
        ("batch_stats/bn/mean", leaf(4)),
        ("w", leaf(3, 4)),
        ("0/1", leaf(4)),
        ("bn/mean", leaf(4)),
    ]
    out = (
        leaf(2, 4),
        {"batch_stats": {"bn": {"mean": leaf(4)}}, "w": leaf(3, 4)},
        {"bn": {"scale": leaf(4), "mean": leaf(5)}},  # without its collection; of another shape
        {"w": leaf(3, 4, dtype=jnp.bfloat16), "mean": leaf(4)},
    )
    paths = [
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, _ in jax.tree_util.tree_leaves_with_path(out)
    ]
    found = {paths[i]: leaves[j][0] for i, j in mirrors(out, leaves).items()}
    assert found == {
        "1/batch_stats/bn/mean": "batch_stats/bn/mean",
        "1/w": "w",
        "2/bn/scale": "params/bn/scale",
    }


def test_positions_and_a_bare_array_mirror_nothing():
    assert mirrors((leaf(2), leaf(2)), [("0", leaf(2)), ("1", leaf(2))]) == {}
    assert mirrors(leaf(2), [("", leaf(2))]) == {}
