"""Encoders and decoders of text as bare functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.model import model, rows, tokens, weights
from tests.zoo.parts import attend, causal, layer_norm, rms_norm, rotary


def attention(p, i, x, y=None, bias=0.0):
    """Queries from ``x``, keys and values from ``y``."""
    q, k, v = (
        jnp.einsum("btc,chd->bthd", z, p[n + i])
        for n, z in zip("qkv", (x, *(2 * [x if y is None else y])), strict=True)
    )
    return jnp.einsum("bthd,hdc->btc", attend(q, k, v, bias), p["o" + i])


def attention_shapes(i, n=8, heads=2, size=4):
    return {m + i: (n, heads, size) for m in "qkv"} | {"o" + i: (heads, size, n)}


@model("encoder", "jax")
def bert(batch):
    """Word, position and type tables, post-norm, a mask, a pooler and a tied word predictor."""

    def f(p, words, types, mask):
        x = p["word"][words] + p["position"] + p["type"][types]
        x = layer_norm(x, p["s0"], p["c0"])
        bias = jnp.where(mask, 0.0, -1e9)[:, None, None]
        x = layer_norm(x + attention(p, "", x, bias=bias), p["s1"], p["c1"])
        x = layer_norm(x + jax.nn.gelu(x @ p["up"]) @ p["down"], p["s2"], p["c2"])
        return jnp.tanh(x[:, 0] @ p["pool"]) @ p["class"], x @ p["word"].T + p["bias"]

    shapes = {"word": (11, 8), "position": (5, 8), "type": (2, 8), "up": (8, 12), "down": (12, 8)}
    shapes |= attention_shapes("") | {f"{n}{i}": (8,) for n in "sc" for i in "012"}
    shapes |= {"pool": (8, 7), "class": (7, 2), "bias": (11,)}
    inputs = tokens(batch, 5), tokens(batch, 5, 2), jnp.arange(5) < jnp.asarray([[4], [5], [3]])
    return f, weights(**shapes), (*inputs[:2], inputs[2][:batch])


@model("decoder", "jax")
def gpt(batch):
    """Learned positions, causal attention, the embedding tied to the output (GPT-2)."""

    def f(p, words):
        x = p["word"][words] + p["position"][: words.shape[1]]
        for i in "12":
            y = layer_norm(x, p["s" + i], p["c" + i])
            x = x + attention(p, i, y, bias=causal(words.shape[1]))
            y = layer_norm(x, p["t" + i], p["d" + i])
            x = x + jax.nn.gelu(y @ p["up" + i]) @ p["down" + i]
        return layer_norm(x, p["s3"], p["c3"]) @ p["word"].T

    shapes = {"word": (11, 8), "position": (7, 8), "s3": (8,), "c3": (8,)}
    for i, n in (("1", 12), ("2", 9)):
        shapes |= attention_shapes(i) | {m + i: (8,) for m in "sctd"}
        shapes |= {"up" + i: (8, n), "down" + i: (n, 8)}
    return f, weights(**shapes), (tokens(batch, 5),)


def llama_layer(x, p):
    """RMS norm, grouped queries, rotary positions, SwiGLU, in parameters of one layer."""
    y = rms_norm(x, p["s"])
    q, k, v = (jnp.einsum("btc,chd->bthd", y, p[n]) for n in "qkv")
    q = rotary(q).reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    scores = jnp.einsum("btkgd,bskd->bkgts", q, rotary(k)) + causal(x.shape[1])
    y = jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(scores), v)
    x = x + jnp.einsum("bthd,hdc->btc", y.reshape(*y.shape[:2], -1, y.shape[-1]), p["o"])
    y = rms_norm(x, p["t"])
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"], None


LLAMA = {"s": (8,), "t": (8,), "q": (8, 4, 4), "k": (8, 2, 4), "v": (8, 2, 4), "o": (4, 4, 8)}
LLAMA |= {"gate": (8, 10), "up": (8, 10), "down": (10, 8)}


@model("decoder", "jax", reads_widths=False)
def llama_scanned(batch):
    """Three stacked layers under ``scan`` and ``remat``."""

    def f(p, words):
        x, _ = lax.scan(jax.checkpoint(llama_layer), p["word"][words], p["layers"])
        return rms_norm(x, p["s"]) @ p["head"]

    layers = weights(**{n: (3, *shape) for n, shape in LLAMA.items()})
    return f, {**weights(word=(11, 8), s=(8,), head=(8, 11)), "layers": layers}, (tokens(batch, 5),)


@model("decoder", "jax", reads_widths=False)
def llama_unrolled(batch):
    def f(p, words):
        x = p["word"][words]
        for layer in p["layers"]:
            x, _ = llama_layer(x, layer)
        return rms_norm(x, p["s"]) @ p["head"]

    layers = [weights(**LLAMA), weights(**LLAMA)]
    return f, {**weights(word=(11, 8), s=(8,), head=(8, 11)), "layers": layers}, (tokens(batch, 5),)


@model("decoder", "jax", state=("*/cache/*",))
def decode_with_cache(batch):
    """One token after another into a cache written at a position."""

    def f(p, word, inputs):
        cache, at = inputs["cache"], inputs["at"]
        x = p["word"][word] + p["position"][at]
        q, k, v = (jnp.einsum("bc,chd->bhd", x, p[n])[:, None] for n in "qkv")
        keys = lax.dynamic_update_slice_in_dim(cache["k"], k, at, 1)
        values = lax.dynamic_update_slice_in_dim(cache["v"], v, at, 1)
        bias = jnp.where(jnp.arange(keys.shape[1]) <= at, 0.0, -1e9)
        y = attend(q, keys, values, bias)[:, 0]
        x = x + jnp.einsum("bhd,hdc->bc", y, p["o"])
        return x @ p["word"].T, {"cache": {"k": keys, "v": values}, "at": at + 1}

    shapes = {"word": (11, 8), "position": (6, 8)} | attention_shapes("", size=4)
    cache = {"k": rows(batch, 6, 2, 4), "v": rows(batch, 6, 2, 4) + 1}
    return f, weights(**shapes), (tokens(batch, 1)[:, 0], {"cache": cache, "at": jnp.asarray(3)})


@model("encoder-decoder", "jax")
def translation(batch):
    """Self and cross attention (arXiv 1706.03762), sinusoidal positions."""

    def positions(length, n):
        angle = jnp.arange(length)[:, None] / 100.0 ** (jnp.arange(n // 2) / n)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)

    def f(p, source, target):
        x = p["source"][source] @ p["in"] + p["position"]
        x = layer_norm(x + attention(p, "1", x), p["s1"], p["c1"])
        x = layer_norm(x + jax.nn.relu(x @ p["up1"]) @ p["down1"], p["s2"], p["c2"])
        y = (p["target"][target] + positions(4, 6)) @ p["out"]
        y = layer_norm(y + attention(p, "2", y, bias=causal(4)), p["s3"], p["c3"])
        y = layer_norm(y + attention(p, "3", y, x), p["s4"], p["c4"])
        return (y + jax.nn.relu(y @ p["up2"]) @ p["down2"]) @ p["head"]

    shapes = {"source": (11, 6), "in": (6, 8), "position": (5, 8), "target": (11, 6)}
    shapes |= {"out": (6, 10), "head": (10, 11)} | attention_shapes("1") | attention_shapes("2", 10)
    shapes |= {"q3": (10, 2, 4), "k3": (8, 2, 4), "v3": (8, 2, 4), "o3": (2, 4, 10)}
    shapes |= {"up1": (8, 9), "down1": (9, 8), "up2": (10, 7), "down2": (7, 10)}
    shapes |= {f"{n}{i}": (8 if i in "12" else 10,) for n in "sc" for i in "1234"}
    return f, weights(**shapes), (tokens(batch, 5), tokens(batch, 4))


@model("mixture of experts", "jax")
def mixture_decoder(batch):
    """A decoder whose feed-forward layers are experts (arXiv 2101.03961), scanned."""

    def layer(x, p):
        x = x + attention(p, "", x, bias=causal(x.shape[1]))
        gate = jax.nn.softmax(x @ p["gate"])
        h = jax.nn.silu(jnp.einsum("btc,ecf->btef", x, p["a"]))
        return x + jnp.einsum("btef,efc,bte->btc", h, p["b"], gate), None

    def f(p, words):
        return lax.scan(layer, p["word"][words], p["layers"])[0] @ p["head"]

    shapes = attention_shapes("") | {"gate": (8, 4), "a": (4, 8, 5), "b": (4, 5, 8)}
    layers = weights(**{n: (3, *shape) for n, shape in shapes.items()})
    return f, {**weights(word=(11, 8), head=(8, 11)), "layers": layers}, (tokens(batch, 5),)
