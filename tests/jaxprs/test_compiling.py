"""What XLA is asked to leave as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.activations import divergence, synthesis
from ifjax.jaxprs import compiling
from ifjax.jaxprs.compiling import UNSIMPLIFIED, compiler_options, jitted_with_options
from ifjax.reconstruction import segments, statistics

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA does on a CPU")
LAST = ("NHWC", "HWIO", "NHWC")


def convolution(x, w, **options):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAST, **options)


def operands(n, k=3):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=s).astype("f4") for s in ((32, n, n, 16), (k, k, 16, 16)))


@on_cpu
def test_a_kernel_that_is_larger_than_its_map_stays_the_kernel():
    """The first half fails once XLA does well by itself: then all of it can go."""

    def text(options):
        lowered = jax.jit(convolution, compiler_options=options).lower(*operands(2))
        return lowered.compile().as_text()

    assert "rhs_reversal" in text(None)
    assert "rhs_reversal" not in text(UNSIMPLIFIED)


@on_cpu
@pytest.mark.parametrize(("n", "k", "found"), [(2, 3, UNSIMPLIFIED), (3, 3, None), (4, 1, None)])
def test_programs_with_such_a_kernel_are_told(n, k, found):
    program = jax.make_jaxpr(convolution)(*operands(n, k))
    assert compiler_options(program.eqns) == found
    grouped = functools.partial(convolution, feature_group_count=4)
    x, w = operands(n, k)
    assert compiler_options(jax.make_jaxpr(grouped)(x, w[:, :, :4]).eqns) is None


@on_cpu
def test_such_a_kernel_is_found_in_calls_branches_and_loops():
    x, w = operands(2)

    def looped(x):
        return jax.lax.scan(lambda x, _: (jax.nn.relu(convolution(x, w)), None), x, length=2)[0]

    def branched(x):
        return jax.lax.cond(x.sum() > 0, looped, jax.nn.relu, x)

    for function in (looped, branched, jax.jit(branched), jax.checkpoint(looped)):
        assert compiler_options(jax.make_jaxpr(function)(x).eqns) == UNSIMPLIFIED
    assert compiler_options(jax.make_jaxpr(jax.jit(branched))(operands(3)[0]).eqns) is None


@on_cpu
def test_jit_chooses_per_shape_and_works_inside_of_jit(monkeypatch):
    traced, given = [], noted(monkeypatch, compiling)

    def counted(x, w):
        traced.append(x.shape)
        return convolution(x, w)

    function = jitted_with_options(counted)
    for n in (2, 3, 2):
        x, w = operands(n)
        np.testing.assert_allclose(function(x, w), convolution(x, w), rtol=1e-4, atol=1e-4)
    assert given == [UNSIMPLIFIED, None]
    assert traced == [(32, 2, 2, 16), (32, 3, 3, 16)]


@on_cpu
def test_inside_of_other_transformations_there_are_no_options():
    x, w = operands(2)
    wanted = convolution(x, w)
    function = jitted_with_options(convolution)

    def close(found, by=1.0):
        np.testing.assert_allclose(found, by * wanted, rtol=1e-4, atol=1e-3)

    def closed_over(s):
        return jitted_with_options(lambda x: convolution(x * s, w))(x)

    close(jax.jit(lambda x: 2 * function(x, w))(x), 2)
    close(jax.jit(lambda s: s * function(x, w))(2.0), 2)
    close(jax.jit(closed_over)(2.0), 2)
    close(jax.vmap(closed_over)(jnp.array([2.0]))[0], 2)
    close(jax.jvp(closed_over, (2.0,), (1.0,))[1])
    assert jax.eval_shape(closed_over, 2.0).shape == wanted.shape
    slope = jax.grad(lambda s: closed_over(s).sum())(2.0)
    np.testing.assert_allclose(slope, wanted.sum(), rtol=1e-4)
    with jax.disable_jit():
        close(jitted_with_options(lambda x: convolution(x, w) if x.sum() else x)(x))
    close(function(x, w=w))


@on_cpu
def test_errors_of_the_function_stay():
    def failing(x, w):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        jitted_with_options(failing)(*operands(2))


def noted(monkeypatch, *modules):
    """The options that the modules ask for from now on."""
    given = []

    def asked(equations):
        given.append(compiler_options(equations))
        return given[-1]

    for module in modules:
        monkeypatch.setattr(module, "compiler_options", asked)
    return given


@on_cpu
def test_reconstruction_and_synthesis_compile_so(monkeypatch):
    given = noted(monkeypatch, segments, compiling)

    def apply(p, x):
        h = (convolution(x, p["a"]) - p["mean"]) / jnp.sqrt(p["variance"] + 1e-5)
        return jnp.mean(h * p["scale"] + p["offset"], (1, 2))

    x, w = operands(2)
    names = {"mean": 0, "variance": 1, "scale": 1, "offset": 0}
    params = {"a": w} | {k: np.full((1, 1, 1, 16), v, "f4") for k, v in names.items()}
    job = segments.Job(lambda values: [convolution(*values)], ((0, True), (1, True)), ((2, True),))
    call = segments.compiled([job], lambda key: None, lambda key: (x, w)[key[0]], [(2, True)])
    found = call(lambda key: (x, w)[key[0]])[2, True]
    np.testing.assert_allclose(found, convolution(x, w), rtol=1e-4, atol=1e-4)
    refitted = statistics.refit_statistics(apply, params, [(x,)])
    np.testing.assert_allclose(apply(refitted, x), apply(params, x), rtol=1e-3, atol=1e-4)
    shape = jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)
    [(made,)] = synthesis.synthesize(apply, params, shape, 8, jax.random.key(0), steps=2)
    assert made.shape == (8, 2, 2, 16)
    assert given == [UNSIMPLIFIED] * 3

    def wider(p, x):
        return apply(p, jax.nn.relu(convolution(x, p["b"])))

    params["b"] = w
    ifjax.reset_statistics(wider, params, [(x,)])
    ifjax.collect_moments(wider, params, [(x,)])
    spec = ifjax.trace(wider, params, x).spec(0.5, importance="fisher")
    batch = (x,), jnp.zeros((32, 16))
    ifjax.collect_stats(wider, params, spec, [batch], loss_fn=lambda y, t: jnp.mean((y - t) ** 2))
    divergence.output_divergence(wider, params, wider, params, [(x,)])
    assert given == [UNSIMPLIFIED] * 7
