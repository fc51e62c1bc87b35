"""Decompositions and solves: batches and right-hand sides pass, the matrices are pinned."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.graph.laws import array, arrays, between, hold, reasons


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
