"""Contractions: which axes they tie, in every layout, and grouped convolutions at other widths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, hold, reasons


def roles(graph: ifjax.DependencyGraph, name: str) -> set[tuple[str, int, str]]:
    return {(m.path, m.axis, m.role) for m in graph.structure.group[name].members}


# Matrix products


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_dense_layers():
    def f(p, x):
        return jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

    p = arrays(w1=(3, 6), b1=(6,), w2=(6, 2), b2=(2,))
    graph = hold(f, p, array(4, 3), groups={"w1": 6})
    assert roles(graph, "w1") == {
        ("w1", 1, "producer"),
        ("b1", 0, "additive"),
        ("w2", 0, "consumer"),
    }
    assert reasons(graph) == {
        ("w1", 0): "an axis of the function's inputs",
        ("w2", 1): "an axis of the function's outputs",
        ("b2", 0): "an axis of the function's outputs",
    }


def test_kernels_stored_transposed_and_on_the_left():
    def f(p, x):
        return (p["w2"] @ jnp.tanh(p["w1"] @ x.T)).T

    graph = hold(f, arrays(w1=(6, 3), w2=(2, 6)), array(4, 3), groups={"w1": 6})
    assert roles(graph, "w1") == {("w1", 0, "producer"), ("w2", 1, "consumer")}


def test_a_recurrent_weight_holds_one_group_on_both_axes():
    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        for _ in range(2):
            h = jnp.tanh(h @ p["w"] + x @ p["a"])
        return h @ p["b"]

    p = arrays(a=(3, 5), w=(5, 5), b=(5, 2))
    graph = hold(f, p, array(4, 3), groups={"w": 5})
    assert {(m.path, m.axis) for m in graph.groups[0].members} == {
        ("a", 1),
        ("w", 0),
        ("w", 1),
        ("b", 0),
    }
    assert graph.groups[0].kind == "neuron"


def test_tied_weights_are_one_member_for_both_uses():
    """A decoder that reads the encoder's kernel transposed."""

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        z = jnp.tanh(h @ p["w"])
        return (z @ p["w"].T) @ p["b"]

    hold(f, arrays(a=(3, 6), w=(6, 4), b=(6, 2)), array(4, 3), groups={"a": 6, "w": 4})


