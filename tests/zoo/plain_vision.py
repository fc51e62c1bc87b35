"""Convolutional networks as bare functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.model import model, rows, weights
from tests.zoo.parts import batch_norm, conv, layer_norm, norm_shapes


def group_norm(x, groups, scale, offset):
    split = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    mean = split.mean((1, 2, 4), keepdims=True)
    variance = split.var((1, 2, 4), keepdims=True)
    return ((split - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape) * scale + offset


@model("CNN", "jax")
def strided_dilated(batch):
    """Flattened into a dense layer."""

    def f(p, x):
        x = jax.nn.relu(conv(x, p["a"], 2) + p["bias"])
        x = jax.nn.relu(conv(x, p["b"], rhs_dilation=(2, 2)))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jax.nn.relu(x.reshape(x.shape[0], -1) @ p["dense"]) @ p["out"]

    shapes = {"a": (3, 3, 3, 8), "bias": (8,), "b": (3, 3, 8, 6), "dense": (24, 10), "out": (10, 2)}
    return f, weights(**shapes), (rows(batch, 8, 8, 3),)


@model("CNN", "jax", reads_widths=False)
def grouped_shuffled(batch):
    """Grouped convolutions with a channel shuffle between them (arXiv 1707.01083)."""

    def f(p, x):
        x = conv(x, p["stem"])
        y = jax.nn.relu(conv(x, p["a"], groups=2))
        y = jnp.swapaxes(y.reshape(*y.shape[:-1], 2, 6), -1, -2).reshape(y.shape)
        y = conv(y, p["depthwise"], groups=12)
        y = conv(y, p["b"], groups=2)
        return jax.nn.relu(y).mean((1, 2)) @ p["out"]

    shapes = {"stem": (1, 1, 3, 8), "a": (1, 1, 4, 12), "depthwise": (3, 3, 1, 12)}
    return f, weights(**shapes, b=(1, 1, 6, 8), out=(8, 2)), (rows(batch, 4, 4, 3),)


@model("MobileNet", "jax")
def inverted_residual(batch):
    """Depthwise bottleneck with squeeze-excite (arXiv 1905.02244)."""

    def f(p, x):
        x = jax.nn.hard_swish(batch_norm(p, "n0", conv(x, p["stem"], 2)))
        y = jax.nn.hard_swish(batch_norm(p, "n1", conv(x, p["expand"])))
        y = jax.nn.hard_swish(batch_norm(p, "n2", conv(y, p["depth"], groups=y.shape[-1])))
        gate = jax.nn.relu(y.mean((1, 2)) @ p["squeeze"]) @ p["excite"]
        y = y * jax.nn.hard_sigmoid(gate)[:, None, None]
        x = x + batch_norm(p, "n3", conv(y, p["project"]))
        return x.mean((1, 2)) @ p["out"]

    shapes = {"stem": (3, 3, 3, 6), "expand": (1, 1, 6, 12), "depth": (3, 3, 1, 12)}
    shapes |= {"squeeze": (12, 4), "excite": (4, 12), "project": (1, 1, 12, 6), "out": (6, 2)}
    for name, n in (("n0", 6), ("n1", 12), ("n2", 12), ("n3", 6)):
        shapes |= norm_shapes(name, n)
    return f, weights(**shapes), (rows(batch, 4, 4, 3),)


@model("ResNet", "jax", reads_widths=False)
def resnet_option_a(batch):
    """Shortcuts that subsample and pad the channels with zeros (arXiv 1512.03385)."""

    def block(p, i, x, stride, n):
        y = jax.nn.relu(batch_norm(p, f"n{i}a", conv(x, p[f"c{i}a"], stride)))
        y = batch_norm(p, f"n{i}b", conv(y, p[f"c{i}b"]))
        extra = (n - x.shape[-1]) // 2
        short = jnp.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((extra, extra),))
        return jax.nn.relu(y + short)

    def f(p, x):
        x = jax.nn.relu(batch_norm(p, "n0", conv(x, p["stem"])))
        x = block(p, 2, block(p, 1, x, 1, 4), 2, 8)
        return x.mean((1, 2)) @ p["out"] + p["bias"]

    shapes = {"stem": (3, 3, 3, 4), "out": (8, 2), "bias": (2,)} | norm_shapes("n0", 4)
    for i, m, n, inner in ((1, 4, 4, 6), (2, 4, 8, 5)):
        shapes |= {f"c{i}a": (3, 3, m, inner), f"c{i}b": (3, 3, inner, n)}
        shapes |= norm_shapes(f"n{i}a", inner) | norm_shapes(f"n{i}b", n)
    return f, weights(**shapes), (rows(batch, 4, 4, 3),)


@model("ResNet", "jax", rows=False, silent=("*_mean[[]0]", "*_var[[]0]"))
def resnet_option_b_training(batch):
    """Projected shortcut, batch statistics, updated running ones among the outputs."""

    def norm(p, new, name, x):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        new[f"{name}_mean"] = 0.9 * p[f"{name}_mean"] + 0.1 * mean
        new[f"{name}_var"] = 0.9 * p[f"{name}_var"] + 0.1 * var
        return (x - mean) * lax.rsqrt(var + 1e-5) * p[f"{name}_scale"] + p[f"{name}_offset"]

    def f(p, x):
        new = {}
        x = jax.nn.relu(norm(p, new, "n0", conv(x, p["stem"])))
        y = jax.nn.relu(norm(p, new, "n1", conv(x, p["a"], 2)))
        y = norm(p, new, "n2", conv(y, p["b"]))
        x = jax.nn.relu(y + norm(p, new, "n3", conv(x, p["short"], 2)))
        return x.mean((1, 2)) @ p["out"], new

    shapes = {"stem": (3, 3, 3, 4), "a": (3, 3, 4, 6), "b": (3, 3, 6, 8), "short": (1, 1, 4, 8)}
    for name, n in (("n0", 4), ("n1", 6), ("n2", 8), ("n3", 8)):
        shapes |= norm_shapes(name, n)
    return f, weights(**shapes, out=(8, 2)), (rows(batch, 4, 4, 3),)


@model("ResNet", "jax")
def channels_first_bottleneck(batch):
    """NCHW and OIHW, pre-activation, 1 x 1 - 3 x 3 - 1 x 1 (arXiv 1603.05027)."""

    def conv2(x, k):
        return lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )

    def norm(p, name, x):
        return jax.nn.relu(
            batch_norm({k: v[:, None, None] for k, v in p.items() if k.startswith(name)}, name, x)
        )

    def f(p, x):
        x = conv2(x, p["stem"])
        y = conv2(norm(p, "n1", x), p["a"])
        y = conv2(norm(p, "n2", y), p["b"])
        x = x + conv2(norm(p, "n3", y), p["c"])
        return x.mean((2, 3)) @ p["out"].T

    shapes = {"stem": (8, 3, 3, 3), "a": (4, 8, 1, 1), "b": (5, 4, 3, 3), "c": (8, 5, 1, 1)}
    for name, n in (("n1", 8), ("n2", 4), ("n3", 5)):
        shapes |= norm_shapes(name, n)
    return f, weights(**shapes, out=(2, 8)), (rows(batch, 3, 4, 4),)


@model("DenseNet", "jax")
def densenet(batch):
    def f(p, x):
        x = conv(x, p["stem"])
        for i in "123":
            y = conv(jax.nn.relu(batch_norm(p, "n" + i, x)), p["c" + i])
            x = jnp.concatenate([x, y], -1)
        x = conv(x, p["transition"])
        x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        return x.mean((1, 2)) @ p["out"]

    shapes = {"stem": (3, 3, 3, 4), "transition": (1, 1, 13, 6), "out": (6, 2)}
    for i, n in (("1", 4), ("2", 7), ("3", 10)):
        shapes |= {"c" + i: (3, 3, n, 3)} | norm_shapes("n" + i, n)
    return f, weights(**shapes), (rows(batch, 4, 4, 3),)


@model("U-Net", "jax")
def unet(batch):
    """Strided down, transposed up, skips by concatenation (arXiv 1505.04597)."""

    def f(p, x):
        a = jax.nn.relu(conv(x, p["a"]))
        b = jax.nn.relu(conv(a, p["b"], 2))
        c = jax.nn.relu(conv(b, p["c"], 2))
        up = lax.conv_transpose(c, p["up1"], (2, 2), "SAME")
        y = jax.nn.relu(conv(jnp.concatenate([up, b], -1), p["d"]))
        y = jax.image.resize(y, (*a.shape[:3], y.shape[-1]), "nearest")
        y = jax.nn.relu(conv(jnp.concatenate([y, a], -1), p["e"]))
        return conv(y, p["out"])

    shapes = {"a": (3, 3, 2, 4), "b": (3, 3, 4, 6), "c": (3, 3, 6, 8), "up1": (2, 2, 8, 5)}
    shapes |= {"d": (3, 3, 11, 6), "e": (3, 3, 10, 4), "out": (1, 1, 4, 2)}
    return f, weights(**shapes), (rows(batch, 8, 8, 2),)


@model("diffusion", "jax", reads_widths=False)
def diffusion_block(batch):
    """Residual blocks with group norm and a time embedding, attention in between."""

    def block(p, i, x, time):
        y = conv(jax.nn.silu(group_norm(x, 2, p[f"s{i}a"], p[f"o{i}a"])), p[f"c{i}a"])
        scale, shift = jnp.split(time @ p[f"t{i}"], 2, -1)
        y = group_norm(y, 2, p[f"s{i}b"], p[f"o{i}b"]) * (1 + scale[:, None, None])
        return x + conv(jax.nn.silu(y + shift[:, None, None]), p[f"c{i}b"])

    def attention(p, x):
        tokens = layer_norm(x.reshape(x.shape[0], -1, x.shape[-1]), p["s"], p["o"])
        q, k, v = jnp.split(tokens @ p["qkv"], 3, -1)
        weight = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / 3)
        return x + ((weight @ v) @ p["proj"]).reshape(x.shape)

    def f(p, x, t):
        angle = t[:, None] * jnp.exp(-jnp.arange(3.0))
        time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        time = jax.nn.silu(time @ p["time1"]) @ p["time2"]
        x = conv(x, p["in"])
        x = block(p, 2, attention(p, block(p, 1, x, time)), time)
        return conv(x, p["out"])

    shapes = {"in": (3, 3, 2, 8), "out": (3, 3, 8, 2), "time1": (6, 7), "time2": (7, 9)}
    shapes |= {"qkv": (8, 18), "proj": (6, 8), "s": (8,), "o": (8,)}
    for i, n in ((1, 6), (2, 4)):
        shapes |= {f"c{i}a": (3, 3, 8, n), f"c{i}b": (3, 3, n, 8), f"t{i}": (9, 2 * n)}
        shapes |= {f"s{i}a": (8,), f"o{i}a": (8,), f"s{i}b": (n,), f"o{i}b": (n,)}
    return f, weights(**shapes), (rows(batch, 4, 4, 2), rows(batch))


@model("CNN", "jax", reads_widths=False)
def pixel_shuffle(batch):
    """Super-resolution by sub-pixel convolution (arXiv 1609.05158)."""

    def f(p, x):
        x = jax.nn.relu(conv(x, p["a"]))
        x = conv(x, p["b"]).reshape(-1, 4, 4, 2, 2, 5)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 5)
        return conv(jnp.tanh(x), p["c"])

    shapes = {"a": (3, 3, 3, 6), "b": (3, 3, 6, 20), "c": (3, 3, 5, 3)}
    return f, weights(**shapes), (rows(batch, 4, 4, 3),)


@model("CNN", "jax", reads_widths=False)
def standardised_group_norm(batch):
    """Weight standardisation, group and instance norm (arXiv 1903.10520)."""

    def standard(k):
        k = k - k.mean((0, 1, 2))
        return k / jnp.sqrt(k.var((0, 1, 2)) + 1e-5)

    def f(p, x):
        x = jax.nn.relu(group_norm(conv(x, standard(p["a"])), 4, p["s1"], p["o1"]))
        x = conv(x, standard(p["b"]))
        x = (x - x.mean((1, 2), keepdims=True)) / jnp.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
        x = jnp.where(x > 0, x, x * p["slope"])
        return x.mean((1, 2)) @ p["out"]

    shapes = {"a": (3, 3, 3, 8), "s1": (8,), "o1": (8,), "b": (3, 3, 8, 6), "slope": (6,)}
    return f, weights(**shapes, out=(6, 2)), (rows(batch, 4, 4, 3),)


@model("ConvNeXt", "jax")
def convnext(batch):
    """Depthwise 7 x 7, layer norm, inverted bottleneck, layer scale (arXiv 2201.03545)."""

    def f(p, x):
        x = conv(x, p["patch"], 2, padding="VALID")
        for i in "12":
            y = conv(x, p["dw" + i], groups=x.shape[-1]) + p["b" + i]
            y = layer_norm(y, p["s" + i], p["o" + i])
            y = jax.nn.gelu(y @ p["w" + i])
            norm = jnp.sqrt(jnp.square(y).sum((1, 2), keepdims=True))  # GRN, arXiv 2301.00808
            y = p["g" + i] * (y * norm / (norm.mean(-1, keepdims=True) + 1e-6)) + y
            x = x + p["gamma" + i] * (y @ p["v" + i])
        return x.mean((1, 2)) @ p["out"]

    shapes = {"patch": (2, 2, 3, 6), "out": (6, 2)}
    for i, n in (("1", 10), ("2", 12)):
        shapes |= {"dw" + i: (7, 7, 1, 6), "w" + i: (6, n), "v" + i: (n, 6), "g" + i: (n,)}
        shapes |= {k + i: (6,) for k in ("b", "s", "o", "gamma")}
    return f, weights(**shapes), (rows(batch, 8, 8, 3),)


@model("CNN", "jax")
def feature_wise_modulation(batch):
    """A question modulates the channels (FiLM, arXiv 1709.07871)."""

    def f(p, image, question):
        scale, shift = question @ p["scale"], question @ p["shift"]
        x = conv(image, p["a"])
        x = jax.nn.relu(x * (1 + scale[:, None, None]) + shift[:, None, None])
        return conv(x, p["b"]).mean((1, 2))

    shapes = {"scale": (4, 8), "shift": (4, 8), "a": (3, 3, 3, 8), "b": (3, 3, 8, 2)}
    return f, weights(**shapes), (rows(batch, 4, 4, 3), rows(batch, 4))
