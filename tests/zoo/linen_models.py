"""flax.linen: modules of its own kinds, and the networks that come with ifjax."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ifjax import models
from tests.zoo.model import model, rows, tokens

WIDE = {"param_dtype": jnp.float64, "dtype": jnp.float64}


def linen(module: nn.Module, *inputs: Any, **options: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """The module's function, the structs of its variables, and its inputs."""
    variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, **options), *inputs)
    return lambda p, *x: module.apply(p, *x, **options), variables, inputs


class Perceptron(nn.Module):
    """Batch norm behind every dense layer."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for n in (8, 6):
            x = nn.Dense(n)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(2)(x)


@model("MLP", "flax.linen")
def linen_perceptron(batch):
    return linen(Perceptron(), rows(batch, 3))


class Normed(nn.Module):
    """Weight norm, spectral norm without update, RMS norm."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.elu(nn.WeightNorm(nn.Dense(8))(x))
        x = nn.PReLU()(nn.SpectralNorm(nn.Dense(6))(x, update_stats=False))
        return nn.Dense(2)(nn.RMSNorm()(x))


@model("MLP", "flax.linen")
def linen_normed(batch):
    return linen(Normed(), rows(batch, 3))


class Convolutional(nn.Module):
    """Strided, grouped, depthwise, transposed; group, instance and batch norm; pooling."""

    train: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(8, (3, 3), strides=2)(x)
        x = nn.gelu(nn.GroupNorm(num_groups=4)(x))
        x = nn.Conv(12, (3, 3), feature_group_count=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not self.train)(x))
        x = nn.Conv(12, (3, 3), feature_group_count=12)(x)
        x = nn.ConvTranspose(6, (2, 2), strides=(2, 2))(x)
        x = nn.avg_pool(nn.InstanceNorm()(x), (2, 2), (2, 2))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


@model("CNN", "flax.linen", silent=("*ConvTranspose_0/bias*",))
def linen_convolutional(batch):
    return linen(Convolutional(), rows(batch, 4, 4, 3))


@model(
    "CNN",
    "flax.linen",
    rows=False,
    silent=("*batch_stats/*", "*Conv_1/bias*", "*Transpose_0/bias*"),
)
def linen_convolutional_training(batch):
    """Train mode: mutable batch statistics."""
    module = Convolutional(train=True)
    _, variables, inputs = linen(module, rows(batch, 4, 4, 3))
    return lambda p, x: module.apply(p, x, mutable=["batch_stats"]), variables, inputs


class TransformerBlock(nn.Module):
    """Pre-norm, flax's own attention."""

    mask: bool = False

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        mask = nn.make_causal_mask(x[..., 0]) if self.mask else None
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)(y, y, mask=mask)
        y = nn.Dense(10)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(y)), None


