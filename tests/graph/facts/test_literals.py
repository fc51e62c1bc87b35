"""A literal follows the width where it counts the terms of a sum, and nowhere else."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from tests.graph.laws import array, arrays, between, kept

COUNTED = {
    "mean": lambda h: h - h.mean(1, keepdims=True),
    "variance": lambda h: h / jnp.sqrt(h.var(1, keepdims=True) + 1e-5),
    "reciprocal": lambda h: h * (h.sum(1, keepdims=True) * (1 / 8)),
    "count computed": lambda h: h - h.sum(1, keepdims=True) / (jnp.float64(16.0) - 8.0),
    "in two steps": lambda h: h - (h.sum(1)[None] / 8)[0][:, None],
    "softmax over the neurons": lambda h: jax.nn.softmax(h, 1) + h.mean(1, keepdims=True),
    "standardize": lambda h: jax.nn.standardize(h, axis=1),
    "called": lambda h: (
        jax.jit(lambda h: jnp.mean(jax.checkpoint(jnp.square)(h), 1))(h)[:, None] * h
    ),
}


@pytest.mark.parametrize("case", COUNTED)
def test_the_count_follows_the_width(case):
    """The shrunk function is the same function written at the small width."""
    middle = COUNTED[case]
    f, p, x = between(middle)
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (p, x))
        graph = ifjax.trace(f, p, x)
        (group,) = graph.groups
        assert not group.exact
        small = ifjax.take(p, graph, {"a": kept(8)})
        got = ifjax.shrink(f, graph.spec(keep=4))(small, x)
        if case in ("reciprocal", "count computed", "in two steps"):
            of_four = {
                "reciprocal": lambda h: h * (h.sum(1, keepdims=True) * (1 / 4)),
                "count computed": COUNTED["mean"],
                "in two steps": COUNTED["mean"],
            }
            middle = of_four[case]
        want = middle(x @ small["a"]) @ small["b"]
        np.testing.assert_allclose(got, want, rtol=1e-12)
        gradient = jax.grad(lambda p: ifjax.shrink(f, graph.spec(keep=4))(p, x).sum())(small)
        expected = jax.grad(lambda p: (middle(x @ p["a"]) @ p["b"]).sum())(small)
        for k in gradient:
            np.testing.assert_allclose(gradient[k], expected[k], rtol=1e-9, atol=1e-12)


FIXED = {
    "an unrelated eight": lambda h: h / 8,
    "a root of the width": lambda h: h / jnp.sqrt(8.0),
    "not the number of terms": lambda h: h - h.sum(1, keepdims=True) / 4,
    "of another sum": lambda h: h - jnp.sin(h.sum(1, keepdims=True)) / 8,
    "over the batch": lambda h: h - h.sum(0) / 4,
}


@pytest.mark.parametrize("case", FIXED)
def test_other_numbers_stay(case):
    f, p, x = between(FIXED[case])
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (p, x))
        graph = ifjax.trace(f, p, x)
        small = ifjax.take(p, graph, {"a": kept(8)})
        got = ifjax.shrink(f, graph.spec(keep=4))(small, x)
        np.testing.assert_allclose(got, FIXED[case](x @ small["a"]) @ small["b"], rtol=1e-12)


def test_a_mean_over_pixels_and_channels_counts_both():
    def f(p, x):
        h = jnp.einsum("nhwc,cd->nhwd", x, p["a"])
        return (h - h.mean((1, 2, 3), keepdims=True)).sum((1, 2)) @ p["b"]

    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (arrays(a=(3, 8), b=(8, 2)), array(2, 3, 2, 3)))
        graph = ifjax.trace(f, p, x)
        small = ifjax.take(p, graph, {"a": kept(8)})
        got = ifjax.shrink(f, graph.spec(keep=4))(small, x)
        np.testing.assert_allclose(got, f(small, x), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_layer_norms_of_a_framework(norm, dtype):
    class Net(nn.Module):
        width: int = 6

        @nn.compact
        def __call__(self, x):
            h = nn.Dense(self.width, dtype=dtype)(x)
            h = h + nn.Dense(self.width, dtype=dtype)(nn.gelu(norm(dtype=dtype)(h)))
            return nn.Dense(2, dtype=dtype)(norm(dtype=dtype)(h))

    x = jax.random.normal(jax.random.key(0), (5, 3))
    params = Net().init(jax.random.key(1), x)

    def f(p, x):
        return Net().apply(p, x)

    graph = ifjax.trace(f, params, x)
    assert [(g.size, g.exact, g.kind) for g in graph.groups] == [(6, False, "neuron")]
    small = ifjax.take(params, graph, {graph.groups[0].name: [0, 2, 3]})
    got = ifjax.shrink(f, graph.spec(keep=3))(small, x)
    want = Net(width=3).apply(small, x)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(got.astype(float), want.astype(float), tolerance, tolerance)
    assert graph.verify(f, params, x).ok
