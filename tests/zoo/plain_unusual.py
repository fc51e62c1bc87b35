"""Bare functions of what is less common: dispatch, modulation, spectra, patches, branches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.model import model, rows, tokens, weights
from tests.zoo.parts import attend, conv


@model("MLP", "jax")
def stacked_loop(batch):
    """Stacked layers read in a Python loop, one block applied twice."""

    def f(p, x):
        x = x @ p["i"]
        for n in range(p["a"].shape[0]):
            for _ in range(2):
                x = x + jax.nn.gelu(x @ p["a"][n]) @ p["b"][n]
        return x @ p["o"]

    shapes = {"i": (3, 8), "a": (3, 8, 6), "b": (3, 6, 8), "o": (8, 2)}
    return f, weights(**shapes), (rows(batch, 3),)


@model("MLP", "jax", silent=("*: [cd][[]*",))
def branches(batch):
    """One of two experts by `lax.cond`, chosen by an input."""

    def f(p, x, which):
        x = x @ p["i"]
        x = lax.cond(
            which,
            lambda x: jnp.tanh(x @ p["a"]) @ p["b"],
            lambda x: jax.nn.relu(x @ p["c"]) @ p["d"] + x,
            x,
        )
        return x @ p["o"]

    shapes = {"i": (3, 8), "a": (8, 6), "b": (6, 8), "c": (8, 5), "d": (5, 8), "o": (8, 2)}
    return f, weights(**shapes), (rows(batch, 3), jnp.asarray(True))


@model("MLP", "jax")
def radial_basis(batch):
    """Distances to centres (Gaussian kernels), then a hyper-network's bias."""

    def f(p, x):
        h = jnp.tanh(x @ p["i"])
        distance = jnp.square(h[:, None] - p["centres"]).sum(-1)
        k = jnp.exp(-distance / jnp.square(p["width"]))
        return k @ p["o"] + jax.nn.relu(h @ p["h"]) @ p["b"]

    shapes = {"i": (3, 8), "centres": (6, 8), "width": (6,), "o": (6, 2), "h": (8, 5), "b": (5, 2)}
    return f, weights(**shapes), (rows(batch, 3),)


@model("MLP", "jax")
def feature_interaction(batch):
    """Embedding bags, all pairs of features by a dot product (DLRM, arXiv 1906.00091)."""

    def f(p, x, words):
        dense = jax.nn.relu(x @ p["bottom"])[:, None]
        sparse = jnp.stack([p["table1"][words[:, 0]], p["table2"][words[:, 1:]].sum(1)], 1)
        every = jnp.concatenate([dense, sparse], 1)
        pairs = jnp.einsum("bic,bjc->bij", every, every)
        i, j = jnp.triu_indices(3, 1)
        top = jnp.concatenate([dense[:, 0], pairs[:, i, j]], -1)
        return jax.nn.relu(top @ p["top"]) @ p["out"]

    shapes = {"bottom": (3, 6), "table1": (11, 6), "table2": (11, 6), "top": (9, 7), "out": (7, 2)}
    return f, weights(**shapes), (rows(batch, 3), tokens(batch, 4))


@model("mixture of experts", "jax", rows=False)
def experts_dispatch(batch):
    """Tokens sent to experts of fixed capacity by one-hot products (arXiv 2006.16668)."""

    def f(p, x):
        x = x @ p["i"]
        gate = jax.nn.softmax(x @ p["gate"])
        chosen = jax.nn.one_hot(gate.argmax(-1), gate.shape[-1])
        place = jnp.cumsum(chosen, 0) * chosen - 1
        dispatch = chosen[..., None] * jax.nn.one_hot(place, 3)
        given = jnp.einsum("tec,tm->ecm", dispatch, x)
        h = jax.nn.gelu(jnp.einsum("ecm,emf->ecf", given, p["a"]))
        y = jnp.einsum("ecf,efm->ecm", h, p["b"])
        combine = dispatch * gate.max(-1)[:, None, None]
        return (x + jnp.einsum("tec,ecm->tm", combine, y)) @ p["o"]

    shapes = {"i": (3, 8), "gate": (8, 4), "a": (4, 8, 6), "b": (4, 6, 8), "o": (8, 2)}
    return f, weights(**shapes), (rows(batch, 3),)