class VisionTransformer(nn.Module):
    """Class token, positional table, pooling by attention's first token."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(8, (2, 2), strides=2)(x).reshape(x.shape[0], -1, 8)
        token = self.param("cls", nn.initializers.zeros, (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 8)), x], 1)
        x = x + self.param("position", nn.initializers.zeros, (1, x.shape[1], 8))
        for _ in range(2):
            x, _ = TransformerBlock()(x)
        return nn.Dense(2)(nn.LayerNorm()(x)[:, 0])


KEY_BIAS = "*: *key/bias[[]*]"


@model("ViT", "flax.linen", silent=(KEY_BIAS,))
def linen_vision_transformer(batch):
    return linen(VisionTransformer(), rows(batch, 4, 4, 3))


class ScannedDecoder(nn.Module):
    """Layers stacked by `nn.scan` under `nn.remat`, tied embedding."""

    @nn.compact
    def __call__(self, words: Any) -> Any:
        embed = nn.Embed(11, 8)
        layers = nn.scan(
            nn.remat(TransformerBlock),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = layers(mask=True)(embed(words), None)
        return embed.attend(nn.LayerNorm()(x))


@model("decoder", "flax.linen", silent=(KEY_BIAS,))
def linen_scanned_decoder(batch):
    return linen(ScannedDecoder(), tokens(batch, 5))


class CachedDecoder(nn.Module):
    """One token into the cache that flax keeps."""

    @nn.compact
    def __call__(self, words: Any) -> Any:
        x = nn.Embed(11, 8, **WIDE)(words)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=2, qkv_features=6, decode=True, use_bias=False, **WIDE
        )
        x = x + attention(x)
        return nn.Dense(11, **WIDE)(x)


@model("decoder", "flax.linen", state=("*/cached_*",))
def linen_cached_decoder(batch):
    module = CachedDecoder()
    variables = jax.eval_shape(module.init, jax.random.key(0), tokens(batch, 6))
    cache = jax.tree.map(
        lambda x: jnp.full((), 3, x.dtype) if x.ndim == 0 else rows(batch, *x.shape[1:]),
        variables["cache"],
    )

    def f(p, word, cache):
        return module.apply({"params": p["params"], "cache": cache}, word, mutable=["cache"])

    return f, {"params": variables["params"]}, (tokens(batch, 1), cache)


class Recurrent(nn.Module):
    """Embedding, bidirectional LSTM, GRU."""

    @nn.compact
    def __call__(self, words: Any) -> Any:
        x = nn.Embed(11, 5, **WIDE)(words)
        forward = nn.RNN(nn.OptimizedLSTMCell(6, **WIDE))
        backward = nn.RNN(nn.LSTMCell(4, **WIDE))
        x = nn.Bidirectional(forward, backward)(x)
        x = nn.RNN(nn.GRUCell(7, **WIDE))(x)
        return nn.Dense(2, **WIDE)(x[:, -1])


@model("RNN", "flax.linen")
def linen_recurrent(batch):
    return linen(Recurrent(), tokens(batch, 4))


class Experts(nn.Module):
    """Experts by `nn.vmap`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(8)(x)
        gate = nn.softmax(nn.Dense(4)(x))
        many = nn.vmap(
            Feed,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=4,
        )
        return nn.Dense(2)(jnp.einsum("be,ebc->bc", gate, many()(x)))


class Feed(nn.Module):
    """Gated linear unit."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(8)(nn.silu(nn.Dense(6)(x)) * nn.Dense(6)(x))


@model("mixture of experts", "flax.linen")
def linen_experts(batch):
    return linen(Experts(), rows(batch, 3))


class SqueezeExcite(nn.Module):
    """Inverted residual with squeeze-excite, then a ConvNeXt block."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(6, (3, 3))(x)
        y = nn.swish(nn.Conv(12, (1, 1))(x))
        y = nn.swish(nn.Conv(12, (3, 3), feature_group_count=12)(y))
        gate = nn.Dense(12)(nn.relu(nn.Dense(4)(y.mean((1, 2), keepdims=True))))
        x = x + nn.Conv(6, (1, 1))(y * nn.sigmoid(gate))
        y = nn.LayerNorm()(nn.Conv(6, (5, 5), feature_group_count=6)(x))
        y = nn.Dense(6)(nn.gelu(nn.Dense(14)(y)))
        x = x + y * self.param("scale", nn.initializers.ones, (6,))
        return nn.Dense(2)(x.mean((1, 2)))


@model("MobileNet", "flax.linen")
def linen_mobile(batch):
    return linen(SqueezeExcite(), rows(batch, 4, 4, 3))


@model("ResNet", "flax.linen")
def linen_cifar_resnet(batch):
    """The CIFAR ResNet-8 of `ifjax.models`, option A."""
    module = models.CifarResNet(models.ResNetWidths.standard(8, width=4), num_classes=3)
    return linen(module, rows(batch, 4, 4, 3))


@model("VGG", "flax.linen")
def linen_vgg(batch):
    module = models.VGG(((4, 6), (8,)), num_classes=3)
    return linen(module, rows(batch, 4, 4, 3))
