"""Synthesised inputs: usual to every norm, the same by key, refused where nothing is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import ifjax
from ifjax.activations import synthesis
from ifjax.activations.norm_inputs import find_norm_inputs
from ifjax.jaxprs.arguments import Arguments
from ifjax.models.layers import batch_norm

pytestmark = pytest.mark.promotes(ranks="norms subtract vectors from matrices")


class Net(nn.Module):
    """A residual network of three norms; with pixels first or last."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(batch_norm(False)(nn.Conv(8, (3, 3))(x)))
        y = batch_norm(False)(nn.Conv(8, (3, 3))(h))
        h = nn.relu(batch_norm(False)(nn.Conv(12, (3, 3), 2)(nn.relu(h + y))))
        return nn.Dense(4)(h.mean((1, 2)))


IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)


@pytest.fixture(scope="module")
def net():
    """Statistics of coloured, smooth, shifted images, that noise does not have."""
    module = Net()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 8, 8, 3)).cumsum(1).cumsum(2) / 8 + [0.5, -0.5, 1.0]
    variables = module.init(jax.random.key(0), x[:1])
    return module.apply, ifjax.reset_statistics(module.apply, variables, [(x,)])


def deviation(apply_fn, params, batches):
    """Mean squared relative deviation of the statistics in eval mode, by hand of the network's."""
    x = jnp.concatenate([x for (x,) in batches])
    _, seen = apply_fn(params, x, capture_intermediates=True, mutable=["intermediates"])
    total = 0.0
    for i in range(3):
        z = np.asarray(seen["intermediates"][f"Conv_{i}"]["__call__"][0], np.float64)
        kept = params["batch_stats"][f"BatchNorm_{i}"]
        variance = kept["var"] + 1e-5
        m, s = z.mean((0, 1, 2)), np.sqrt(z.var((0, 1, 2)) + 1e-5)
        total += np.mean(((m - kept["mean"]) ** 2 + (s - np.sqrt(variance)) ** 2) / variance)
    return total


def test_every_norm_finds_them_as_usual_and_a_key_makes_them_again(net):
    apply_fn, params = net
    make = lambda key, steps: ifjax.synthesize(  # noqa: E731
        apply_fn, params, IMAGE, 50, jax.random.key(key), batch_size=25, steps=steps
    )
    before, after = make(0, 1), make(0, 100)
    assert [x.shape for (x,) in after] == [(25, 8, 8, 3)] * 2
    assert deviation(*net, after) < deviation(*net, before) / 50
    assert np.abs(after[0][0] - after[1][0]).max() > 0.1
    np.testing.assert_array_equal(make(0, 100)[1][0], after[1][0])
    assert np.abs(make(1, 1)[0][0] - before[0][0]).max() > 0.1


@pytest.mark.parametrize(("count", "sizes"), [(6, [3, 3]), (5, [3, 2]), (4, [4]), (9, [3, 3, 3])])
def test_batches_have_one_size_and_one_program(net, count, sizes):
    apply_fn, params = net
    with pytest.MonkeyPatch.context() as patch:
        compiled = []
        original = synthesis._objective

        def objective(*args):
            compiled.append(args[0][0].shape)
            return original(*args)

        patch.setattr(synthesis, "_objective", objective)
        found = ifjax.synthesize(
            apply_fn, params, IMAGE, count, jax.random.key(0), batch_size=4, steps=2
        )
    assert [x.shape[0] for (x,) in found] == sizes
    assert compiled == [(sizes[0], 8, 8, 3)]


def test_inputs_that_are_no_images():
    """Two arrays, of which one is a half-precision vector in a dictionary; outputs no logits."""

    def apply(p, inputs, y):
        h = (inputs["x"].astype(jnp.float32) @ p["w"] - p["mean"]) / jnp.sqrt(p["var"] + 1e-3)
        return {"h": jnp.tanh(h), "y": y * 2}

    rng = np.random.default_rng(1)
    p = {"w": rng.normal(size=(5, 3)), "mean": np.array([3.0, -2.0, 0.0]), "var": np.ones(3) * 4}
    p = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p)
    like = ({"x": np.zeros((1, 5), jnp.bfloat16)}, np.zeros((1, 2), np.float32))
    ((x, y),) = ifjax.synthesize(apply, p, like, 64, jax.random.key(0), steps=150)
    assert x["x"].dtype == jnp.bfloat16
    assert y.shape == (64, 2)
    h = np.asarray(x["x"], np.float64) @ np.asarray(p["w"])
    np.testing.assert_allclose(h.mean(0), p["mean"], atol=0.05)
    np.testing.assert_allclose(h.std(0), 2.0, atol=0.05)


def test_derivatives_of_ones_own_are_taken():
    """Rounding, whose gradient is that of the identity: without it nothing would move."""

    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))
    p = {"mean": jnp.array([3.0, -1.0]), "var": jnp.array([4.0, 1.0])}
    apply = lambda p, x: normed(p, rounded(x))  # noqa: E731
    ((x,),) = ifjax.synthesize(
        apply, p, np.zeros((1, 2), np.float32), 64, jax.random.key(0), label_weight=0.0
    )
    np.testing.assert_allclose(rounded(x).mean(0), p["mean"], atol=0.1)
    np.testing.assert_allclose(rounded(x).std(0), [2.0, 1.0], atol=0.1)