@model("CNN", "jax")
def demodulated(batch):
    """Kernels modulated by a style and normalised per sample (arXiv 1912.04958)."""

    def one(x, style, kernel):
        kernel = kernel * style[:, None]
        kernel = kernel * lax.rsqrt(jnp.square(kernel).sum((0, 1, 2)) + 1e-8)
        return conv(x[None], kernel)[0]

    def f(p, z):
        style = jax.nn.leaky_relu(z @ p["map1"])
        x = jnp.broadcast_to(p["constant"], (z.shape[0], *p["constant"].shape))
        x = jax.vmap(one, (0, 0, None))(x, style @ p["s1"] + 1, p["k1"])
        x = jax.nn.leaky_relu(x + p["noise"] * jnp.ones((4, 4, 1)))
        x = jax.vmap(one, (0, 0, None))(x, style @ p["s2"] + 1, p["k2"])
        return jax.nn.leaky_relu(x) @ p["rgb"]

    shapes = {"map1": (3, 7), "constant": (4, 4, 6), "s1": (7, 6), "k1": (3, 3, 6, 8)}
    shapes |= {"noise": (8,), "s2": (7, 8), "k2": (3, 3, 8, 5), "rgb": (5, 3)}
    return f, weights(**shapes), (rows(batch, 3),)


@model("CNN", "jax", reads_widths=False)
def partial_convolution(batch):
    """A convolution on the first quarter of the channels (arXiv 2303.03667), doubled channels."""

    def f(p, x):
        x = conv(x, p["stem"])
        y = jnp.concatenate([conv(x[..., :2], p["part"]), x[..., 2:]], -1)
        x = x + jax.nn.relu(y @ p["up"]) @ p["down"]
        x = jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], -1)  # CReLU, arXiv 1603.05201
        return x.mean((1, 2)) @ p["out"]

    shapes = {"stem": (3, 3, 3, 8), "part": (3, 3, 2, 2), "up": (8, 12), "down": (12, 8)}
    return f, weights(**shapes, out=(16, 2)), (rows(batch, 4, 4, 3),)


@model("CNN", "jax")
def wavenet(batch):
    """Gated causal dilated 1-d convolutions, skips summed (arXiv 1609.03499)."""

    def causal(x, kernel, dilation):
        pad = (kernel.shape[0] - 1) * dilation
        return lax.conv_general_dilated(
            x,
            kernel,
            (1,),
            [(pad, 0)],
            rhs_dilation=(dilation,),
            dimension_numbers=("NTC", "TIO", "NTC"),
        )

    def f(p, x):
        x, skips = x @ p["i"], 0.0
        for n in (1, 2):
            gate, value = causal(x, p[f"g{n}"], n), causal(x, p[f"v{n}"], n)
            h = jnp.tanh(value) * jax.nn.sigmoid(gate)
            skips = skips + h @ p[f"s{n}"]
            x = x + h @ p[f"r{n}"]
        return jax.nn.relu(skips) @ p["o"] + jnp.tanh(x) @ p["end"]

    shapes = {"i": (2, 6), "o": (5, 2), "end": (6, 2)}
    for n, m in ((1, 8), (2, 7)):
        shapes |= {f"g{n}": (2, 6, m), f"v{n}": (2, 6, m), f"s{n}": (m, 5), f"r{n}": (m, 6)}
    return f, weights(**shapes), (rows(batch, 6, 2),)