def test_one_leaf_used_twice_ties_what_it_meets():
    def f(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"] + jnp.sin(x @ p["c"]) @ p["b"]

    hold(f, arrays(a=(3, 6), c=(3, 6), b=(6, 2)), array(4, 3), groups={"a": 6})


def test_two_groups_in_one_axis():
    def f(p, x):
        h = jnp.concatenate([jnp.tanh(x @ p["a"]), jnp.sin(x @ p["c"])], 1)
        return h @ p["b"]

    graph = hold(f, arrays(a=(3, 4), c=(3, 6), b=(10, 2)), array(4, 3), groups={"a": 4, "c": 6})
    where = {g.name: [m.where for m in g.members if m.path == "b"] for g in graph.groups}
    assert where == {"a": [("0:4",)], "c": [("4:10",)]}


def test_residual_stream_and_inner_widths():
    def f(p, x):
        h = x @ p["a"]
        for k in (1, 2):
            h = h + jnp.tanh(h @ p[f"u{k}"]) @ p[f"d{k}"]
        return h @ p["b"]

    p = arrays(a=(3, 6), u1=(6, 4), d1=(4, 6), u2=(6, 5), d2=(5, 6), b=(6, 2))
    hold(f, p, array(4, 3), groups={"a": 6, "u1": 4, "u2": 5})


@pytest.mark.parametrize("layout", ["separate", "fused by reshape", "fused by slices"])
def test_attention(layout):
    """Heads, key width and value width; batch dimensions of dots are the heads."""
    heads, d = 2, 4

    def attend(q, k, v):
        scores = jnp.einsum("ihd,jhd->hij", q, k)
        return jnp.einsum("hij,jhd->ihd", jax.nn.softmax(scores), v)

    def f(p, x):
        if layout == "separate":
            q, k, v = (jnp.einsum("nc,chd->nhd", x, p[n]) for n in "qkv")
            return jnp.einsum("ihd,hdo->io", attend(q, k, v), p["o"])
        if layout == "fused by reshape":
            q, k, v = jnp.moveaxis((x @ p["qkv"]).reshape(-1, 3, heads, d), 1, 0)
        else:
            q, k, v = (y.reshape(-1, heads, d) for y in jnp.split(x @ p["qkv"], 3, 1))
        return attend(q, k, v).reshape(-1, heads * d) @ p["o"]

    x = array(5, 3)
    if layout == "separate":
        p = arrays(q=(3, heads, d), k=(3, heads, d), v=(3, heads, d), o=(heads, d, 2))
        graph = hold(f, p, x)
        assert sorted(g.size for g in graph.groups) == [2, 4, 4]
        sizes = {frozenset(m.path for m in g.members): g.size for g in graph.groups}
        assert sizes == {frozenset("qkvo"): 2, frozenset("qk"): 4, frozenset("vo"): 4}
    else:
        graph = hold(f, arrays(qkv=(3, 3 * heads * d), o=(heads * d, 2)), x)
        if layout == "fused by slices":
            assert sorted(g.size for g in graph.groups) == [2, 4, 4]
        else:  # one array [3, heads, d] ties the value width to the key width
            assert sorted(g.size for g in graph.groups) == [2, 4]


def test_contraction_over_two_axes_and_a_batched_kernel():
    def f(p, x):
        h = jnp.tanh(jnp.einsum("nc,ecd->ned", x, p["a"]))  # experts
        return jnp.einsum("ned,edo->no", h, p["b"])

    graph = hold(f, arrays(a=(4, 3, 6), b=(4, 6, 2)), array(5, 3))
    assert sorted(g.size for g in graph.groups) == [4, 6]


def test_a_gram_matrix_of_neurons_moves_on_both_axes():
    def f(p, x):
        h = x @ p["a"]
        return (jnp.tanh(h.T @ h) @ p["w"] @ p["b"]).sum(0)

    graph = ifjax.trace(f, arrays(a=(3, 5), w=(5, 5), b=(5, 2)), array(4, 3))
    assert {g.name: g.size for g in graph.groups} == {"a": 5, "w": 5}


# Convolutions


def conv(x, k, layout="NHWC", kernel="HWIO", **options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return lax.conv_general_dilated(x, k, dimension_numbers=(layout, kernel, layout), **options)


@pytest.mark.parametrize(
    ("layout", "kernel"),
    [("NHWC", "HWIO"), ("NCHW", "OIHW"), ("NHWC", "OIHW"), ("NCHW", "HWIO"), ("NHWC", "HWOI")],
)
def test_convolutions_in_every_layout(layout, kernel):
    def f(p, x):
        y = conv(jnp.tanh(conv(x, p["k1"], layout, kernel)), p["k2"], layout, kernel)
        return y.mean((0, layout.index("H"), layout.index("W")))

    def shape(i, o):
        return tuple({"H": 3, "W": 2, "I": i, "O": o}[c] for c in kernel)

    x = array(*({"N": 2, "H": 4, "W": 4, "C": 3}[c] for c in layout))
    graph = hold(f, arrays(k1=shape(3, 4), k2=shape(4, 2)), x, groups={"k1": 4})
    assert roles(graph, "k1") == {
        ("k1", kernel.index("O"), "producer"),
        ("k2", kernel.index("I"), "consumer"),
    }
    pinned = reasons(graph)
    assert "spatial axis of a convolution" in pinned["k1", kernel.index("H")]


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (2, 1)},
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 2), "padding": ((1, 1), (1, 1))},
        {"padding": ((0, 1), (2, 0))},
    ],
    ids=lambda o: next(iter(o)),
)
def test_strided_dilated_transposed_and_padded(options):
    def f(p, x):
        return conv(jnp.tanh(conv(x, p["k1"], **options)), p["k2"], **options).sum((1, 2))

    hold(f, arrays(k1=(2, 2, 3, 4), k2=(2, 2, 4, 2)), array(2, 6, 6, 3), groups={"k1": 4})


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_kernels_follow_the_width(multiplier):
    def f(p, x):
        h = conv(x, p["k1"])
        h = jnp.tanh(conv(h, p["d"], feature_group_count=h.shape[3]))
        return conv(h, p["k2"]).sum((1, 2))

    p = arrays(k1=(1, 1, 3, 4), d=(2, 2, 1, 4 * multiplier), k2=(1, 1, 4 * multiplier, 2))
    more = {"d (factor 2 of 4x2)": 2} if multiplier == 2 else {}
    graph = hold(f, p, array(2, 3, 3, 3), groups={"k1": 4} | more)
    role = {m.path: m.role for m in graph.structure.group["k1"].members}
    assert role == {"k1": "producer", "d": "multiplicative", "k2": "consumer"}


