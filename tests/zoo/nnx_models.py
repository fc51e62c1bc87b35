"""flax.nnx: objects, split into their definition and their arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.zoo.model import model, rows, tokens

WIDE = {"param_dtype": jnp.float64}
KEY_BIAS = "*: *key/bias*"


def split(make: Callable[[nnx.Rngs], nnx.Module], *inputs: Any) -> tuple[Any, Any, Any]:
    """The module's function, the structs of its parameters and statistics, and its inputs."""
    definition, arrays = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return lambda p, *x: nnx.merge(definition, p)(*x), arrays, inputs


class Perceptron(nnx.Module):
    """Dense layers and batch norm in eval mode."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.b = nnx.Linear(8, 6, rngs=rngs)
        self.c = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.c(nnx.silu(self.b(nnx.relu(self.norm(self.a(x))))))


@model("MLP", "flax.nnx")
def nnx_perceptron(batch):
    return split(Perceptron, rows(batch, 3))


class Low(nnx.Module):
    """A low-rank adapter beside a dense layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.LoRALinear(3, 8, lora_rank=3, rngs=rngs)
        self.b = nnx.LoRALinear(8, 2, lora_rank=4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.b(nnx.gelu(self.a(x)))


@model("MLP", "flax.nnx")
def nnx_low_rank(batch):
    return split(Low, rows(batch, 3))


class Convolutional(nnx.Module):
    """A residual block with group norm, depthwise and transposed convolutions."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.depth = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.point = nnx.Conv(8, 8, (1, 1), rngs=rngs)
        self.up = nnx.ConvTranspose(8, 5, (2, 2), strides=(2, 2), rngs=rngs)
        self.out = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.stem(x)
        x = x + self.point(nnx.relu(self.depth(self.norm(x))))
        x = nnx.max_pool(nnx.relu(self.up(x)), (2, 2), (2, 2))
        return self.out(x.mean((1, 2)))


@model("CNN", "flax.nnx")
def nnx_convolutional(batch):
    return split(Convolutional, rows(batch, 4, 4, 3))


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.RMSNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=8, qkv_features=6, decode=False, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 10, rngs=rngs)
        self.down = nnx.Linear(10, 8, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Encoder(nnx.Module):
    """Blocks in a list, an embedding tied to the output."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(11, 8, rngs=rngs, dtype=jnp.float64, **WIDE)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])

    def __call__(self, words: Any) -> Any:
        x = self.embed(words)
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(x)


@model("encoder", "flax.nnx", silent=(KEY_BIAS,))
def nnx_encoder(batch):
    return split(Encoder, tokens(batch, 5))


class Stacked(nnx.Module):
    """The same blocks, made by `nnx.vmap` and applied by `nnx.scan`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(3, 8, rngs=rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs: nnx.Rngs) -> Block:
            return Block(rngs)

        self.blocks = make(rngs)
        self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x: Any, block: Block) -> Any:
            return block(x)

        return self.out(run(self.embed(x), self.blocks))


@model("encoder", "flax.nnx", silent=(KEY_BIAS,))
def nnx_scanned_encoder(batch):
    return split(Stacked, rows(batch, 4, 3))


class Recurrent(nnx.Module):
    """LSTM, then GRU."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(3, 6, rngs=rngs, **WIDE), rngs=rngs)
        self.gru = nnx.RNN(nnx.GRUCell(6, 5, rngs=rngs, **WIDE), rngs=rngs)
        self.out = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(self.gru(self.lstm(x))[:, -1])


@model("RNN", "flax.nnx")
def nnx_recurrent(batch):
    return split(Recurrent, rows(batch, 4, 3))


class Autoencoder(nnx.Module):
    """Two outputs from one embedding, einsum layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encode = nnx.Einsum("bi,ihd->bhd", (3, 2, 5), (2, 5), rngs=rngs)
        self.decode = nnx.LinearGeneral((2, 5), (4,), axis=(-2, -1), rngs=rngs)
        self.side = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        z = self.decode(nnx.tanh(self.encode(x)))
        return jax.nn.softplus(self.side(z)), self.side(nnx.relu(z))


@model("several inputs and outputs", "flax.nnx")
def nnx_einsum_layers(batch):
    return split(Autoencoder, rows(batch, 3))
