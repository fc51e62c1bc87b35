"""Orders, positions and windows pin the axis they run over and let the others pass.

Decompositions and solves: batches and right-hand sides pass, the matrices are pinned.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.graph.laws import array, arrays, between, hold, reasons

OVER = {
    "argmax": lambda h: h * h.argmax(1)[:, None],
    "cumsum": lambda h: h.cumsum(1),
    "cumlogsumexp": lambda h: lax.cumlogsumexp(h, 1, reverse=True),
    "sort": lambda h: jnp.sort(h, 1),
    "top_k": lambda h: jnp.concatenate([lax.top_k(h, 2)[0]] * 4, 1),
    "approx_top_k": lambda h: h[:, lax.approx_max_k(h, 8)[1][0]],
    "fft": lambda h: jnp.fft.fft(h, axis=1).real,
    "reduce": lambda h: h * lax.reduce(h, 0.0, lambda a, b: a + 2 * b, (1,))[:, None],
    "reduce_window_max": lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (1, 3), (1, 1), "SAME"),
}


@pytest.mark.parametrize("primitive", OVER)
@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_over_the_neurons_pins(primitive):
    graph = hold(*between(OVER[primitive]), groups={})
    assert reasons(graph)["a", 1].startswith(f"{primitive}: ")
    assert "test_ordered.py" in reasons(graph)["a", 1]


ACROSS = {
    "the largest": lambda h: (
        lax.top_k(h.T, 4)[0].T * lax.approx_min_k(h, 4, reduction_dimension=0)[0]
    ),
    "Fourier transform": lambda h: jnp.fft.fft(h, axis=0).real * abs(jnp.fft.rfft(h, axis=0)[:1]),
    "own reduction": lambda h: h * lax.reduce(h, 0.0, lambda a, b: a + 2 * b, (0,)),
    "argmax": lambda h: h.argmax(0) * 1.0 + h,
    "reversed": lambda h: h[:, ::-1],
    "orders": lambda h: jnp.sort(h, 0) + h.cumsum(0) * h[::-1] + lax.cummax(h),
    "two operands": lambda h: lax.sort((h, jnp.sin(h)), dimension=0, num_keys=1)[1],
    "windows": lambda h: lax.reduce_window(h, 0.0, lax.add, (2, 1), (1, 1), "SAME"),
}


@pytest.mark.parametrize("case", ACROSS)
@pytest.mark.promotes(
    dtypes="its functions mix dtypes", ranks="its networks add vectors to matrices"
)
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


def test_gradients_of_pooling_inside_a_function():
    """Guided attention: the gradient of a pooled score by its own features."""

    def f(p, x):
        h = jnp.tanh(x @ p["a"])

        def score(h):
            return lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID").sum()

        return (h * jax.grad(score)(h)).sum(1) @ p["b"]

    hold(f, arrays(a=(3, 6), b=(6, 2)), array(2, 4, 3), groups={"a": 6})


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_whitening_within_every_channel():
    """One positive definite matrix per neuron: the neurons are free, the positions are not."""

    def f(p, x):
        h = jnp.einsum("ntc,cd->dnt", x, p["a"])
        square = h @ h.swapaxes(1, 2) + jnp.eye(4)
        factor = lax.linalg.cholesky(square)
        white = lax.linalg.triangular_solve(factor, h, left_side=True, lower=True)
        return jnp.einsum("dnt,do->no", jnp.sin(white), p["b"])

    hold(f, arrays(a=(3, 5), b=(5, 2)), array(4, 3, 3), groups={"a": 5})


def test_columns_of_a_right_hand_side_are_free():
    """Ridge regression inside a function: features of the target pass, those of the input pin."""

    def f(p, x):
        k, v = x @ p["k"], x @ p["v"]
        factor = lax.linalg.cholesky(k.T @ k)
        half = lax.linalg.triangular_solve(factor, k.T @ v, left_side=True, lower=True)
        weights = lax.linalg.triangular_solve(
            factor, half, left_side=True, lower=True, transpose_a=True
        )
        return jnp.tanh(x @ p["q"] @ weights) @ p["b"]

    p = arrays(k=(3, 3), v=(3, 6), q=(3, 3), b=(6, 2))
    graph = hold(f, p, array(4, 3), groups={"v": 6})
    assert "cholesky: axis of a matrix that is decomposed" in reasons(graph)["q", 1]


@pytest.mark.parametrize(
    "decompose",
    [
        lambda h: jnp.linalg.svd(h, compute_uv=False),
        lambda h: jnp.linalg.eigh(h @ h.T)[0],
        lambda h: jnp.abs(jnp.linalg.qr(h)[1]).sum(1),
        lambda h: jnp.linalg.slogdet(h @ h.T + np.eye(4))[1] * jnp.ones(4),
    ],
    ids=["svd", "eigh", "qr", "lu"],
)
def test_decomposed_axes_are_pinned(decompose):
    f, p, x = between(lambda h: jnp.ones((4, 1)) * decompose(h @ h.T)[:, None] * h, 5, 5)
    hold(f, p, x, groups={"a": 5})
    f, p, x = between(lambda h: decompose(h)[:, None] * h, 4, 4)
    graph = hold(f, p, x)
    assert all(g.size == 4 for g in graph.groups)