def test_grouped_convolutions_cut_groups_and_widths():
    """Two groups of 3 in and 4 out: the groups, the inner and the outer width are all free."""

    def f(p, x):
        h = jnp.tanh(conv(x, p["k1"]))
        h = jnp.tanh(conv(h, p["g"], feature_group_count=2))
        return conv(h, p["k2"]).sum((1, 2))

    p = arrays(k1=(1, 1, 3, 6), g=(2, 1, 3, 8), k2=(1, 1, 8, 2))
    graph = hold(f, p, array(2, 3, 3, 3))
    sizes = {frozenset(m.path for m in g.members): g.size for g in graph.groups}
    assert sizes == {
        frozenset({"k1", "g", "k2"}): 2,
        frozenset({"k1", "g"}): 3,
        frozenset({"g", "k2"}): 4,
    }


def test_gradients_of_grouped_convolutions_are_grouped_over_the_batch():
    """A kernel made by a step of gradient descent inside the function."""

    def f(p, x):
        h = jnp.tanh(conv(x, p["k1"]))

        def energy(kernel):
            return (conv(h, kernel, feature_group_count=2) ** 2).sum()

        kernel = p["g"] - 0.1 * jax.grad(energy)(p["g"])
        h = jnp.tanh(conv(h, kernel, feature_group_count=2))
        return conv(h, p["k2"]).sum((1, 2))

    p, x = arrays(k1=(1, 1, 3, 6), g=(2, 1, 3, 8), k2=(1, 1, 8, 2)), array(2, 3, 3, 3)
    assert "batch_group_count=2" in str(jax.make_jaxpr(f)(p, x))
    graph = hold(f, p, x)
    assert sorted(g.size for g in graph.groups) == [2, 3, 4]


def test_ragged_products_keep_the_widths_of_the_experts():
    """Tokens sorted by expert: the experts are pinned, their inner width is one group."""

    def f(p, x, count):
        h = jnp.tanh(lax.ragged_dot(x @ p["a"], p["up"], count))
        return lax.ragged_dot(h, p["down"], count) @ p["b"]

    p = arrays(a=(3, 6), up=(2, 6, 5), down=(2, 5, 4), b=(4, 2))
    graph = hold(f, p, array(7, 3), np.array([3, 4], np.int32))
    members = {frozenset((m.path, m.role) for m in g.members): g.size for g in graph.groups}
    assert members == {
        frozenset({("a", "producer"), ("up", "consumer")}): 6,
        frozenset({("up", "producer"), ("down", "consumer")}): 5,
        frozenset({("down", "producer"), ("b", "consumer")}): 4,
    }
    assert "ragged_dot_general: kernels of ragged groups" in reasons(graph)["up", 0]


def test_one_by_one_windows_let_the_spatial_axes_pass():
    """A "spatial" axis of neurons goes through a kernel of width one as it is."""

    def f(p, x):
        h = jnp.tanh(jnp.einsum("nc,cw->nw", x, p["a"]))
        h = conv(h[:, None, :, None], p["k"], padding="VALID")  # [n, 1, w, features]
        return jnp.einsum("nhwc,wco->no", jnp.sin(h), p["b"])

    hold(f, arrays(a=(3, 5), k=(1, 1, 1, 4), b=(5, 4, 2)), array(4, 3), groups={"a": 5, "k": 4})


@pytest.mark.parametrize(
    "options",
    [{"window_strides": (1, 2)}, {"lhs_dilation": (1, 2)}, {"padding": ((0, 0), (1, 0))}],
    ids=lambda o: next(iter(o)),
)
def test_windows_of_one_that_skip_or_pad_pin(options):
    def f(p, x):
        h = jnp.tanh(x @ p["a"])[:, None, :, None]
        h = conv(h, p["k"], **({"padding": ((0, 0), (0, 0))} | options))
        return jnp.einsum("nhwc,wco->no", h, p["b"])

    out = {"window_strides": 3, "lhs_dilation": 9, "padding": 6}[next(iter(options))]
    p = arrays(a=(3, 5), k=(1, 1, 1, 4), b=(out, 4, 2))
    graph = hold(f, p, array(4, 3), groups={"k": 4})
    assert "spatial axis of a convolution" in reasons(graph)["a", 1]


def test_flops_count_the_contractions_of_the_small_network():
    def f(p, x):
        h = conv(x, p["k1"])
        h = conv(jnp.tanh(h), p["d"], feature_group_count=4)
        return h.reshape(2, -1) @ p["b"]

    p = arrays(k1=(3, 3, 2, 4), d=(2, 2, 1, 4), b=(36 * 4, 5))
    graph = ifjax.trace(f, p, np.zeros((2, 6, 6, 2)))
    spec = graph.spec(0.5)

    def flops(n):
        return 2 * 2 * (36 * 9 * 2 * n + 36 * 4 * n + 36 * n * 5)

    assert spec.flops() == (flops(4), flops(2))
    assert spec.weights() == (9 * 2 * 4 + 16 + 720, 9 * 2 * 2 + 8 + 360)
