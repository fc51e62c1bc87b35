"""Numbers of a program: those that count a width follow it; the others stay and are told."""

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
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
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
@pytest.mark.promotes(dtypes="its functions mix dtypes")
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


COMMON = {
    "a half": lambda h: 0.5 * h * (h**2).sum(-1, keepdims=True),
    "gelu": lambda h: jax.nn.gelu(h) + jax.nn.silu(h) + jax.nn.gelu(h, approximate=False),
    "hard functions": lambda h: jax.nn.hard_swish(h) + jax.nn.hard_tanh(h) + jax.nn.relu6(h),
    "leaky": lambda h: jax.nn.leaky_relu(h) + jax.nn.elu(h) + jax.nn.selu(h),
    "layer norm": lambda h: jax.nn.standardize(h) * 2 + 1,
    "softmax, temperature ten": lambda h: jax.nn.softmax(10 * h),
    "pooling of 4 rows": lambda h: h - h.mean(0),
    "root of two": lambda h: (h + jnp.sin(h)) / np.sqrt(2),
    "square and two times": lambda h: 2 * jnp.square(h) - 1 / 3,
}


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("case", COMMON)
def test_common_constants_raise_no_alarm(case, width, reads):
    f, p, x = between(COMMON[case], width)

    def fixed(p, x):
        assert p["a"].shape[-1] == width, "declared"
        return f(p, x)

    graph = ifjax.trace(f if reads else fixed, p, x)
    assert graph.literals == ()
    graph.spec(0.5)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("place", ["scores", "queries", "both", "divided", "no contraction"])
def test_the_scale_of_attention_is_named_and_stays(place, reads):
    """0.25 with four heads of 16 comes from the 16, and not from the heads."""

    def f(p, x):
        assert reads or p["q"].shape == (6, 4, 16), "declared"
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        d = q.shape[-1]
        scale = d**-0.5
        if place == "queries":
            q, scale = q * scale, 1
        elif place == "both":
            q, k, scale = q * d**-0.25, k * d**-0.25, 1
        if place == "no contraction":
            scores = jnp.moveaxis((q[:, :, None] * k[:, None]).sum(-1), 3, 1) * scale
        else:
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
            scores = scores / np.sqrt(d) if place == "divided" else scores * scale
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        return jnp.einsum("bthd,hdc->btc", mixed, p["o"])

    p = arrays(q=(6, 4, 16), k=(6, 4, 16), v=(6, 4, 5), o=(4, 5, 6))
    x = array(2, 5, 6)
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (p, x))
        graph = ifjax.trace(f, p, x)
        dims = next(g.name for g in graph.groups if g.size == 16)
        scale = [n for n in graph.numbers if n.groups == (dims,)]
        assert len(scale) == len(graph.numbers) == (2 if place == "both" else 1), graph.literals
        assert all(not n.follows for n in scale)
        assert scale[0].text.endswith(f"16 the width of {dims}")
        assert "products of queries and keys" in scale[0].text
        assert not any(n.unclear for n in scale)
        graph.spec(0.5)  # without a warning


def test_a_number_of_a_group_that_is_not_cut_is_not_warned_of():
    def f(p, x):
        h = jnp.tanh(x @ p["a"]) * np.sqrt(p["a"].shape[1])
        return jnp.tanh(h @ p["b"]) @ p["c"]

    graph = ifjax.trace(f, arrays(a=(3, 8), b=(8, 6), c=(6, 2)), array(4, 3))
    assert [n.groups for n in graph.numbers] == [("a",)]
    graph.spec({"b": 0.5})
    with pytest.warns(UserWarning, match="8 the width of a"):
        graph.spec(0.5)


def test_numbers_of_two_functions_are_joined():
    def f(p, x, scale=1.0):
        return jnp.tanh(x @ p["a"]) / (p["a"].shape[1] ** 0.5 if scale else 1) @ p["b"]

    p, x = arrays(a=(3, 8), b=(8, 2)), array(4, 3)
    one, other = ifjax.trace(f, p, x), ifjax.trace(f, p, x, scale=None)
    assert (other & one).literals == one.literals != ()


def test_a_number_that_equals_a_width_is_told_though_it_does_not_change():
    """Attention's scale as a number, and a width as one; a count of pixels is neither."""

    def f(p, x):
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * 0.25)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        h = jnp.tanh(jnp.einsum("bthd,hdc->btc", mixed, p["o"]) * 10.0)
        return (h * 12.0).sum(1) / 5 @ p["out"]

    p = arrays(q=(6, 4, 16), k=(6, 4, 16), v=(6, 4, 5), o=(4, 5, 12), out=(12, 2))
    graph = ifjax.trace(f, p, array(2, 5, 6))
    scale, width = sorted(graph.numbers, key=lambda n: n.groups, reverse=True)
    assert scale.text.endswith("1 / sqrt(16), 16 the width of q (head_dim)")
    assert width.text.endswith("stays: 12, the width of o")
    assert not any(n.unclear for n in graph.numbers)
