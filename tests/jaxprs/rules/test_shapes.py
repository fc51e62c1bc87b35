"""Rules that move, merge, split, cut or join axes: groups, and evaluation at another width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, between, hold, reasons

# middle of x @ a -> middle -> @ b, the width of a, the rows of b, and the groups
MIDDLE = {
    "nothing": (lambda h: h, 8, 8, {"a": 8}),
    "unit axes": (lambda h: h.reshape(4, 1, 8, 1)[:, 0, :, 0], 8, 8, {"a": 8}),
    "expand and squeeze": (lambda h: jnp.expand_dims(h, (0, 2)).squeeze((0, 2)), 8, 8, {"a": 8}),
    "transposed twice": (lambda h: jnp.sin(h.T).T, 8, 8, {"a": 8}),
    "merged with the batch": (lambda h: jnp.cos(h.reshape(-1)).reshape(4, 8), 8, 8, {"a": 8}),
    "split and merged": (
        lambda h: jnp.sin(h.reshape(4, 2, 4)).reshape(4, 8),
        8,
        8,
        {"a (factor 1 of 2x4)": 2, "a (factor 2 of 2x4)": 4},
    ),
    "shuffled": (
        lambda h: h.reshape(4, 2, 3).swapaxes(1, 2).reshape(4, 6),
        6,
        6,
        {"a (factor 1 of 2x3)": 2, "a (factor 2 of 2x3)": 3},
    ),
    "shuffled, with a residual, coprime": (
        lambda h: h.reshape(4, 2, 3).swapaxes(1, 2).reshape(4, 6) + h,
        6,
        6,
        {},
    ),
    "shuffled, with a residual": (
        lambda h: h.reshape(4, 2, 2).swapaxes(1, 2).reshape(4, 4) + h,
        4,
        4,
        {"a (factor 1 of 2x2)": 2},
    ),
    "outer product": (lambda h: (h[:, :, None] * h[:, None]).reshape(4, -1), 4, 16, {"a": 4}),
    "padded": (
        lambda h: jnp.pad(h, ((0, 0), (2, 3))) + 1,
        4,
        9,
        {"a": 4, "b (0:2)": 2, "b (6:9)": 3},
    ),
    "cropped by negative padding": (lambda h: lax.pad(h, 0.0, ((0, 0, 0), (-1, 0, 0))), 8, 7, {}),
    "padded inside": (lambda h: lax.pad(h, 0.0, ((0, 0, 0), (0, 0, 1))), 4, 7, {}),
    "first quarter": (lambda h: h[:, :2], 8, 2, {"a (0:2)": 2, "a (2:8)": 6}),
    "a slice in the middle": (
        lambda h: h[:, 2:5],
        8,
        3,
        {"a (0:2)": 2, "a (2:5)": 3, "a (5:8)": 3},
    ),
    "an empty slice": (
        lambda h: jnp.concatenate([lax.slice(h, (0, 5), (4, 5)), h], 1),
        8,
        8,
        {"a": 8},
    ),
    "gated": (lambda h: h[:, :4] * jax.nn.sigmoid(h[:, 4:]), 8, 4, {"a (0:4)": 4}),
    "overlapping slices": (
        lambda h: jnp.concatenate([h[:, :5], h[:, 3:]], 1),
        8,
        10,
        {"a (0:3)": 3, "a (3:5)": 2, "a (5:8)": 3},
    ),
    "shifted by one": (lambda h: h[:, 1:] + h[:, :-1], 8, 7, {}),
    "shifted by two": (lambda h: h[:, 2:] + h[:, :-2], 6, 4, {"a (0:2)": 2}),
    "every second": (lambda h: h[:, ::2], 8, 4, {"a (factor 1 of 4x2)": 4}),
    "every other": (lambda h: h[:, 1::2], 8, 4, {"a (factor 1 of 4x2)": 4}),
    "even times odd": (lambda h: h[:, ::2] * h[:, 1::2], 8, 4, {"a (factor 1 of 4x2)": 4}),
    "every third of eight": (lambda h: h[:, ::3], 8, 3, {}),
    "split in unequal parts": (
        lambda h: jnp.concatenate([jnp.sin(p) for p in jnp.split(h, [2, 5], 1)[::-1]], 1),
        8,
        8,
        {"a (0:2)": 2, "a (2:5)": 3, "a (5:8)": 3},
    ),
    "split with an empty part": (
        lambda h: jnp.concatenate(jnp.split(h, [0, 8], 1), 1),
        8,
        8,
        {"a": 8},
    ),
    "laid twice": (lambda h: jnp.concatenate([h, h], 1), 4, 8, {"a": 4}),
    "tiled": (lambda h: jnp.tile(h, (1, 3)), 4, 12, {"a": 4, "b (factor 1 of 3x4)": 3}),
    "repeated": (lambda h: jnp.repeat(h, 3, 1), 4, 12, {"a": 4, "b (factor 2 of 4x3)": 3}),
    "turned": (lambda h: jnp.roll(h, 2, 1), 8, 8, {"a (0:6)": 6, "a (6:8)": 2}),
    "stacked and unstacked": (lambda h: sum(jnp.stack([h, 2 * h, jnp.sin(h)])), 8, 8, {"a": 8}),
    "unstacked by neuron": (lambda h: jnp.stack([h[:, i] for i in range(4)], 1), 4, 4, {}),
    "bits": (
        lambda h: lax.bitcast_convert_type(lax.bitcast_convert_type(h, jnp.int64), jnp.float64),
        8,
        8,
        {"a": 8},
    ),
    "words": (
        lambda h: lax.bitcast_convert_type(lax.bitcast_convert_type(h, jnp.int32), jnp.float64),
        8,
        8,
        {},
    ),
    "counted": (lambda h: h * jnp.arange(8), 8, 8, {}),
    "compared with the index": (lambda h: jnp.where(lax.iota(int, 8) < 3, h, 0), 8, 8, {}),
    "constant": (lambda h: h * np.full(8, 2.0), 8, 8, {"a": 8}),
    "constant by blocks": (
        lambda h: h * np.repeat([1.0, 2.0, -1.0], [3, 3, 2]),
        8,
        8,
        {"a (0:3)": 3, "a (3:6)": 3, "a (6:8)": 2},
    ),
    "constant that counts": (lambda h: h * np.linspace(1, 2, 8), 8, 8, {}),
    "constant with NaN": (lambda h: jnp.nan_to_num(h * np.full(8, np.nan), nan=1.0) * h, 8, 8, {}),
    "a constant with two blocked axes": (
        lambda h: h @ np.kron(np.eye(2), np.ones((2, 3))),
        4,
        6,
        {"a (0:2)": 2, "a (2:4)": 2, "b (0:3)": 3, "b (3:6)": 3},
    ),
}
INERT = {"first quarter": ("a (2:8)",), "a slice in the middle": ("a (0:2)", "a (5:8)")}


@pytest.mark.parametrize("case", MIDDLE)
@pytest.mark.promotes(
    dtypes="its functions mix dtypes", ranks="its networks add vectors to matrices"
)
def test_between_two_dense_layers(case):
    middle, width, out, groups = MIDDLE[case]
    f, p, x = between(middle, width, out)
    graph = hold(f, p, x, groups=groups, inert=INERT.get(case, ()))
    if not groups:
        assert reasons(graph)["a", 1]
        assert reasons(graph)["b", 0]


REASON = {
    "cropped by negative padding": "pad: negative or interior padding",
    "padded inside": "pad: negative or interior padding",
    "shuffled, with a residual, coprime": "add: axes regrouped without a common factor",
    "every third of eight": "slice: strided slice",
    "unstacked by neuron": "cut into single positions",
    "words": "bitcast_convert_type: element width changes",
    "counted": "iota: counted with iota",
    "compared with the index": "iota: counted with iota",
    "constant that counts": "constant whose values depend on the index",
}


@pytest.mark.parametrize("case", REASON)
def test_what_is_pinned_says_why_and_where(case):
    middle, width, out, _ = MIDDLE[case]
    f, p, x = between(middle, width, out)
    with jax.enable_x64(True):
        reason = reasons(ifjax.trace(f, p, x))["a", 1]
    assert reason.startswith(REASON[case])
    if ":" in REASON[case]:
        assert "test_shapes.py" in reason


def test_coprime_regrouping_keeps_the_common_factor():
    """12 = 4 x 3 read as 6 x 2: the outer 2 is common, the rest is not."""

    def f(p, x):
        h = jnp.sin((x @ p["a"]).reshape(4, 4, 3)).reshape(4, 6, 2)
        return jnp.einsum("nij,ijo->no", h, p["b"])

    graph = hold(f, arrays(a=(3, 12), b=(6, 2, 2)), array(4, 3), groups={"a (factor 1 of 2x6)": 2})
    assert reasons(graph)["b", 1]


def test_flattened_images_keep_their_channels():
    """Height x width x channels merged: the channels are the inner factor, or the outer one."""
    x = array(2, 4, 4, 1)

    def last(p, x):
        y = lax.conv_general_dilated(
            x, p["k"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(y).reshape(2, -1) @ p["b"]

    def first(p, x):
        y = lax.conv_general_dilated(x.transpose(0, 3, 1, 2), p["k"], (1, 1), "VALID")
        return jnp.tanh(y).reshape(2, -1) @ p["b"]

    graph = hold(last, arrays(k=(2, 2, 1, 3), b=(27, 2)), x, groups={"k": 3})
    assert [m.where for m in graph.groups[0].members] == [("0:27=9x3.1",), ("0:3",)]
    graph = hold(first, arrays(k=(3, 1, 2, 2), b=(27, 2)), x, groups={"k": 3})
    assert [m.where for m in graph.groups[0].members] == [("0:27=3x9.0",), ("0:3",)]


def test_zero_padded_shortcuts_tie_a_segment_of_the_wider_stream():
    """Option A of the CIFAR ResNets: stride by slicing, zero channels on both sides."""

    def f(p, x):
        h = x @ p["a"]
        wide = jnp.pad(h[:, ::2], ((0, 0), (0, 0), (2, 2))) + jax.nn.silu(h[:, ::2] @ p["k"])
        return jax.nn.silu(wide) @ p["b"]

    graph = hold(
        f,
        arrays(a=(3, 4), k=(4, 8), b=(8, 2)),
        array(2, 4, 3),
        groups={"a": 4, "k (0:2)": 2, "k (6:8)": 2},
    )
    assert [(m.path, m.axis, m.where) for m in graph.structure.group["a"].members] == [
        ("a", 1, ("0:4",)),
        ("b", 0, ("2:6",)),
        ("k", 0, ("0:4",)),
        ("k", 1, ("2:6",)),
    ]


def test_segments_of_a_trunk_keep_their_identity():
    """DenseNet: every layer reads the concatenation of all earlier ones."""

    def f(p, x):
        trunk = jnp.tanh(x @ p["a"])
        for name in ("k1", "k2"):
            trunk = jnp.concatenate([trunk, jnp.tanh(trunk @ p[name])], 1)
        return trunk @ p["b"]

    graph = hold(
        f,
        arrays(a=(3, 4), k1=(4, 2), k2=(6, 2), b=(8, 2)),
        array(4, 3),
        groups={"a": 4, "k1": 2, "k2": 2},
    )
    assert [m.where for m in graph.structure.group["k1"].members if m.path == "b"] == [("4:6",)]


def test_concatenation_with_data_pins_the_data_alone():
    def f(p, x):
        return jnp.concatenate([x, jnp.tanh(x @ p["a"])], 1) @ p["b"]

    graph = hold(f, arrays(a=(3, 4), b=(7, 2)), array(4, 3), groups={"a": 4})
    assert reasons(graph)["b", 0] == "an axis of the function's inputs"


def test_concatenation_along_the_batch_ties_the_features():
    def f(p, x):
        return jnp.concatenate([x @ p["a"], x[:2] @ p["c"]], 0) @ p["b"]

    hold(f, arrays(a=(3, 4), c=(3, 4), b=(4, 2)), array(4, 3), groups={"a": 4})


def test_empty_arrays_pin_and_pass():
    def f(p, x):
        return jnp.concatenate([x @ p["a"], x @ p["e"]], 1) @ p["b"] + p["z"].reshape(-1).sum()

    p = arrays(a=(3, 4), b=(4, 2), e=(3, 0), z=(0, 5))
    hold(f, p, array(4, 3), groups={"a": 4})


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_kernels_of_their_own_per_sample():
    """`jax.vmap` of a convolution transposes inside of its reshapes."""

    def one(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers)[
            0
        ]

    def f(p, x):
        style = x.mean((1, 2)) @ p["style"]
        kernels = p["kernel"] * style[:, None, None, :, None]
        return jax.vmap(one)(x @ p["in"], kernels) @ p["out"]

    shapes = {"in": (3, 6), "style": (3, 6), "kernel": (2, 2, 6, 4), "out": (4, 2)}
    graph = hold(f, arrays(**shapes), array(2, 3, 3, 3))
    members = {g.size: {m.path for m in g.members} for g in graph.groups}
    assert members == {6: {"in", "style", "kernel"}, 4: {"kernel", "out"}}
