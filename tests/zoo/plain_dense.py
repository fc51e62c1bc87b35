"""Perceptrons and what is made of matrix products alone, as bare functions."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.model import model, rows, weights
from tests.zoo.parts import layer_norm


@model("MLP", "jax")
def mlp(batch):
    def f(p, x):
        x = jax.nn.relu(x @ p["w1"] + p["b1"])
        return jnp.tanh(x @ p["w2"] + p["b2"]) @ p["w3"]

    return f, weights(w1=(3, 8), b1=(8,), w2=(8, 6), b2=(6,), w3=(6, 2)), (rows(batch, 3),)


@model("MLP", "jax")
def prelu_weight_norm(batch):
    """Weight norm (arXiv 1602.07868) and PReLU."""

    def dense(p, i, x):
        v = p[f"v{i}"]
        return x @ (p[f"g{i}"] * v / jnp.linalg.norm(v, axis=0)) + p[f"b{i}"]

    def f(p, x):
        x = dense(p, 1, x)
        x = jnp.where(x >= 0, x, p["slope"] * x)
        return dense(p, 2, dense(p, 3, x))

    shapes = {"v1": (3, 8), "g1": (8,), "b1": (8,), "slope": (8,), "v3": (8, 6), "g3": (6,)}
    shapes |= {"b3": (6,), "v2": (6, 2), "g2": (2,), "b2": (2,)}
    return f, weights(**shapes), (rows(batch, 3),)


@model("MLP", "jax", reads_widths=False)
def maxout(batch):
    def f(p, x):
        return (x @ p["w1"]).reshape(-1, 6, 3).max(-1) @ p["w2"]

    return f, weights(w1=(3, 18), w2=(6, 2)), (rows(batch, 3),)


@model("MLP", "jax")
def swiglu_split(batch):
    def f(p, x):
        h = x @ p["embed"]
        gate, up = jnp.split(h @ p["fused"], 2, axis=-1)
        return (h + (jax.nn.silu(gate) * up) @ p["down"]) @ p["out"]

    shapes = {"embed": (3, 8), "fused": (8, 12), "down": (6, 8), "out": (8, 2)}
    return f, weights(**shapes), (rows(batch, 3),)


@model("MLP", "jax")
def rematerialised(batch):
    """`jax.checkpoint` blocks, a straight-through activation of custom derivative."""

    @jax.custom_vjp
    def clip(x):
        return jnp.clip(x, -1, 1)

    clip.defvjp(lambda x: (clip(x), None), lambda _, g: (g,))

    @jax.checkpoint
    def block(x, a, b):
        return x + clip(x @ a) @ b

    def f(p, x):
        x = block(block(x @ p["i"], p["a1"], p["b1"]), p["a2"], p["b2"])
        return x @ p["o"]

    shapes = {"i": (3, 8), "a1": (8, 5), "b1": (5, 8), "a2": (8, 7), "b2": (7, 8), "o": (8, 2)}
    return f, weights(**shapes), (rows(batch, 3),)


@model("mixture of experts", "jax")
def experts_dense_gate(batch):
    """Vmapped experts under a softmax gate."""

    def f(p, x):
        x = x @ p["i"]
        gate = jax.nn.softmax(x @ p["gate"])
        expert = jax.vmap(lambda a, b: jax.nn.gelu(x @ a) @ b)
        return jnp.einsum("be,ebo->bo", gate, expert(p["a"], p["b"])) @ p["o"]

    shapes = {"i": (3, 8), "gate": (8, 4), "a": (4, 8, 6), "b": (4, 6, 8), "o": (8, 2)}
    return f, weights(**shapes), (rows(batch, 3),)


@model("mixture of experts", "jax", reads_widths=False)
def experts_top_k(batch):
    """Two experts of four per token, their weights gathered (as in arXiv 2401.04088)."""

    def f(p, x):
        x = x @ p["i"]
        score, choice = lax.top_k(x @ p["gate"], 2)
        score = jax.nn.softmax(score)
        h = jax.nn.silu(jnp.einsum("bc,bkcf->bkf", x, p["a"][choice]))
        return jnp.einsum("bkf,bkfc,bk->bc", h, p["b"][choice], score) @ p["o"]

    shapes = {"i": (3, 8), "gate": (8, 4), "a": (4, 8, 6), "b": (4, 6, 8), "o": (8, 2)}
    return f, weights(**shapes), (rows(batch, 3),)


@model("neural field", "jax")
def nerf(batch):
    """Positional encoding, a skip of it into the middle, density and colour (arXiv 2003.08934)."""

    def encode(x):
        angle = x[..., None] * 2.0 ** jnp.arange(3)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1).reshape(x.shape[0], -1)

    def f(p, x, direction):
        points = encode(x)
        h = jax.nn.relu(points @ p["a"])
        h = jax.nn.relu(h @ p["b"])
        h = jax.nn.relu(jnp.concatenate([h, points], -1) @ p["c"])
        view = jnp.concatenate([h @ p["feature"], encode(direction)], -1)
        return jax.nn.softplus(h @ p["density"]), jax.nn.sigmoid(
            jax.nn.relu(view @ p["v"]) @ p["colour"]
        )

    shapes = {"a": (18, 8), "b": (8, 8), "c": (26, 8), "feature": (8, 6), "density": (8, 1)}
    shapes |= {"v": (24, 5), "colour": (5, 3)}
    return f, weights(**shapes), (rows(batch, 3), rows(batch, 3) + 1)


@model("several inputs and outputs", "jax")
def two_towers(batch):
    """Image and text towers that meet in a normalised embedding (arXiv 2103.00020)."""

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def f(p, image, text):
        a = unit(jax.nn.relu(image @ p["i1"]) @ p["i2"])
        b = unit(jnp.tanh(text["words"] @ p["t1"]) @ p["t2"])
        return {"similarity": jnp.exp(p["t"]) * (a * b).sum(-1), "aside": a @ p["aside"]}

    shapes = {"i1": (4, 8), "i2": (8, 6), "t1": (3, 7), "t2": (7, 6), "t": (), "aside": (6, 2)}
    return f, weights(**shapes), (rows(batch, 4), {"words": rows(batch, 3)})


@model("several inputs and outputs", "jax", reads_widths=False)
def variational_autoencoder(batch):
    """Mean and log variance from one kernel, noise as an input."""

    def f(p, x, noise):
        h = jax.nn.relu(x @ p["e1"])
        mean, log_variance = jnp.split(h @ p["e2"], 2, -1)
        z = mean + jnp.exp(log_variance / 2) * (noise @ p["n"])
        return jax.nn.relu(z @ p["d1"]) @ p["d2"]

    shapes = {"e1": (5, 8), "e2": (8, 12), "n": (2, 6), "d1": (6, 8), "d2": (8, 5)}
    return f, weights(**shapes), (rows(batch, 5), rows(batch, 2))


@model("implicit", "jax")
def equilibrium(batch):
    """A fixed point found by ``while`` (arXiv 1909.01377)."""

    def f(p, x):
        x = x @ p["i"]

        def again(state):
            i, z, last = state
            return jnp.logical_and(i < 40, jnp.abs(z - last).max() > 1e-13)

        def step(state):
            i, z, _ = state
            return i + 1, jnp.tanh(0.3 * (z @ p["w"]) + x), z

        z = jnp.zeros_like(x)
        return lax.while_loop(again, step, (0, z, z + 1))[1] @ p["o"]

    return f, weights(i=(3, 8), w=(8, 8), o=(8, 2)), (rows(batch, 3),)


@model("implicit", "jax")
def neural_ode(batch):
    """Runge-Kutta steps in a ``fori_loop`` (arXiv 1806.07366)."""

    def f(p, x):
        def slope(z):
            return jnp.tanh(z @ p["a"] + p["c"]) @ p["b"]

        def step(_, z):
            k1 = slope(z)
            k2 = slope(z + 0.05 * k1)
            return z + 0.1 * k2

        return lax.fori_loop(0, 4, step, x @ p["i"]) @ p["o"]

    shapes = {"i": (3, 8), "a": (8, 6), "c": (6,), "b": (6, 8), "o": (8, 2)}
    return f, weights(**shapes), (rows(batch, 3),)


@model("graph network", "jax", rows=False)
def message_passing(batch):
    """Messages along edges by gather, summed by `jax.ops.segment_sum`."""

    def f(p, nodes, senders, receivers):
        h = nodes @ p["embed"]
        for i in "12":
            pairs = jnp.concatenate([h[senders], h[receivers]], -1)
            message = jax.nn.relu(pairs @ p["m" + i])
            total = jax.ops.segment_sum(message, receivers, num_segments=h.shape[0])
            h = h + jnp.tanh(total @ p["u" + i])
        return h.mean(0) @ p["out"]

    shapes = {"embed": (3, 8), "m1": (16, 6), "u1": (6, 8), "m2": (16, 5), "u2": (5, 8)}
    nodes = rows(batch, 3)
    edges = jnp.asarray([0, 1, 1, 0]), jnp.asarray([1, 0, 1, 0])
    return f, weights(**shapes, out=(8, 2)), (nodes, *edges)


@model("mixer", "jax")
def mixer(batch):
    """MLPs over tokens and over channels (arXiv 2105.01601)."""

    def f(p, x):
        x = jnp.einsum("bhpwqc,pqcd->bhwd", x.reshape(-1, 2, 2, 2, 2, 3), p["patch"])
        x = x.reshape(x.shape[0], 4, -1)
        y = jnp.swapaxes(layer_norm(x, p["s1"], p["o1"]), 1, 2)
        x = x + jnp.swapaxes(jax.nn.gelu(y @ p["t1"]) @ p["t2"], 1, 2)
        x = x + jax.nn.gelu(layer_norm(x, p["s2"], p["o2"]) @ p["c1"]) @ p["c2"]
        return layer_norm(x, p["s3"], p["o3"]).mean(1) @ p["head"]

    shapes = {"patch": (2, 2, 3, 8), "t1": (4, 6), "t2": (6, 4), "c1": (8, 10), "c2": (10, 8)}
    shapes |= {f"{k}{i}": (8,) for k in "so" for i in "123"}
    return f, weights(**shapes, head=(8, 2)), (rows(batch, 4, 4, 3),)


@model("MLP", "jax")
def stacked_scan(batch):
    """Residual layers stacked on the first axis, applied by ``scan``."""

    @partial(jax.jit, inline=False)
    def layer(x, p):
        return x + jax.nn.gelu(layer_norm(x, p["s"], p["c"]) @ p["a"]) @ p["b"], None

    def f(p, x):
        return lax.scan(layer, x @ p["i"], p["layers"])[0] @ p["o"]

    layers = weights(s=(3, 8), c=(3, 8), a=(3, 8, 6), b=(3, 6, 8))
    return f, {**weights(i=(3, 8), o=(8, 2)), "layers": layers}, (rows(batch, 3),)
