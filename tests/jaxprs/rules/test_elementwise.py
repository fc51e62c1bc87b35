"""Elementwise primitives share all axes; scalars and axes of size one say nothing.

Reductions let all axes pass; what they run over may be seen by the result.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, between, hold


@pytest.mark.parametrize(
    "function",
    [
        lambda h: sum(g(h) for g in (jnp.sin, jnp.exp, jnp.square, jnp.cbrt, lax.logistic, abs)),
        lambda h: sum(g(h) for g in (lax.erf, lax.rsqrt, jnp.log1p)) if h is None else lax.erf(h),
        lambda h: jnp.where(h > 0.1, h, h**3) + lax.clamp(-0.5, h, 0.5) + lax.select(h < 0, h, -h),
        lambda h: jnp.sign(h) + jnp.round(h * 3) + jnp.arctan2(h, 2.0) + jnp.maximum(h, 0.2 * h),
        lambda h: jnp.where(jnp.isfinite(h) & ~(h == 0), h, 0.0).astype(jnp.float32) * 2.0,
        lambda h: (h + 1j * jnp.sin(h)).conj().imag + lax.optimization_barrier((h, h))[1],
        lambda h: lax.stop_gradient(h) * jnp.copy(h) + lax.reduce_precision(h, 11, 52),
    ],
    ids=["unary", "special", "select", "rounding", "logic", "complex", "identity"],
)
@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_elementwise_steps_pass_the_group(function):
    hold(*between(function), groups={"a": 8})


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_operands_of_full_rank_are_tied():
    def f(p, x):
        return ((x @ p["a"]) * (x @ p["c"]) + p["s"] * (x @ p["d"]) / jnp.exp(p["v"])) @ p["b"]

    p = arrays(a=(3, 6), c=(3, 6), d=(3, 6), v=(6,), b=(6, 2)) | {"s": np.float64(0.7)}
    graph = hold(f, p, array(4, 3), groups={"a": 6})
    # every array that holds the group, and the scalar is none of them
    assert {m.path for m in graph.groups[0].members} == {"a", "c", "d", "v", "b"}


def test_axes_of_size_one_broadcast_and_tie_nothing():
    """Squeeze and excite: one gate per channel and image, one scale per image."""

    def f(p, x):
        h = jnp.tanh(jnp.einsum("nlc,cd->nld", x, p["a"]))
        gate = jax.nn.sigmoid(h.mean(1, keepdims=True) @ p["s"] @ p["e"])
        return ((h * gate) * x.mean((1, 2), keepdims=True)).sum(1) @ p["b"]

    p = arrays(a=(3, 6), s=(6, 4), e=(4, 6), b=(6, 2))
    hold(f, p, array(2, 5, 3), groups={"a": 6, "s": 4})


def test_a_scalar_predicate_selects_whole_arrays():
    def f(p, x):
        return lax.select_n(x.sum() > 0, x @ p["a"], x @ p["c"]) @ p["b"]

    p = arrays(a=(3, 6), c=(3, 6), b=(6, 2))
    for sign in (1.0, -1.0):
        x = sign * np.abs(array(4, 3))
        hold(f, p, x, groups={"a": 6}, silent=("a" if sign > 0 else "c",))


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_across_the_neurons_passes_the_group():
    def across(h):
        return h.sum(0, keepdims=True) + h.prod(0) + h.max(0) - h.min(0)

    hold(*between(across), groups={"a": 8})


REDUCED = {
    "sum": lambda h: h - h.sum(1, keepdims=True),
    "max": lambda h: h - h.max(1, keepdims=True),
    "prod": lambda h: h * (1 + h.prod(1, keepdims=True)),
    "all": lambda h: h * (1 + (h > -9).all(1, keepdims=True)),
    "logsumexp": lambda h: h - jax.nn.logsumexp(h, axis=1, keepdims=True),
    "softmax": lambda h: jax.nn.softmax(h, axis=1),
}


@pytest.mark.parametrize("case", REDUCED)
@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_over_the_neurons_keeps_the_group(case):
    (group,) = hold(*between(REDUCED[case]), groups={"a": 8}).groups
    assert group.exact == (case == "sum")


def test_normalising_a_kernel():
    """Weight normalisation leaves the outputs exact; a norm over the whole kernel does not."""

    def by_column(p, x):
        w = p["a"] / jnp.linalg.norm(p["a"], axis=0)
        return jnp.tanh(x @ w) @ p["b"]

    def whole(p, x):
        return jnp.tanh(x @ (p["a"] / jnp.sqrt((p["a"] ** 2).sum()))) @ p["b"]

    p = arrays(a=(3, 6), b=(6, 2))
    with jax.enable_x64(True):  # zeroing a column gives 0/0
        (group,) = ifjax.trace(by_column, p, array(4, 3)).groups
    assert (group.name, group.size, group.exact) == ("a", 6, True)
    (group,) = hold(whole, p, array(4, 3), groups={"a": 6}).groups
    assert not group.exact
