"""Small programs that nobody here had in mind, against brute force.

Every group passes `verify`; cut by `take`, the function by `shrink` is the function itself at the
small widths, where it can be called with them. Tried: norms (scale norm with the root before the
quotient, partial RMS norm, dynamic tanh, global response norm, weight standardisation with the
unbiased deviation and the root of the fan-in, spectral norm, cosine head), gates (highway,
squeeze and excite, GLU in halves and interleaved, hypernetwork, maxout, GRU), attention (one
array of queries, keys and values, split and reshaped; shared keys by an index array, repeated and
tiled), experts (weights of the best two, capacity by cumulated positions), complex numbers (a
state space, a Fourier mixer), a causal depthwise convolution, a mixture density, int8 kernels
with scales, boolean masks.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax

pytestmark = pytest.mark.promotes(ranks="its own functions do", dtypes="its own functions do")

rng = np.random.default_rng(0)
X = rng.normal(size=(5, 6))
CASES = {}


def w(*shape):
    return jnp.asarray(rng.normal(size=shape))


def case(function):
    CASES[function.__name__] = function
    return function


def check(f, p, x, follow=True):
    """Every group by itself; ``follow`` where the function can be called with small widths."""
    graph = ifjax.trace(f, p, x)
    assert graph.verify(f, p, x).ok
    groups = [g for g in graph.groups if g.kind != "free"]
    assert groups
    for group in groups:
        m = max(1, group.size // 2)
        orders = [rng.permutation(group.size)[:m] for _ in range(int(np.prod(group.batch)))]
        kept = np.sort(np.stack(orders)).reshape(*group.batch, m)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that stay
            spec = graph.spec(keep={group.name: m}, method="prune")
        small = ifjax.take(p, graph, {group.name: kept})
        got = ifjax.shrink(f, spec)(small, x)
        assert np.isfinite(got).all()
        if follow:
            np.testing.assert_allclose(got, f(small, x), rtol=1e-9, atol=1e-11)


@case
def scale_norm():
    p = {"a": w(6, 8), "g": w(1), "b": w(8, 3)}

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        h = p["g"] * h * np.sqrt(h.shape[-1]) / jnp.linalg.norm(h, axis=-1, keepdims=True)
        return h @ p["b"]

    check(f, p, X)


@case
def prms_norm():
    p = {"a": w(6, 8), "b": w(8, 3)}

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        k = h[..., :2]
        return h / jnp.sqrt((k**2).mean(-1, keepdims=True) + 1e-06) @ p["b"]

    check(f, p, X, follow=False)


@case
def dynamic_tanh():
    p = {"a": w(6, 8), "al": w(1), "g": w(8), "c": w(8), "b": w(8, 3)}
    check(lambda p, x: (p["g"] * jnp.tanh(p["al"] * (x @ p["a"])) + p["c"]) @ p["b"], p, X)


@case
def grn():
    p = {"a": w(6, 8), "g": w(8), "c": w(8), "b": w(8, 3)}

    def f(p, x):
        h = jax.nn.gelu(x @ p["a"])
        n = jnp.sqrt((h**2).sum(0, keepdims=True))
        n = n / (n.mean(-1, keepdims=True) + 1e-06)
        return (p["g"] * h * n + p["c"] + h) @ p["b"]

    check(f, p, X)


@case
def weight_standard_dense():
    p = {"a": w(6, 8), "k": w(8, 7), "b": w(7, 3)}

    def f(p, x):
        k = p["k"]
        k = (k - k.mean(0)) / (k.std(0, ddof=1) * np.sqrt(k.shape[0]) + 1e-05)
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ k) @ p["b"]

    check(f, p, X)


@case
def spectral_norm():
    p = {"a": w(6, 8), "u": w(8), "b": w(8, 3)}

    def f(p, x):
        v = p["a"] @ p["u"]
        v = v / jnp.linalg.norm(v)
        s = v @ p["a"] @ p["u"] / jnp.linalg.norm(p["u"])
        return jnp.tanh(x @ (p["a"] / s)) @ p["b"]

    check(f, p, X)


@case
def highway():
    p = {"a": w(6, 8), "t": w(8, 8), "h": w(8, 8), "b": w(8, 3)}

    def f(p, x):
        y = x @ p["a"]
        t = jax.nn.sigmoid(y @ p["t"])
        return (t * jnp.tanh(y @ p["h"]) + (1 - t) * y) @ p["b"]

    check(f, p, X)


@case
def squeeze_excite():
    p = {"a": w(6, 8), "s": w(8, 4), "e": w(4, 8), "b": w(8, 3)}

    def f(p, x):
        y = jax.nn.relu(x @ p["a"])
        m = y.mean(0, keepdims=True)
        return y * jax.nn.sigmoid(jax.nn.relu(m @ p["s"]) @ p["e"]) @ p["b"]

    check(f, p, X)


@case
def glu_fused():
    p = {"a": w(6, 16), "b": w(8, 3)}

    def f(p, x):
        u, v = jnp.split(x @ p["a"], 2, -1)
        return u * jax.nn.sigmoid(v) @ p["b"]

    check(f, p, X)


@case
def glu_interleaved():
    p = {"a": w(6, 16), "b": w(8, 3)}

    def f(p, x):
        h = (x @ p["a"]).reshape(-1, 8, 2)
        return h[..., 0] * jax.nn.silu(h[..., 1]) @ p["b"]

    check(f, p, X, follow=False)


@case
def fused_qkv_split():
    p = {"qkv": w(6, 3 * 2 * 4), "o": w(8, 3)}

    def f(p, x):
        q, k, v = jnp.split(x @ p["qkv"], 3, -1)
        q, k, v = (z.reshape(-1, 2, 4) for z in (q, k, v))
        a = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / 2.0)
        return jnp.einsum("hqk,khd->qhd", a, v).reshape(-1, 8) @ p["o"]

    check(f, p, X, follow=False)


@case
def fused_qkv_reshape():
    p = {"qkv": w(6, 3 * 2 * 4), "o": w(8, 3)}

    def f(p, x):
        q, k, v = jnp.moveaxis((x @ p["qkv"]).reshape(-1, 3, 2, 4), 1, 0)
        a = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / 2.0)
        return jnp.einsum("hqk,khd->qhd", a, v).reshape(-1, 8) @ p["o"]

    check(f, p, X, follow=False)


@case
def gqa_index():
    p = {"q": w(6, 16), "k": w(6, 8), "v": w(6, 8), "o": w(16, 3)}

    def f(p, x):
        q = (x @ p["q"]).reshape(-1, 4, 4)
        idx = np.array([0, 0, 1, 1])
        k = (x @ p["k"]).reshape(-1, 2, 4)[:, idx]
        v = (x @ p["v"]).reshape(-1, 2, 4)[:, idx]
        a = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
        return jnp.einsum("hqk,khd->qhd", a, v).reshape(-1, 16) @ p["o"]

    check(f, p, X, follow=False)


@case
def gqa_index_tiled():
    p = {"q": w(6, 16), "k": w(6, 8), "v": w(6, 8), "o": w(16, 3)}

    def f(p, x):
        q = (x @ p["q"]).reshape(-1, 4, 4)
        idx = jnp.arange(4) % 2
        k = (x @ p["k"]).reshape(-1, 2, 4)[:, idx]
        v = (x @ p["v"]).reshape(-1, 2, 4)[:, idx]
        a = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
        return jnp.einsum("hqk,khd->qhd", a, v).reshape(-1, 16) @ p["o"]

    check(f, p, X, follow=False)


@case
def sinkhorn_router():
    p = {"r": w(6, 4), "up": w(4, 6, 5), "down": w(4, 5, 6), "o": w(6, 3)}

    def f(p, x):
        s = jax.nn.softmax(x @ p["r"])
        wt, c = lax.top_k(s, 2)
        m = (jax.nn.one_hot(c, 4, dtype=s.dtype) * wt[..., None]).sum(1)
        return (
            jnp.einsum(
                "te,ten,end->td", m, jnp.tanh(jnp.einsum("td,edn->ten", x, p["up"])), p["down"]
            )
            @ p["o"]
        )

    check(f, p, X)


@case
def capacity_router():
    p = {"r": w(6, 4), "up": w(4, 6, 5), "down": w(4, 5, 6), "o": w(6, 3)}

    def f(p, x):
        s = jax.nn.softmax(x @ p["r"])
        m = jax.nn.one_hot(jnp.argmax(s, -1), 4, dtype=jnp.int32)
        pos = (jnp.cumsum(m, 0) * m - 1).max(-1)
        d = m[..., None] * jax.nn.one_hot(pos, 3, dtype=jnp.int32)[:, None]
        d = d.astype(x.dtype)
        e = jnp.einsum("tec,td->ecd", d, x)
        h = jnp.einsum("ecn,end->ecd", jnp.tanh(jnp.einsum("ecd,edn->ecn", e, p["up"])), p["down"])
        return jnp.einsum("tec,ecd->td", d, h) @ p["o"]

    check(f, p, X)


@case
def complex_ssm():
    p = {
        "i": w(6, 8),
        "lr": w(8),
        "li": w(8),
        "B": w(8) + 1j * w(8),
        "Cc": w(8) + 1j * w(8),
        "o": w(8, 3),
    }

    def f(p, x):
        u = x @ p["i"]
        lam = jnp.exp(-jnp.exp(p["lr"]) + 1j * p["li"])

        def step(h, u):
            h = lam * h + p["B"] * u
            return (h, (p["Cc"] * h).real)

        return lax.scan(step, jnp.zeros(p["lr"].shape, complex), u)[1] @ p["o"]

    check(f, p, X)


@case
def complex_fft_mixer():
    p = {"a": w(6, 8), "W": w(3, 8) + 1j * w(3, 8), "b": w(8, 3)}

    def f(p, x):
        h = x @ p["a"]
        m = jnp.fft.rfft(h, axis=0) * p["W"]
        return jnp.fft.irfft(m, n=5, axis=0) @ p["b"]

    check(f, p, X)


@case
def cosine_head():
    p = {"a": w(6, 8), "b": w(8, 3)}

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        return (
            h
            / jnp.linalg.norm(h, axis=-1, keepdims=True)
            @ (p["b"] / jnp.linalg.norm(p["b"], axis=0))
        )

    check(f, p, X)


@case
def hypernet():
    p = {"h": w(6, 5), "g": w(5, 8), "a": w(6, 8), "b": w(8, 3)}
    check(lambda p, x: x @ p["a"] * jax.nn.softplus(jnp.tanh(x @ p["h"]) @ p["g"]) @ p["b"], p, X)


@case
def maxout():
    p = {"a": w(6, 16), "b": w(8, 3)}
    check(lambda p, x: (x @ p["a"]).reshape(-1, 8, 2).max(-1) @ p["b"], p, X, follow=False)


@case
def causal_conv1d():
    p = {"a": w(6, 8), "k": w(3, 1, 8), "b": w(8, 3)}

    def f(p, x):
        h = (x @ p["a"])[None]
        h = lax.conv_general_dilated(
            h,
            p["k"],
            (1,),
            [(2, 0)],
            dimension_numbers=("NHC", "HIO", "NHC"),
            feature_group_count=h.shape[-1],
        )
        return h[0] @ p["b"]

    check(f, p, X)


@case
def minimal_gru():
    p = {"f": w(8, 8), "u": w(6, 8), "h": w(8, 8), "v": w(6, 8), "o": w(8, 3)}

    def f(p, x):

        def step(h, x):
            g = jax.nn.sigmoid(x @ p["u"] + h @ p["f"])
            h = (1 - g) * h + g * jnp.tanh(x @ p["v"] + g * h @ p["h"])
            return (h, h)

        return lax.scan(step, jnp.zeros(p["f"].shape[0]), x)[1] @ p["o"]

    check(f, p, X)


@case
def mixture_density():
    p = {"a": w(6, 8), "pi": w(8, 3), "mu": w(8, 3), "s": w(8, 3)}

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        return jax.nn.logsumexp(
            jax.nn.log_softmax(h @ p["pi"]) - (h @ p["mu"]) ** 2 * jnp.exp(h @ p["s"]), -1
        )

    check(f, p, X)


@case
def int8_kernel():
    p = {
        "a": jnp.asarray(rng.integers(-99, 99, (6, 8)), jnp.int8),
        "s": jnp.abs(w(8)),
        "b": w(8, 3),
    }
    check(lambda p, x: jax.nn.relu(x @ (p["a"].astype(x.dtype) * p["s"])) @ p["b"], p, X)


@case
def bool_mask():
    p = {"a": w(6, 8), "m": jnp.asarray(rng.integers(0, 2, (6, 8)), bool), "b": w(8, 3)}
    check(lambda p, x: jax.nn.relu(x @ jnp.where(p["m"], p["a"], 0)) @ p["b"], p, X)


@pytest.mark.parametrize("name", CASES)
def test_every_group_is_right(name):
    with jax.enable_x64(True):
        CASES[name]()
