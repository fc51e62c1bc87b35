"""Recurrent and state-space networks as bare functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.model import model, rows, weights
from tests.zoo.parts import rms_norm


@model("RNN", "jax")
def elman(batch):
    """Two layers, the second from right to left."""

    def layer(p, i, xs, reverse=False):
        def step(h, x):
            h = jnp.tanh(x @ p["x" + i] + h @ p["h" + i] + p["b" + i])
            return h, h

        start = jnp.zeros((xs.shape[1], p["h" + i].shape[0]))
        return lax.scan(step, start, xs, reverse=reverse)[1]

    def f(p, x):
        xs = jnp.swapaxes(x, 0, 1)
        both = jnp.concatenate([layer(p, "1", xs), layer(p, "2", xs, reverse=True)], -1)
        return jnp.swapaxes(both @ p["out"], 0, 1)

    shapes = {"x1": (3, 6), "h1": (6, 6), "b1": (6,), "x2": (3, 5), "h2": (5, 5), "b2": (5,)}
    return f, weights(**shapes, out=(11, 2)), (rows(batch, 4, 3),)


@model("RNN", "jax")
def lstm(batch):
    """All gates in one kernel, which the state meets on both of its axes."""

    def f(p, x):
        def step(carry, x):
            h, c = carry
            gates = jnp.concatenate([x, h], -1) @ p["kernel"] + p["bias"]
            i, g, o, u = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(u + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = jnp.zeros((x.shape[0], p["out"].shape[0]))
        (h, _), _ = lax.scan(step, (start, start), jnp.swapaxes(x @ p["in"], 0, 1))
        return h @ p["out"]

    shapes = {"in": (3, 5), "kernel": (11, 24), "bias": (24,), "out": (6, 2)}
    return f, weights(**shapes), (rows(batch, 4, 3),)


@model("RNN", "jax", state=("*/carry*",))
def gru_step(batch):
    """One step, its carry among the inputs and outputs."""

    def f(p, x, inputs):
        h = inputs["carry"]
        z = jax.nn.sigmoid(x @ p["xz"] + h @ p["hz"])
        r = jax.nn.sigmoid(x @ p["xr"] + h @ p["hr"])
        h = (1 - z) * h + z * jnp.tanh(x @ p["xn"] + (r * h) @ p["hn"])
        return h @ p["out"], {"carry": h}

    shapes = {"x" + n: (3, 6) for n in "zrn"} | {"h" + n: (6, 6) for n in "zrn"}
    return f, weights(**shapes, out=(6, 2)), (rows(batch, 3), {"carry": rows(batch, 6)})


@model("state space", "jax")
def diagonal_state_space(batch):
    """A diagonal linear recurrence per channel, as an associative scan (arXiv 2203.14343)."""

    def f(p, x):
        u = x @ p["in"]
        decay = jnp.exp(-jnp.exp(p["a"]))
        driven = u[..., None] * p["b"]

        def join(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        factors = jnp.broadcast_to(decay, driven.shape)
        _, states = lax.associative_scan(join, (factors, driven), axis=1)
        y = jnp.einsum("btcn,cn->btc", states, p["c"]) + u * p["d"]
        return jax.nn.gelu(y) @ p["out"]

    shapes = {"in": (3, 8), "a": (8, 4), "b": (8, 4), "c": (8, 4), "d": (8,), "out": (8, 2)}
    return f, weights(**shapes), (rows(batch, 4, 3),)


@model("state space", "jax", reads_widths=False)
def selective_state_space(batch):
    """Input-dependent steps, a causal depthwise convolution, gating (arXiv 2312.00752)."""

    def block(p, x):
        u, gate = jnp.split(x @ p["in"], 2, -1)
        u = lax.conv_general_dilated(
            u,
            p["conv"],
            (1,),
            [(2, 0)],
            dimension_numbers=("NTC", "TIO", "NTC"),
            feature_group_count=u.shape[-1],
        )
        u = jax.nn.silu(u)
        low, b, c = jnp.split(u @ p["x"], [2, 6], -1)
        delta = jax.nn.softplus(low @ p["dt"] + p["dt_bias"])
        decay = jnp.exp(-delta[..., None] * jnp.exp(p["a"]))
        driven = (delta * u)[..., None] * b[..., None, :]

        def step(h, now):
            h = now[0] * h + now[1]
            return h, jnp.einsum("bcn,bn->bc", h, now[2])

        every = tuple(jnp.swapaxes(v, 0, 1) for v in (decay, driven, c))
        _, y = lax.scan(step, jnp.zeros((x.shape[0], *p["a"].shape)), every)
        return ((jnp.swapaxes(y, 0, 1) + u * p["d"]) * jax.nn.silu(gate)) @ p["out"]

    def f(p, x):
        x = x @ p["embed"]
        return rms_norm(x + block(p, rms_norm(x, p["s"])), p["t"]) @ p["head"]

    shapes = {"embed": (3, 8), "s": (8,), "t": (8,), "in": (8, 12), "conv": (3, 1, 6), "x": (6, 10)}
    shapes |= {"dt": (2, 6), "dt_bias": (6,), "a": (6, 4), "d": (6,), "out": (6, 8), "head": (8, 2)}
    return f, weights(**shapes), (rows(batch, 4, 3),)


@model("state space", "jax")
def gated_linear_recurrence(batch):
    """Matrix-valued states per head (as in arXiv 2307.08621)."""

    def f(p, x):
        q, k, v = (jnp.einsum("btc,chd->tbhd", x @ p["in"], p[n]) for n in "qkv")

        def step(state, now):
            q, k, v = now
            state = jax.nn.sigmoid(p["decay"])[:, None, None] * state
            state = state + k[..., None] * v[..., None, :]
            return state, jnp.einsum("bhd,bhde->bhe", q, state)

        start = jnp.zeros((x.shape[0], *p["q"].shape[1:], p["v"].shape[-1]))
        _, y = lax.scan(step, start, (q, k, v))
        return jnp.einsum("tbhe,heo->bto", y, p["out"])

    shapes = {"in": (3, 8), "q": (8, 3, 4), "k": (8, 3, 4), "v": (8, 3, 5), "decay": (3,)}
    return f, weights(**shapes, out=(3, 5, 2)), (rows(batch, 4, 3),)
