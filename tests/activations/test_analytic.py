"""Analytic moments, against Jacobians where all is affine, and samples of the same model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import ifjax
from ifjax.activations.analytic import analytic_moments
from ifjax.activations.layer_inputs import layer_inputs
from ifjax.activations.moments import normal_form, rows

pytestmark = pytest.mark.promotes(
    ranks="norms subtract vectors from matrices", dtypes="norms have Python's epsilon"
)
RNG = np.random.default_rng(0)
N, SAMPLES = 6, 400_000


@pytest.fixture(autouse=True)
def _numbers(monkeypatch):
    """The same ones in every test, whichever ran before."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


def array(*shape):
    return RNG.normal(size=shape)


def norm(p, z):
    return (z - p["mean"]) * lax.rsqrt(p["var"] + 1e-3) * p["scale"] + p["offset"]


def params(**more):
    p = {k: array(N) for k in ("mean", "offset")} | {
        k: RNG.uniform(0.5, 2, N) for k in ("var", "scale")
    }
    return p | {"w": array(4, N)} | more


def moments(apply, p, shape, **options):
    """In double precision throughout."""
    with jax.enable_x64(True):
        return analytic_moments(apply, p, jax.ShapeDtypeStruct(shape, jnp.float64), **options)


def model(p):
    """Of what the norm puts out: its own marginals, the kernel's correlations."""
    gram = p["w"].T @ p["w"]
    d = 1 / np.sqrt(np.diag(gram))
    s = np.sqrt(p["var"] / (p["var"] + 1e-3)) * p["scale"]
    return p["offset"], (d[:, None] * gram * d) * s[:, None] * s


def samples(p):
    mean, covariance = model(p)
    return RNG.multivariate_normal(mean, covariance, SAMPLES)


def compare(found, x):
    """With samples [s, k] of what the layer reads, to five times their standard error."""
    error = 5 / np.sqrt(len(x))
    deviation = x.std(0)
    assert np.abs((found.mean[0] - x.mean(0)) / deviation).max() < error
    apart = (x - x.mean(0)) / deviation
    spread = np.sqrt(np.maximum((apart**4).mean(0), 1))
    relative = (found.covariance[0] - np.cov(x.T)) / (deviation[:, None] * deviation)
    assert (np.abs(relative) / (spread[:, None] * spread)).max() < error + 3e-4


