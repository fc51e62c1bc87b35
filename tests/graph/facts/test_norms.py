"""Batch norms are found by their algebra, and folded only where nothing else would notice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import ifjax
from ifjax.fusion.execution.merging import fold
from ifjax.tree import leaves_by_path, with_leaves
from tests.graph.laws import array, arrays, hold

X = array(4, 3)
VECTORS = ("scale", "offset", "mean", "var")


def params(width=6, **more):
    p = arrays(w=(3, width), v=(width, 2), **more)
    p |= arrays(**dict.fromkeys(VECTORS, (width,)))
    return p | {"var": np.abs(p["var"]) + 0.5}


def norm(h, p, eps=1e-3):
    return (h - p["mean"]) * (lax.rsqrt(p["var"] + eps) * p["scale"]) + p["offset"]


# The same batch norm as different libraries multiply it out
FORMS = {
    "linen": norm,
    "haiku": lambda h, p: (lambda inv: h * inv + (p["offset"] - p["mean"] * inv))(
        p["scale"] * lax.rsqrt(p["var"] + 1e-3)
    ),
    "textbook": lambda h, p: (h - p["mean"]) / jnp.sqrt(p["var"] + 1e-3) * p["scale"] + p["offset"],
    "negative mean": lambda h, p: (
        p["offset"] - (p["mean"] - h) * p["scale"] / jnp.sqrt(1e-3 + p["var"])
    ),
    "inverse of the root": lambda h, p: (
        (h - p["mean"]) * (1 / jnp.sqrt(p["var"] + 1e-3)) * p["scale"] + p["offset"]
    ),
    "jitted": jax.jit(norm),
    "remat": jax.checkpoint(norm),
    "in two axes of shape one": lambda h, p: norm(h, {k: a.reshape(1, -1) for k, a in p.items()}),
}


def records(f, p, *inputs):
    with jax.enable_x64(True):
        return ifjax.trace(f, p, *inputs).structure.norms


def network(form):
    return lambda p, x: jnp.tanh(form(x @ p["w"], {k: p[k] for k in VECTORS})) @ p["v"]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_every_way_of_writing_it_is_found(name):
    f, p = network(FORMS[name]), params()
    (record,) = records(f, p, X)
    assert (record.kernel, record.axis, record.bias) == ("w", 1, None)
    assert (record.scale, record.offset) == ("scale", "offset")
    assert (record.mean, record.variance) == ("mean", "var")
    assert record.eps == pytest.approx(1e-3, rel=1e-6)
    graph = hold(f, p, X, groups={"w": 6})
    assert {m.path: m.role for m in graph.groups[0].members} == {
        "w": "producer",
        "v": "consumer",
        "scale": "multiplicative",
        "offset": "additive",
        "mean": "mean",
        "var": "variance",
    }


def folded_equals(f, p, x) -> bool:
    """Whether folding every norm that is recorded leaves the function as it was."""
    with jax.enable_x64(True):
        p = jax.tree.map(jnp.asarray, p)
        structure = ifjax.trace(f, p, x).structure
        leaves = fold(leaves_by_path(p), structure.norms)
        for n in structure.norms:  # what is left of the norm has unit slope
            leaves[n.variance] = jnp.ones_like(leaves[n.variance]) - n.eps
            leaves[n.scale] = jnp.ones_like(leaves[n.scale])
        return bool(np.abs(f(with_leaves(p, leaves), x) - f(p, x)).max() < 1e-9)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_folding_before_a_bias():
    def f(p, x):
        return jnp.tanh(norm(x @ p["w"] + p["b"], p)) @ p["v"]

    p = params(b=(6,))
    (record,) = records(f, p, X)
    assert record.bias == "b"
    assert folded_equals(f, p, X)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_a_norm_without_offset():
    def f(p, x):
        return jnp.tanh((x @ p["w"] - p["mean"]) * lax.rsqrt(p["var"] + 1e-3) * p["scale"]) @ p["v"]

    (record,) = records(f, params(), X)
    assert record.offset is None
    assert folded_equals(f, params(), X)


def conv(x, k, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers, **options)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_convolutions_fold_along_their_output_axis(groups):
    def f(p, x):
        y = conv(x, p["k"], feature_group_count=groups)
        return jnp.tanh(norm(y, p)).sum((1, 2)) @ p["v"]

    p, x = params(k=(2, 2, 4 // groups, 6)), array(2, 3, 3, 4)
    (record,) = records(f, p, x)
    assert (record.kernel, record.axis) == ("k", 3)
    assert folded_equals(f, p, x)


# A norm that must not be folded; the groups are the same
KEPT = {
    "without scale": lambda p, x: (
        jnp.tanh((x @ p["w"] - p["mean"]) * lax.rsqrt(p["var"] + 1e-3) + p["offset"]) @ p["v"]
    ),
    "pre-activation, on a residual stream": lambda p, x: (
        jnp.tanh(norm(x @ p["w"] + jnp.sin(x @ p["u"]), p)) @ p["v"]
    ),
    "after a nonlinearity": lambda p, x: norm(jnp.tanh(x @ p["w"]), p) @ p["v"],
    "kernel output read twice": lambda p, x: (
        lambda y: (jnp.tanh(norm(y, p)) + jnp.sin(y)) @ p["v"]
    )(x @ p["w"]),
    "kernel applied twice": lambda p, x: (
        (jnp.tanh(norm(x @ p["w"], p)) + jnp.sin(jnp.cos(x) @ p["w"])) @ p["v"]
    ),
    "kernel in a penalty": lambda p, x: (
        jnp.tanh(norm(x @ p["w"], p)) @ p["v"] + (p["w"] ** 2).sum()
    ),
    "kernel scaled first": lambda p, x: jnp.tanh(norm(x @ (2 * p["w"]), p)) @ p["v"],
    "shared by two kernels": lambda p, x: (
        (jnp.tanh(norm(x @ p["w"], p)) + jnp.sin(norm(x @ p["u"], p))) @ p["v"]
    ),
    "scale read elsewhere": lambda p, x: (
        (jnp.tanh(norm(x @ p["w"], p)) + jnp.sin(x @ p["u"]) * p["scale"]) @ p["v"]
    ),
    "mean read elsewhere": lambda p, x: (
        (jnp.tanh(norm(x @ p["w"], p)) + jnp.sin(x @ p["u"] + p["mean"])) @ p["v"]
    ),
    "bias read elsewhere": lambda p, x: (
        (jnp.tanh(norm(x @ p["w"] + p["b"], p)) + jnp.sin(jnp.cos(x @ p["u"]) + p["b"])) @ p["v"]
    ),
    "kernel on the left": lambda p, x: jnp.tanh(norm((p["w"].T @ x.T).T, p)) @ p["v"],
    "scaled again": lambda p, x: jnp.tanh(norm(x @ p["w"], p) * p["b"]) @ p["v"],
    "another scale for one image": lambda p, x: jnp.tanh(norm(x @ p["w"] * x.mean(), p)) @ p["v"],
}


@pytest.mark.parametrize("name", KEPT)
def test_norms_that_must_not_be_folded(name):
    p = params(u=(3, 6), b=(6,))
    with jax.enable_x64(True):
        graph = ifjax.trace(KEPT[name], p, X)
        assert graph.structure.norms == ()
        assert [g.size for g in graph.groups] == [6]
        assert graph.verify(KEPT[name], p, X).ok


def test_a_norm_along_another_axis_of_the_same_size_is_not_the_channels():
    """A square output [positions, channels], normalised over positions."""

    def f(p, x):
        y = jnp.einsum("nlc,cd->nld", x, p["w"])
        along = {k: p[k][:, None] for k in VECTORS}
        return jnp.tanh(norm(y, along)).sum(1) @ p["v"]

    p = params()
    assert records(f, p, array(2, 6, 3)) == ()


def test_train_mode_normalises_by_the_batch_and_records_nothing():
    def f(p, x):
        h = x @ p["w"]
        h = (h - h.mean(0)) * lax.rsqrt(h.var(0) + 1e-3) * p["scale"] + p["offset"]
        return jnp.tanh(h) @ p["v"]

    assert records(f, params(), X) == ()


def test_layer_norm_is_no_batch_norm():
    def f(p, x):
        h = x @ p["w"]
        h = (h - h.mean(1, keepdims=True)) * lax.rsqrt(h.var(1, keepdims=True) + 1e-3)
        return (h * p["scale"] + p["offset"]) @ p["v"]

    assert records(f, params(), X) == ()


@pytest.mark.parametrize("closed", [("mean",), ("var",), ("mean", "var")])
def test_statistics_that_are_closed_over_are_an_error_that_shows_the_way(closed):
    p = params()
    kept = {k: p.pop(k) for k in closed}

    def f(q, x):
        return network(norm)(q | kept, x)

    with pytest.raises(ValueError, match=r'running statistics .* {"params": \.\.\., "batch_stats"'):
        ifjax.trace(f, p, X)


def test_linen_networks():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            y = nn.Conv(4, (3, 3))(x)
            y = nn.BatchNorm(use_running_average=True, epsilon=1e-2)(y) + x
            y = nn.BatchNorm(use_running_average=True)(y)
            return nn.Dense(2)(y.mean((1, 2)))

    variables = Net().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    found = records(Net().apply, variables, np.zeros((1, 4, 4, 3)))
    assert [(n.kernel, n.bias, round(n.eps, 6)) for n in found] == [
        ("params/Conv_0/kernel", None, 1e-5),
        ("params/Conv_1/kernel", "params/Conv_1/bias", 1e-2),
    ]