def test_the_label_term_spreads_the_classes(net):
    apply_fn, params = net
    make = lambda weight: ifjax.synthesize(  # noqa: E731
        apply_fn, params, IMAGE, 32, jax.random.key(0), steps=60, label_weight=weight
    )
    sure = [
        float(jax.nn.softmax(apply_fn(params, x)).max(-1).mean())
        for ((x,),) in (make(0.0), make(1.0))
    ]
    assert sure[1] > sure[0] + 0.1


def test_variation_is_that_of_neighbours(net):
    apply_fn, params = net
    make = lambda weight: ifjax.synthesize(  # noqa: E731
        apply_fn, params, IMAGE, 32, jax.random.key(0), steps=60, variation_weight=weight
    )
    rough, smooth = (np.abs(np.diff(x, axis=1)).mean() for ((x,),) in (make(0.0), make(1.0)))
    assert smooth < 0.9 * rough


@pytest.mark.parametrize("axes", [(1, 2), (2, 3), (2,), (1, 2, 3)])
def test_pink_noise_has_equal_power_in_every_octave(axes):
    n = 32 if len(axes) < 3 else 16
    shape = [200, *(n if a in axes else 3 for a in (1, 2, 3))]
    x = synthesis._pink(jax.random.normal(jax.random.key(0), shape), axes)
    assert abs(float(jnp.std(x)) - 1) < 0.05
    power = np.square(np.abs(np.fft.fftn(x, axes=axes)))
    power = power.mean(tuple(a for a in range(x.ndim) if a not in axes))
    f = np.sqrt(sum(g**2 for g in np.meshgrid(*[np.fft.fftfreq(n)] * len(axes), indexing="ij")))
    inside = (f > 0) & (f < 0.5)
    np.testing.assert_allclose(
        (power * f ** len(axes))[inside] / np.mean((power * f ** len(axes))[inside]), 1, atol=0.25
    )


def test_colours_correlate():
    x = np.asarray(
        synthesis._coloured(jax.random.normal(jax.random.key(0), (9, 64, 64, 3)), (1, 2))
    )
    found = np.corrcoef(x.reshape(-1, 3).T)
    np.testing.assert_allclose(found, 0.1 * np.eye(3) + 0.9, atol=0.02)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=0.05)


def test_shared_statistics_are_met_by_every_norm():
    def apply(p, x):
        norm = lambda z: (z - p["mean"]) / jnp.sqrt(p["var"] + 1e-3)  # noqa: E731
        return norm(x[:, :3]), norm(x[:, 3:])

    p = {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.ones(3)}
    ((x,),) = ifjax.synthesize(apply, p, np.zeros((1, 6), np.float32), 32, jax.random.key(0))
    np.testing.assert_allclose(x.mean(0), [1, 2, 3] * 2, atol=0.05)


def test_a_norm_may_read_the_input_itself():
    p = {"mean": jnp.array([1.0, 2.0]), "var": jnp.ones(2)}
    arguments = Arguments.split((np.zeros((1, 2), np.float32),))
    found = find_norm_inputs(lambda p, x: (x - p["mean"]) * lax.rsqrt(p["var"] + 1), p, arguments)
    assert list(found.readers) == [found.program.inputs[2]]


def normed(p, x):
    return (x - p["mean"]) / jnp.sqrt(p["var"] + 1e-3)


X = np.ones((2, 3), np.float32)
P = {"mean": jnp.zeros(3), "var": jnp.ones(3)}


@pytest.mark.parametrize(
    ("apply", "params", "inputs", "options", "error", "match"),
    [
        (lambda p, x: x * p["var"], P, X, {}, ValueError, "running statistics .* found none"),
        (normed, P, X, {"count": 0}, ValueError, "count to be at least 1, got 0"),
        (normed, P, X, {"steps": 0}, ValueError, "steps to be at least 1, got 0"),
        (normed, P, X.astype(int), {}, TypeError, "inputs/0: expected floating.* got int"),
        (normed, P, (np.float32(1),), {}, TypeError, "inputs/0: expected examples along axis 0"),
        (normed, P | {"mean": jnp.full(3, jnp.nan)}, X, {}, ValueError, "inputs/0: .* NaN"),
        (
            lambda p, x: lax.scan(lambda h, q: (normed(q, h), None), x, p)[0],
            {"mean": jnp.zeros((2, 3)), "var": jnp.ones((2, 3))},
            X,
            {},
            ValueError,
            "mean: the norm is inside of a loop",
        ),
    ],
    ids=["no norm", "none", "no steps", "integers", "a number", "not finite", "in a loop"],
)
def test_errors(apply, params, inputs, options, error, match):
    options = {"count": 4, "steps": 2} | options
    with pytest.raises(error, match=match):
        ifjax.synthesize(apply, params, inputs, key=jax.random.key(0), **options)