@model("CNN", "jax", reads_widths=False)
def unfolded_patches(batch):
    """A convolution as patches and a product; pooling by reshape; a 3-d convolution."""

    def f(p, x):
        x = lax.conv_general_dilated(
            x, p["a"], (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        x = jax.nn.relu(x).mean(1)
        patches = [jnp.roll(x, (i, j), (1, 2)) for i in (0, 1) for j in (0, 1)]
        x = jnp.stack(patches, -2).reshape(*x.shape[:3], -1) @ p["b"]
        x = jax.nn.relu(x).reshape(-1, 2, 2, 2, 2, 6).max((2, 4))
        return x.reshape(x.shape[0], -1) @ p["o"]

    shapes = {"a": (2, 3, 3, 2, 8), "b": (32, 6), "o": (24, 2)}
    return f, weights(**shapes), (rows(batch, 2, 4, 4, 2),)


@model("spectral", "jax")
def fourier_operator(batch):
    """Kernels on the lowest frequencies, real and imaginary parts (arXiv 2010.08895)."""

    def f(p, x):
        x = x @ p["lift"]
        z = jnp.fft.rfft(x, axis=1)[:, :3]
        z = jnp.einsum("bkc,kcd->bkd", z, p["re"] + 1j * p["im"])
        x = jax.nn.gelu(jnp.fft.irfft(z, n=x.shape[1], axis=1) + x @ p["w"])
        return jax.nn.gelu(x @ p["q"]) @ p["out"]

    shapes = {"lift": (2, 6), "re": (3, 6, 8), "im": (3, 6, 8), "w": (6, 8), "q": (8, 7)}
    return f, weights(**shapes, out=(7, 2)), (rows(batch, 8, 2),)


@model("attention", "jax")
def linear_biases(batch):
    """Slopes per head as parameters, queries pooled by a learned one, a mask token scattered in."""

    def f(p, x, at):
        x = (x @ p["i"]).at[jnp.arange(x.shape[0]), at].set(p["mask"])
        distance = jnp.arange(5) - jnp.arange(5)[:, None]
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        y = attend(q, k, v, p["slopes"][:, None, None] * distance)
        x = x + jnp.einsum("bthd,hdc->btc", y, p["o"])
        weight = jax.nn.softmax(jnp.einsum("btc,c->bt", x, p["query"]))
        return jnp.einsum("bt,btc->bc", weight, x) @ p["head"]

    shapes = {"i": (3, 8), "mask": (8,), "slopes": (3,), "o": (3, 5, 8), "query": (8,)}
    shapes |= {"q": (8, 3, 4), "k": (8, 3, 4), "v": (8, 3, 5), "head": (8, 2)}
    return f, weights(**shapes), (rows(batch, 5, 3), jnp.asarray([1, 3, 0])[:batch])


@model("attention", "jax")
def low_rank_latent(batch):
    """Keys and values from a shared latent, rotary part apart (arXiv 2405.04434)."""

    def f(p, x):
        x = x @ p["i"]
        latent = x @ p["down"]
        k = jnp.einsum("btl,lhd->bthd", latent, p["k"])
        v = jnp.einsum("btl,lhe->bthe", latent, p["v"])
        q = jnp.einsum("btl,lhd->bthd", x @ p["qdown"], p["q"])
        shared = x @ p["kr"]
        score = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        score = score + jnp.einsum("bqc,chr,bkr->bhqk", x, p["qr"], shared)
        y = jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(score / 2), v)
        return (x + jnp.einsum("bqhe,hec->bqc", y, p["o"])) @ p["head"]

    shapes = {"i": (3, 8), "down": (8, 5), "k": (5, 3, 4), "v": (5, 3, 6), "qdown": (8, 7)}
    shapes |= {"q": (7, 3, 4), "kr": (8, 2), "qr": (8, 3, 2), "o": (3, 6, 8), "head": (8, 2)}
    return f, weights(**shapes), (rows(batch, 5, 3),)


@model("encoder-decoder", "jax")
def recurrent_attention(batch):
    """A GRU encoder, a decoder that attends to it at every step (arXiv 1409.0473)."""

    def cell(p, i, h, x):
        z = jax.nn.sigmoid(x @ p["xz" + i] + h @ p["hz" + i])
        return (1 - z) * h + z * jnp.tanh(x @ p["xn" + i] + h @ p["hn" + i])

    def f(p, words):
        def encode(h, x):
            h = cell(p, "e", h, x)
            return h, h

        start = jnp.zeros((words.shape[0], p["hze"].shape[0]))
        last, memory = lax.scan(encode, start, jnp.swapaxes(p["word"][words], 0, 1))

        def decode(h, _):
            score = jnp.einsum("bj,tbj->tb", h @ p["query"], jnp.tanh(memory @ p["key"]))
            context = jnp.einsum("tb,tbc->bc", jax.nn.softmax(score, 0), memory)
            h = cell(p, "d", h, context)
            return h, h @ p["out"]

        return jnp.swapaxes(lax.scan(decode, last @ p["bridge"], None, length=3)[1], 0, 1)

    shapes = {"word": (11, 5), "query": (7, 4), "key": (6, 4), "bridge": (6, 7), "out": (7, 2)}
    for i, m, n in (("e", 5, 6), ("d", 6, 7)):
        shapes |= {"xz" + i: (m, n), "xn" + i: (m, n), "hz" + i: (n, n), "hn" + i: (n, n)}
    return f, weights(**shapes), (tokens(batch, 4),)


@model("graph network", "jax", rows=False, silent=("*: right*",))  # shifts all edges of a node
def graph_attention(batch):
    """Attention over edges, softmax by segments (arXiv 1710.10903), edge lists as inputs."""

    def f(p, nodes, senders, receivers):
        h = jnp.einsum("nc,chd->nhd", nodes @ p["i"], p["w"])
        score = (h * p["left"]).sum(-1)[senders] + (h * p["right"]).sum(-1)[receivers]
        score = jax.nn.leaky_relu(score)
        top = jax.ops.segment_max(score, receivers, num_segments=h.shape[0])
        weight = jnp.exp(score - top[receivers])
        total = jax.ops.segment_sum(weight, receivers, num_segments=h.shape[0])
        weight = weight / total[receivers]
        h = jax.ops.segment_sum(weight[..., None] * h[senders], receivers, h.shape[0])
        return jnp.einsum("nhd,hdo->no", jax.nn.elu(h), p["o"])

    shapes = {"i": (3, 6), "w": (6, 2, 5), "left": (2, 5), "right": (2, 5), "o": (2, 5, 2)}
    edges = jnp.asarray([0, 1, 1, 0]), jnp.asarray([1, 0, 1, 0])
    return f, weights(**shapes), (rows(batch, 3), *edges)
