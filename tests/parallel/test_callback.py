"""Functions of numpy arrays that are called on the host, against calling them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ifjax.parallel.callback import called


def statistics(x, tree):
    """Of every row, in the dtypes that came."""
    assert isinstance(x, np.ndarray)
    return x.sum(-1), {"index": np.argmax(x, -1).astype(np.int32), "of": tree["y"] + 1}


def shapes(batch, dtype):
    index = jax.ShapeDtypeStruct(batch, jnp.int32)
    return jax.ShapeDtypeStruct(batch, dtype), {"index": index, "of": index}


def check(found, x, y):
    total, rest = found
    assert total.dtype == x.dtype
    np.testing.assert_array_equal(total, np.asarray(x).sum(-1))
    np.testing.assert_array_equal(rest["index"], np.asarray(x).argmax(-1))
    np.testing.assert_array_equal(rest["of"], np.asarray(y) + 1)


def test_under_jit_and_vmap_it_is_the_function():
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (4, 3)), jnp.float32)
    y = jnp.arange(4, dtype=jnp.int32)
    one = functools.partial(called, statistics, shapes((), jnp.float32))
    check(jax.jit(functools.partial(called, statistics, shapes((4,), x.dtype)))(x, {"y": y}), x, y)
    check(jax.vmap(lambda x, y: one(x, {"y": y}))(x, y), x, y)


def test_double_precision_travels_whole():
    """The callback's thread does not know of `jax.enable_x64` as a context."""
    with jax.enable_x64(True):
        x = jnp.asarray([[1.0, 2.0**-50], [-1.0, 2.0**-50]], jnp.float64)
        y = jnp.arange(2, dtype=jnp.int32)
        found = jax.jit(functools.partial(called, statistics, shapes((2,), x.dtype)))(x, {"y": y})
        check(found, x, y)
        assert float(found[0][0]) != 1.0
