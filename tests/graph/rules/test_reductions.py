"""Reductions, windows and orders pin the axis they run over and let the others pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, between, hold, reasons

OVER = {
    "reduce_sum": lambda h: h - h.sum(1, keepdims=True),
    "reduce_max": lambda h: h - h.max(1, keepdims=True),
    "reduce_prod": lambda h: h * h.prod(1, keepdims=True),
    "reduce_and": lambda h: h * (h > -9).all(1, keepdims=True),
    "argmax": lambda h: h * h.argmax(1)[:, None],
    "cumsum": lambda h: h.cumsum(1),
    "cumlogsumexp": lambda h: lax.cumlogsumexp(h, 1, reverse=True),
    "sort": lambda h: jnp.sort(h, 1),
    "rev": lambda h: h[:, ::-1],
    "reduce_window_max": lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (1, 3), (1, 1), "SAME"),
}


@pytest.mark.parametrize("primitive", OVER)
def test_over_the_neurons_pins(primitive):
    graph = hold(*between(OVER[primitive]), groups={})
    assert reasons(graph)["a", 1].startswith(f"{primitive}: ")
    assert "test_reductions.py" in reasons(graph)["a", 1]


ACROSS = {
    "sums": lambda h: h.sum(0, keepdims=True) + h.prod(0) + h.max(0) - h.min(0),
    "argmax": lambda h: h.argmax(0) * 1.0 + h,
    "orders": lambda h: jnp.sort(h, 0) + h.cumsum(0) * h[::-1] + lax.cummax(h),
    "two operands": lambda h: lax.sort((h, jnp.sin(h)), dimension=0, num_keys=1)[1],
    "windows": lambda h: lax.reduce_window(h, 0.0, lax.add, (2, 1), (1, 1), "SAME"),
}


@pytest.mark.parametrize("case", ACROSS)
def test_across_the_neurons_passes_the_group(case):
    hold(*between(ACROSS[case]), groups={"a": 8})


def test_operands_that_are_sorted_together_are_tied():
    def f(p, x):
        _, values = lax.sort((x @ p["a"], jnp.sin(x @ p["c"])), dimension=0, num_keys=1)
        return values @ p["b"]

    hold(f, arrays(a=(3, 6), c=(3, 6), b=(6, 2)), array(4, 3), groups={"a": 6})


def test_pooling():
    def f(p, x):
        h = lax.conv_general_dilated(
            x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        window = (1, 2, 2, 1)
        h = lax.reduce_window(h, -jnp.inf, lax.max, window, window, "VALID")
        h = lax.reduce_window(jnp.tanh(h), 0.0, lax.add, (1, 2, 1, 1), (1, 1, 1, 1), "VALID")
        return h.mean((1, 2)) @ p["b"]

    hold(f, arrays(k=(2, 2, 3, 4), b=(4, 2)), array(2, 6, 6, 3), groups={"k": 4})


def test_normalising_a_kernel_pins_what_it_sums_over():
    """Weight normalisation leaves the outputs free; a norm over the whole kernel pins them."""

    def by_column(p, x):
        w = p["a"] / jnp.linalg.norm(p["a"], axis=0)
        return jnp.tanh(x @ w) @ p["b"]

    def whole(p, x):
        return jnp.tanh(x @ (p["a"] / jnp.sqrt((p["a"] ** 2).sum()))) @ p["b"]

    p = arrays(a=(3, 6), b=(6, 2))
    with jax.enable_x64(True):
        graph = ifjax.trace(by_column, p, array(4, 3))
        assert {g.name: g.size for g in graph.groups} == {"a": 6}
    hold(whole, p, array(4, 3), groups={})


def test_layer_norm_pins_its_width_with_a_reason():
    def f(p, x):
        h = x @ p["a"]
        h = (h - h.mean(1, keepdims=True)) / jnp.sqrt(h.var(1, keepdims=True) + 1e-5)
        return (h * p["g"] + p["o"]) @ p["b"]

    graph = hold(f, arrays(a=(3, 6), g=(6,), o=(6,), b=(6, 2)), array(4, 3), groups={})
    assert {reasons(graph)[leaf, 0].split(":")[0] for leaf in "gob"} == {"reduce_sum"}