AFFINE = {
    "dense": lambda z: z,
    "reversed": lambda z: z[:, ::-1],
    "split": lambda z: jnp.concatenate(jnp.split(z, 2, 1)[::-1], 1) * 3 - 1,
    "padded": lambda z: jnp.pad(z, [(0, 0), (2, 1)]),
    "strided": lambda z: z[:, 1::2],
    "regrouped": lambda z: z.reshape(-1, 2, 3).transpose(0, 2, 1).reshape(-1, 6),
    "summed": lambda z: z.reshape(-1, 2, 3).sum(1),
    "cumulative": lambda z: jnp.cumsum(z, 1) / 2 + jnp.arange(N),
    "residual": lambda z: z + z[:, ::-1] - z.sum(1, keepdims=True),
    "constants beside": lambda z: jnp.concatenate([z, jnp.ones_like(z)[:, :2]], 1),
    "centred": lambda z: z - z.mean(1, keepdims=True),
    "jitted": lambda z: jax.jit(lambda y: -y)(z),
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine_steps_are_exact(name):
    with jax.enable_x64(True):
        function = AFFINE[name]
        z = jnp.zeros((2, N))
        p = params(v=array(function(z).shape[1], 3))
        apply = lambda p, x: function(norm(p, x @ p["w"])) @ p["v"]  # noqa: E731
        found = moments(apply, p, (1, 4))
        mean, covariance = model(p)
        jacobian = jax.jacobian(lambda z: function(z[None])[0])(jnp.asarray(mean))
        np.testing.assert_allclose(found["v"].mean[0], function(mean[None])[0], atol=1e-9)
        np.testing.assert_allclose(
            found["v"].covariance[0], jacobian @ covariance @ jacobian.T, atol=1e-9
        )
        np.testing.assert_allclose(found["w"].covariance[0], np.eye(4))


NONLINEAR = {
    "relu": jax.nn.relu,
    "hard swish": jax.nn.hard_swish,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "chosen": lambda z: jnp.where(z > 0, z, jnp.expm1(z)),
    "indicator": lambda z: z * (z > 0.5).astype(z.dtype),
    "residual": lambda z: z + jax.nn.relu(z) @ (0.3 * jnp.eye(N)[::-1]),
    "two branches": lambda z: jax.nn.relu(z[:, :3]) - jax.nn.relu(z[:, 3:]),
    "gate": lambda z: (z @ jnp.ones((N, 3)) / 2) * z[:, :3],
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_functions_agree_with_samples(name):
    with jax.enable_x64(True):
        function = NONLINEAR[name]
        width = function(jnp.zeros((2, N))).shape[1]
        p = params(v=array(width, 3))
        apply = lambda p, x: function(norm(p, x @ p["w"])) @ p["v"]  # noqa: E731
        found = moments(apply, p, (1, 4))
        compare(found["v"], np.asarray(function(samples(p))))


def convolution(x, w, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, options.pop("strides", (1, 1)), "SAME", dimension_numbers=numbers, **options
    )


@pytest.mark.parametrize("groups", [1, 3])
def test_convolutions_see_positions_that_correlate(groups):
    """The covariance of patches, and what a kernel makes of it, whose marginals the norm knows."""
    p = params(w=array(1, 1, 4, N), v=array(3, 3, N // groups, N), u=array(N, 2))
    p |= {f"{k}2": x for k, x in params().items()}
    second = {k: f"{k}2" for k in ("mean", "var", "scale", "offset")}

    def apply(p, x):
        z = norm(p, convolution(x, p["w"]))
        y = convolution(z, p["v"], strides=(2, 2), feature_group_count=groups)
        return norm({k: p[name] for k, name in second.items()}, y).mean((1, 2)) @ p["u"]

    found = moments(apply, p, (1, 8, 8, 4), correlation=0.3)
    colours = 0.9 + 0.1 * np.eye(4)
    w = p["w"][0, 0]
    gram = w.T @ colours @ w
    d = np.sqrt(p["var"] / (p["var"] + 1e-3)) * p["scale"] / np.sqrt(np.diag(gram))
    covariance = d[:, None] * gram * d
    alike = 0.3 + 0.7 * np.eye(9)
    n = N // groups
    along = 2 * np.arange(4)[:, None] + np.arange(3) < 8  # the last window reaches beyond
    inside = np.kron(along, along).astype(float)
    for i in range(groups):
        own = slice(i * n, (i + 1) * n)
        means = np.einsum("pt,c->pct", inside, p["offset"][own]).reshape(16, -1)
        within = [np.kron(covariance[own, own], alike * np.outer(one, one)) for one in inside]
        want = np.mean(within, 0) + np.cov(means.T, bias=True)
        np.testing.assert_allclose(found["v"].covariance[i], want, atol=1e-12)
        np.testing.assert_allclose(found["v"].mean[i], means.mean(0), atol=1e-12)

    kernel = np.zeros((N, 9, N))  # channel, tap, output
    for i in range(N):
        group = np.arange(N) // n
        kernel[i][:, group == group[i]] = p["v"].reshape(9, n, N)[:, i % n][:, group == group[i]]
    kernel = kernel.reshape(N * 9, N)
    whole = kernel.T @ np.kron(covariance, alike) @ kernel
    d = np.sqrt(p["var2"] / (p["var2"] + 1e-3)) * p["scale2"] / np.sqrt(np.diag(whole))
    pooled = (1 + 15 * 0.3) / 16
    np.testing.assert_allclose(
        found["u"].covariance[0], pooled * d[:, None] * whole * d, atol=1e-12
    )
    np.testing.assert_allclose(found["u"].mean[0], p["offset2"])


def test_patches_are_arranged_as_those_of_data_are():
    """Channels of different means, with the zeros around an image."""
    p = params(w=array(1, 1, 4, N), v=array(3, 2, N, 2))
    apply = lambda p, x: convolution(norm(p, convolution(x, p["w"])), p["v"])  # noqa: E731
    found = moments(apply, p, (1, 8, 8, 4))["v"]
    x = np.broadcast_to(p["offset"], (1, 8, 8, N))
    equation = jax.make_jaxpr(lambda x, w: convolution(x, w))(x, p["v"]).eqns[0]
    patches = rows(normal_form(equation, 0), jnp.asarray(x), p["v"].shape)
    np.testing.assert_allclose(found.mean, patches.mean(1), rtol=1e-5)
    spread = np.cov(patches[0].T, bias=True)  # what the border alone does, every window has it
    apart = found.covariance[0] - spread
    assert np.linalg.eigvalsh(apart).min() > -1e-6


def positions(p, k, r):
    """Samples [s, k, n] of k positions."""
    mean, covariance = model(p | {"w": np.linalg.cholesky(0.9 + 0.1 * np.eye(4)).T @ p["w"]})
    alike = r + (1 - r) * np.eye(k)
    draws = RNG.multivariate_normal(np.zeros(k * N), np.kron(alike, covariance), SAMPLES // 4)
    return draws.reshape(-1, k, N) + mean


def pooled(reduce, p, x):
    z = jax.nn.relu(norm(p, convolution(x, p["w"][None, None])))
    return reduce(z).reshape(x.shape[0], -1, N)[:, 0] @ p["v"]


@pytest.mark.parametrize("r", [0.0, 0.6])
def test_pooling_and_flattening(r):
    p = params(v=array(N, 3))
    z = np.maximum(positions(p, 4, r), 0)

    def window(init, op):
        size = (1, 2, 2, 1)
        return lambda z: lax.reduce_window(z, init, op, size, size, "VALID")

    sums = lambda z: window(0.0, lax.add)(z) / 4  # noqa: E731
    found = {
        name: moments(lambda p, x, f=f: pooled(f, p, x), p, (1, 2, 2, 4), correlation=r)["v"]
        for name, f in {
            "max": window(-np.inf, lax.max),
            "global max": lambda z: z.max((1, 2)),
            "sum": sums,
            "mean": lambda z: z.mean((1, 2)),
        }.items()
    }
    for name in ("max", "global max"):
        largest = z.max(1)
        np.testing.assert_allclose(found[name].mean[0], largest.mean(0), rtol=0.03, atol=0.01)
        scale = largest.var(0).max()
        np.testing.assert_allclose(found[name].covariance[0], np.cov(largest.T), atol=0.06 * scale)
    one = found["sum"]
    np.testing.assert_allclose(found["mean"].covariance, one.covariance, atol=1e-9)
    np.testing.assert_allclose(one.mean[0], z.mean((0, 1)), atol=0.02)
    alone = np.cov(z[:, 0].T) * (1 + 3 * r) / 4  # positions of a function correlate as before it
    np.testing.assert_allclose(one.covariance[0], alone, atol=0.03 * alone.max())

    def flat(p, x):
        z = norm(p, convolution(x, p["w"][None, None]))
        return z.reshape(z.shape[0], -1) @ p["v"]

    p["v"] = array(4 * N, 3)
    z = positions(p, 4, r).reshape(-1, 4 * N)
    compare(moments(flat, p, (1, 2, 2, 4), correlation=r)["v"], z)


def test_a_gate_for_every_channel():
    """Squeeze and excitation: a mean over positions that comes back to each of them."""

    def apply(p, x):
        z = norm(p, convolution(x, p["w"][None, None]))
        gate = jax.nn.sigmoid(z.mean((1, 2)) @ p["g"])
        return (z * gate[:, None, None]).mean((1, 2)) @ p["v"]

    p = params(v=array(N, 3), g=np.zeros((N, N)))
    found = moments(apply, p, (1, 4, 4, 4))["v"]
    np.testing.assert_allclose(found.mean[0], p["offset"] / 2, atol=1e-9)  # all gates are 1/2
    whole = moments(lambda p, x: apply(p | {"g": p["g"]}, 2 * x), p, (1, 4, 4, 4))["v"]
    np.testing.assert_allclose(found.covariance, whole.covariance, atol=1e-9)


def test_the_mean_activations_of_a_network_are_near_those_of_data():
    """Wide layers on Gaussian inputs of many dimensions: sums are Gaussian, as the model has it."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            bn = lambda: nn.BatchNorm(use_running_average=True)  # noqa: E731
            h = nn.relu(bn()(nn.Dense(256)(x)))
            h = nn.relu(bn()(nn.Dense(16)(h)))
            return nn.Dense(2)(h)

    x = jax.random.normal(jax.random.key(0), (40_000, 400))
    p = Net().init(jax.random.key(1), x[:1])
    p = ifjax.reset_statistics(Net().apply, p, [(x,)])
    found = analytic_moments(Net().apply, p, x[:1])
    graph = ifjax.trace(Net().apply, p, x[:1])
    last = layer_inputs(Net().apply, p, graph.structure, x)[-1].value
    got = found["params/Dense_2/kernel"]
    np.testing.assert_allclose(got.mean[0], last.mean(0), atol=0.05)
    want = np.cov(np.asarray(last).T)
    assert np.linalg.norm(got.covariance[0] - want) < 0.05 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda z: jnp.sort(z, 1), "sort: it is not affine"),
        (lambda z: z.max(1, keepdims=True) * jnp.ones((1, N)), "reduce_max.*different features"),
        (lambda z: z / (1 + z.sum(1, keepdims=True)), "div.*joins different"),
        (lambda z: lax.scan(lambda h, _: (jnp.tanh(h), None), z, length=2)[0], "scan.*nothing"),
        (lambda z: (z @ z.T) @ z, "dot_general.*both factors"),
    ],
    ids=["sort", "max", "div", "scan", "product"],
)
def test_what_cannot_be_followed_is_named(function, match):
    p = params(v=array(N, 3))
    with pytest.raises(ValueError, match=match):
        moments(lambda p, x: function(norm(p, x @ p["w"])) @ p["v"], p, (1, 4))


def test_other_errors():
    p, struct = params(), jax.ShapeDtypeStruct((1, 4), jnp.float32)
    with pytest.raises(ValueError, match="found none"):
        analytic_moments(lambda p, x: x @ p["w"], p, struct)
    with pytest.raises(ValueError, match="correlation between 0 and 1, got 2"):
        analytic_moments(lambda p, x: norm(p, x @ p["w"]), p, struct, correlation=2.0)
