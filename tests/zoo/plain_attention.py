"""Attention in every layout, as bare functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.model import model, rows, weights
from tests.zoo.parts import attend, layer_norm, rotary


def block(middle, shapes, **options):
    """``x`` of 8 channels into ``middle(p, x)`` of ``[b, t, h, d]``, out by one kernel."""

    def build(batch):
        def f(p, x):
            x = x @ p["i"]
            return (x + jnp.einsum("bthd,hdc->btc", middle(p, x), p["o"])) @ p["head"]

        return f, weights(i=(3, 8), head=(8, 2), **shapes), (rows(batch, 5, 3),)

    return build


KEY_BIAS = ("*: k_bias[[]*]",)


@model("attention", "jax", silent=KEY_BIAS)
def separate(batch):
    def middle(p, x):
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) + p[n + "_bias"] for n in "qkv")
        return attend(q, k, v)

    shapes = dict.fromkeys("qk", (8, 3, 4)) | {f"{n}_bias": (3, 4) for n in "qk"}
    shapes |= {"v": (8, 3, 5), "v_bias": (3, 5), "o": (3, 5, 8)}
    return block(middle, shapes)(batch)


@model("attention", "jax", reads_widths=False)
def fused_by_reshape(batch):
    def middle(p, x):
        qkv = (x @ p["qkv"]).reshape(*x.shape[:2], 3, 3, 4)
        return attend(*jnp.moveaxis(qkv, 2, 0))

    return block(middle, {"qkv": (8, 36), "o": (3, 4, 8)})(batch)


@model("attention", "jax", reads_widths=False)
def fused_by_slices(batch):
    def middle(p, x):
        q, k, v = jnp.split(x @ p["qkv"].T, [12, 24], axis=-1)
        return attend(*(y.reshape(*x.shape[:2], 3, 4) for y in (q, k, v)))

    return block(middle, {"qkv": (36, 8), "o": (3, 4, 8)})(batch)


@model("attention", "jax", reads_widths=False)
def interleaved_per_head(batch):
    def middle(p, x):
        qkv = (x @ p["qkv"]).reshape(*x.shape[:2], 3, 12)
        return attend(qkv[..., :4], qkv[..., 4:8], qkv[..., 8:])

    return block(middle, {"qkv": (8, 36), "o": (3, 4, 8)})(batch)


@model("attention", "jax")
def stacked_key_value(batch):
    """Keys and values from one kernel ``[2, K, D, H]``."""

    def middle(p, x):
        k, v = jnp.einsum("btd,ckdh->cbtkh", x, p["kv"])
        return attend(jnp.einsum("btd,kdh->btkh", x, p["q"]), k, v)

    return block(middle, {"kv": (2, 3, 8, 4), "q": (3, 8, 4), "o": (3, 4, 8)})(batch)


@model("attention", "jax", reads_widths=False)
def grouped_query_rotary(batch):
    """Four query heads share two key heads, by a ``(K, G)`` reshape; rotary positions."""

    def middle(p, x):
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        q = rotary(q).reshape(*x.shape[:2], 2, 2, 4)
        weight = jax.nn.softmax(jnp.einsum("btkgd,bskd->bkgts", q, rotary(k)))
        return jnp.einsum("bkgts,bskd->btkgd", weight, v).reshape(*x.shape[:2], 4, 5)

    shapes = {"q": (8, 4, 4), "k": (8, 2, 4), "v": (8, 2, 5), "o": (4, 5, 8)}
    return block(middle, shapes)(batch)


@model("attention", "jax", reads_widths=False)
def grouped_query_repeat(batch):
    """Keys and values repeated for the queries of their group."""

    def middle(p, x):
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        return attend(q, *(jnp.repeat(y, 2, axis=2) for y in (k, v)))

    shapes = {"q": (8, 4, 4), "k": (8, 2, 4), "v": (8, 2, 5), "o": (4, 5, 8)}
    return block(middle, shapes)(batch)


@model("attention", "jax")
def multi_query(batch):
    def middle(p, x):
        q = jnp.einsum("btc,chd->bthd", x, p["q"])
        k, v = x @ p["k"], x @ p["v"]
        weight = jax.nn.softmax(jnp.einsum("bthd,bsd->bhts", q, k))
        return jnp.einsum("bhts,bsd->bthd", weight, v)

    return block(middle, {"q": (8, 3, 4), "k": (8, 4), "v": (8, 5), "o": (3, 5, 8)})(batch)


@model("attention", "jax", reads_widths=False)
def interleaved_rotary_norms(batch):
    """Rotary pairs interleaved in part of the head, queries and keys normalised."""

    def turn(x):
        angle = jnp.arange(x.shape[1])[:, None, None] * 10.0 ** -jnp.arange(2)
        pairs = x[..., :4].reshape(*x.shape[:-1], 2, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        turned = (a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle))
        return jnp.concatenate([jnp.stack(turned, -1).reshape(*x.shape[:-1], 4), x[..., 4:]], -1)

    def unit(x, scale):
        return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale

    def middle(p, x):
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        return attend(turn(unit(q, p["qs"])), turn(unit(k, p["ks"])), v)

    shapes = {"q": (8, 2, 6), "k": (8, 2, 6), "v": (8, 2, 5), "o": (2, 5, 8)}
    return block(middle, shapes | {"qs": (6,), "ks": (6,)})(batch)


@model("attention", "jax")
def relative_bias(batch):
    """A learned bias per head and distance, shared by two layers (as in arXiv 1910.10683)."""

    def f(p, x):
        x = x @ p["i"]
        distance = jnp.arange(5)[:, None] - jnp.arange(5) + 4
        bias = jnp.moveaxis(p["bias"][distance], -1, 0)
        for n in "12":
            q, k, v = (jnp.einsum("btc,chd->bthd", x, p[m + n]) for m in "qkv")
            x = x + jnp.einsum("bthd,hdc->btc", attend(q, k, v, bias), p["o" + n])
        return x @ p["head"]

    shapes = {"i": (3, 8), "bias": (9, 3), "head": (8, 2)}
    for n in "12":
        shapes |= {m + n: (8, 3, 4) for m in "qkv"} | {"o" + n: (3, 4, 8)}
    return f, weights(**shapes), (rows(batch, 5, 3),)


@model("attention", "jax")
def linear_attention(batch):
    """Feature maps instead of a softmax (arXiv 2006.16236)."""

    def middle(p, x):
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        state = jnp.einsum("bthd,bthe->bhde", k, v)
        total = jnp.einsum("bthd,bhd->bth", q, k.sum(1))
        return jnp.einsum("bthd,bhde->bthe", q, state) / total[..., None]

    shapes = dict.fromkeys("qk", (8, 3, 4)) | {"v": (8, 3, 5), "o": (3, 5, 8)}
    return block(middle, shapes)(batch)


@model("Perceiver", "jax")
def perceiver(batch):
    """Learned latents attend to the inputs, then to each other (arXiv 2103.03206)."""

    def attention(p, i, x, y):
        q, k, v = (
            jnp.einsum("btc,chd->bthd", z, p[n + i]) for n, z in zip("qkv", (x, y, y), strict=True)
        )
        return jnp.einsum("bthd,hdc->btc", attend(q, k, v), p["o" + i])

    def f(p, x):
        x = layer_norm(x @ p["embed"], p["s"], p["c"])
        z = jnp.broadcast_to(p["latents"], (x.shape[0], *p["latents"].shape))
        z = z + attention(p, "1", z, x)
        z = z + jax.nn.gelu(z @ p["up"]) @ p["down"]
        z = z + attention(p, "2", z, z)
        return z.mean(1) @ p["out"]

    shapes = {"embed": (3, 6), "s": (6,), "c": (6,), "latents": (4, 8), "out": (8, 2)}
    shapes |= {"q1": (8, 2, 4), "k1": (6, 2, 4), "v1": (6, 2, 4), "o1": (2, 4, 8)}
    shapes |= dict.fromkeys(("q2", "k2", "v2"), (8, 2, 3)) | {"o2": (2, 3, 8)}
    return f, weights(**shapes, up=(8, 10), down=(10, 8)), (rows(batch, 5, 3),)


@model("ViT", "jax")
def vision_transformer(batch):
    """Patches by convolution, class token, positional table, pre-norm, layer scale."""

    def f(p, x):
        x = lax.conv_general_dilated(
            x, p["patch"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x.reshape(x.shape[0], 4, -1)
        x = jnp.concatenate([jnp.broadcast_to(p["cls"], (x.shape[0], 1, x.shape[2])), x], 1)
        x = x + p["position"]
        y = layer_norm(x, p["s1"], p["c1"])
        q, k, v = (jnp.einsum("btc,chd->bthd", y, p[n]) for n in "qkv")
        x = x + p["g1"] * jnp.einsum("bthd,hdc->btc", attend(q, k, v), p["o"])
        y = layer_norm(x, p["s2"], p["c2"])
        x = x + p["g2"] * (jax.nn.gelu(y @ p["up"] + p["b"]) @ p["down"])
        return layer_norm(x, p["s3"], p["c3"])[:, 0] @ p["head"]

    shapes = {"patch": (2, 2, 3, 8), "cls": (1, 1, 8), "position": (5, 8), "o": (2, 4, 8)}
    shapes |= dict.fromkeys("qkv", (8, 2, 4)) | {f"{n}{i}": (8,) for n in "sc" for i in "123"}
    shapes |= {"g1": (8,), "g2": (8,), "up": (8, 12), "b": (12,), "down": (12, 8), "head": (8, 2)}
    return f, weights(**shapes), (rows(batch, 4, 4, 3),)


@model("ViT", "jax", reads_widths=False)
def windowed_attention(batch):
    """Shifted windows by roll and reshape, patch merging (arXiv 2103.14030)."""

    def attention(p, i, x):
        b, h, w, c = x.shape
        y = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, 4, c)
        q, k, v = jnp.moveaxis((y @ p["qkv" + i]).reshape(-1, 4, 3, 2, 3), 2, 0)
        y = attend(q, k, v, p["bias" + i]).reshape(-1, 4, 6) @ p["proj" + i]
        y = y.reshape(b, h // 2, w // 2, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(b, h, w, c)

    def f(p, x):
        x = x @ p["embed"]
        x = x + attention(p, "1", x)
        x = x + jnp.roll(attention(p, "2", jnp.roll(x, (-1, -1), (1, 2))), (1, 1), (1, 2))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return jax.nn.gelu(jnp.concatenate(parts, -1) @ p["merge"]).mean((1, 2)) @ p["out"]

    shapes = {"embed": (3, 8), "merge": (32, 10), "out": (10, 2)}
    for i in "12":
        shapes |= {"qkv" + i: (8, 18), "bias" + i: (2, 4, 4), "proj" + i: (6, 8)}
    return f, weights(**shapes), (rows(batch, 4, 4, 3),)
