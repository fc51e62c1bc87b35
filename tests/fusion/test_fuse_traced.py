"""Fusion in every precision, under jit and under grad; what is compiled for it."""

import functools

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.transport import solvers
from tests import reference
from tests.fusion.tiny_networks import METHODS, init, traced

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *args, **kwargs: COMPILED.append(name) if "backend_compile" in name else None
)


@pytest.mark.parametrize("kind", METHODS)
def test_half_precision_stays_and_is_computed_in_single(kind):
    params = {path: jnp.asarray(x, jnp.bfloat16) for path, x in init("vgg").items()}
    spec = traced("vgg").spec(0.5, **METHODS[kind])
    half = ifjax.fuse_params(params, spec)
    single = ifjax.fuse_params({p: x.astype(jnp.float32) for p, x in params.items()}, spec)
    for path, x in half.items():
        assert x.dtype == jnp.bfloat16, path
        # One rounding of the result, 2^-8; the scale is fitted to the rounded variance.
        np.testing.assert_allclose(
            x.astype(jnp.float32), single[path], rtol=1.5 * 2**-8, atol=1e-6, err_msg=path
        )


@pytest.mark.parametrize("kind", METHODS)
def test_double_precision_stays_and_is_computed_in_double(kind):
    params = init("vgg", dtype=np.float64)
    spec = traced("vgg").spec(0.5, solver="nearest", **METHODS[kind])
    single = ifjax.fuse_params({p: x.astype(np.float32) for p, x in params.items()}, spec)
    with jax.enable_x64(True):
        double = jax.tree.map(np.asarray, ifjax.fuse_params(params, spec))
    for path, x in double.items():
        assert x.dtype == np.float64, path
        np.testing.assert_allclose(x, single[path], rtol=1e-5, atol=1e-5, err_msg=path)
    if kind != "prune":
        assert np.any(double["fc.weight"] != double["fc.weight"].astype(np.float32))


def test_double_precision_from_numpy_is_single_where_jax_is():
    params = init("mlp", dtype=np.float64)
    small = ifjax.fuse_params(params, traced("mlp").spec(0.5))
    assert small["fc0.weight"].dtype == np.float32


@pytest.mark.parametrize("keep_shape", [False, True])
@pytest.mark.parametrize("kind", METHODS)
def test_shapes_are_those_of_eval_shape(kind, keep_shape):
    params = init("res")
    spec = traced("res").spec(0.4, **METHODS[kind])
    fuse = functools.partial(ifjax.fuse_params, spec=spec, keep_shape=keep_shape)
    found = jax.eval_shape(fuse, params)
    struct = spec.small_struct(params)
    small = fuse(params)
    for path, x in small.items():
        expected = params[path] if keep_shape else struct[path]
        assert x.shape == found[path].shape == expected.shape
        assert x.dtype == found[path].dtype == expected.dtype


@pytest.mark.parametrize("keep_shape", [False, True])
def test_one_compilation_for_one_spec(keep_shape):
    jitted = jax.jit(ifjax.fuse_params, static_argnames=("spec", "keep_shape"))
    first, second = ({k: jnp.asarray(v) for k, v in init("mlp", s).items()} for s in (0, 1))
    spec = traced("mlp").spec(0.3)
    jax.block_until_ready(jitted(first, spec, keep_shape=keep_shape))
    count = len(COMPILED)
    # An equal spec, made again, is the same one.
    again = ifjax.FusionSpec.from_json(spec.to_json())
    small = jitted(second, again, keep_shape=keep_shape)
    jax.block_until_ready(small)
    assert len(COMPILED) == count
    eager = ifjax.fuse_params(second, spec, keep_shape=keep_shape)
    for path in eager:
        np.testing.assert_allclose(small[path], eager[path], atol=1e-5, err_msg=path)


def test_called_eagerly_a_second_time_nothing_is_compiled():
    first, second = ({k: jnp.asarray(v) for k, v in init("vgg", s).items()} for s in (0, 1))
    spec = traced("vgg").spec(0.3)
    jax.block_until_ready(ifjax.fuse_params(first, spec))
    count = len(COMPILED)
    jax.block_until_ready(ifjax.fuse_params(second, spec))
    assert len(COMPILED) == count > 0


def test_groups_of_one_shape_share_their_programs():
    """A network twice as deep, of equal layers, compiles no more."""
    counts = []
    for depth in (4, 8):
        jax.clear_caches()
        params = reference.init("mlp", 0, (6,) * depth)
        spec = reference.trace("mlp", params).spec(0.5, solver="nearest")
        count = len(COMPILED)
        ifjax.fuse_params({k: jnp.asarray(v) for k, v in params.items()}, spec)
        counts.append(len(COMPILED) - count)
    # One more for the check that all leaves are finite, which knows their number.
    assert counts[1] <= counts[0] + 1


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_gradients_go_through_the_merge_and_not_through_the_maps(solver):
    params = {k: jnp.asarray(v) for k, v in init("vgg").items()}
    spec = traced("vgg").spec(0.5, solver=solver, epsilon=0.1)
    maps = ifjax.transport_maps(params, spec)

    def total(fuse):
        return lambda p: sum(jnp.sum(jnp.sin(x)) for x in fuse(p).values())

    got = jax.grad(total(lambda p: ifjax.fuse_params(p, spec)))(params)
    expected = jax.grad(total(lambda p: ifjax.apply_maps(p, spec, maps)))(params)
    for path in params:
        np.testing.assert_allclose(got[path], expected[path], rtol=1e-4, atol=1e-5, err_msg=path)
        assert np.all(np.isfinite(got[path]))
    assert np.any(got["conv0.weight"] != 0)
