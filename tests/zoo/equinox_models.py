"""equinox: modules, split into their arrays and the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.zoo.model import model, rows, tokens


def arrays(make: Callable[[Any], Any], *inputs: Any, wrap: Any = jax.vmap) -> tuple[Any, Any, Any]:
    """The module's function over a batch, the structs of its arrays, and its inputs."""
    module = eqx.filter_eval_shape(make, jax.random.key(0))
    structs, static = eqx.partition(module, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    return lambda p, *x: wrap(eqx.combine(p, static))(*x), structs, inputs


class Perceptron(eqx.Module):
    """Two MLPs, PReLU, weight norm."""

    mlp: eqx.nn.MLP
    slope: eqx.nn.PReLU
    out: eqx.nn.WeightNorm

    def __init__(self, key: Any) -> None:
        a, b = jax.random.split(key)
        self.mlp = eqx.nn.MLP(3, 8, 6, 2, key=a)
        self.slope = eqx.nn.PReLU()
        self.out = eqx.nn.WeightNorm(eqx.nn.Linear(8, 2, key=b))

    def __call__(self, x: Any) -> Any:
        return self.out(self.slope(self.mlp(x)))


@model("MLP", "equinox")
def equinox_perceptron(batch):
    return arrays(Perceptron, rows(batch, 3))


class Convolutional(eqx.Module):
    """Channels first: group norm, depthwise, transposed, pooling."""

    stem: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    depth: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    out: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 4)
        self.stem = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.GroupNorm(4, 8)
        self.depth = eqx.nn.Conv2d(8, 8, 3, groups=8, padding=1, key=keys[1])
        self.up = eqx.nn.ConvTranspose2d(8, 6, 2, stride=2, key=keys[2])
        self.out = eqx.nn.Linear(96, 2, key=keys[3])

    def __call__(self, x: Any) -> Any:
        x = self.stem(x)
        x = x + jax.nn.relu(self.depth(self.norm(x)))
        x = eqx.nn.AvgPool2d(2, 2)(jax.nn.gelu(self.up(x)))
        return self.out(x.ravel())


@model("CNN", "equinox")
def equinox_convolutional(batch):
    return arrays(Convolutional, rows(batch, 3, 4, 4))


class Normalised(eqx.Module):
    """Batch norm with its state, in inference mode."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        a, b = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(3, 8, 3, key=a)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch", dtype=jnp.float64)
        self.out = eqx.nn.Linear(8, 2, key=b)

    def __call__(self, x: Any, state: Any) -> Any:
        x, state = self.norm(self.conv(x), state)
        return self.out(jax.nn.relu(x).mean((1, 2))), state


@model("CNN", "equinox")
def equinox_batch_norm(batch):
    def make(key: Any) -> Any:
        module, state = eqx.nn.make_with_state(Normalised)(key)
        return eqx.nn.inference_mode(module), state

    def wrap(pair: Any) -> Any:
        module, state = pair
        batched = jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return lambda x: batched(x, state)[0]

    return arrays(make, rows(batch, 3, 4, 4), wrap=wrap)


class Block(eqx.Module):
    """Pre-norm transformer block with rotary positions."""

    attention: eqx.nn.MultiheadAttention
    rope: eqx.nn.RotaryPositionalEmbedding
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.RMSNorm
    mlp: eqx.nn.MLP

    def __init__(self, key: Any) -> None:
        a, b = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=a)
        self.rope = eqx.nn.RotaryPositionalEmbedding(4, dtype=jnp.float64)
        self.norm1 = eqx.nn.LayerNorm(8)
        self.norm2 = eqx.nn.RMSNorm(8)
        self.mlp = eqx.nn.MLP(8, 8, 10, 1, activation=jax.nn.gelu, key=b)

    def __call__(self, x: Any) -> Any:
        def turn(q: Any, k: Any, v: Any) -> Any:
            rotate = jax.vmap(self.rope, in_axes=1, out_axes=1)
            return rotate(q), rotate(k), v

        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y, process_heads=turn)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norm2)(x))


class Encoder(eqx.Module):
    """Blocks in a tuple, embedding shared with the output by `eqx.nn.Shared`."""

    shared: eqx.nn.Shared
    blocks: tuple[Block, ...]

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 4)
        pair = eqx.nn.Embedding(11, 8, key=keys[0]), eqx.nn.Linear(8, 11, False, key=keys[1])
        self.shared = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)
        self.blocks = Block(keys[2]), Block(keys[3])

    def __call__(self, words: Any) -> Any:
        embed, out = self.shared()
        x = jax.vmap(embed)(words)
        for block in self.blocks:
            x = block(x)
        return jax.vmap(out)(x)


@model("encoder", "equinox")
def equinox_encoder(batch):
    return arrays(Encoder, tokens(batch, 5))


class Stacked(eqx.Module):
    """Blocks stacked by `eqx.filter_vmap`, applied by ``scan``."""

    blocks: Block
    head: eqx.nn.Linear
    stem: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        a, b, c = jax.random.split(key, 3)
        self.blocks = eqx.filter_vmap(Block)(jax.random.split(a, 3))
        self.stem = eqx.nn.Linear(3, 8, key=b)
        self.head = eqx.nn.Linear(8, 2, key=c)

    def __call__(self, x: Any) -> Any:
        stacked, static = eqx.partition(self.blocks, lambda x: hasattr(x, "ndim") and x.ndim > 0)

        def step(x: Any, p: Any) -> Any:
            return eqx.combine(p, static)(x), None

        x, _ = jax.lax.scan(step, jax.vmap(self.stem)(x), stacked)
        return jax.vmap(self.head)(x)


@model("encoder", "equinox")
def equinox_scanned_encoder(batch):
    return arrays(Stacked, rows(batch, 4, 3))


class Recurrent(eqx.Module):
    """GRU and LSTM cells under ``scan``."""

    gru: eqx.nn.GRUCell
    lstm: eqx.nn.LSTMCell
    out: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        a, b, c = jax.random.split(key, 3)
        self.gru = eqx.nn.GRUCell(3, 6, key=a)
        self.lstm = eqx.nn.LSTMCell(6, 5, key=b)
        self.out = eqx.nn.Linear(5, 2, key=c)

    def __call__(self, xs: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            h = self.gru(x, carry[0])
            return (h, self.lstm(h, carry[1])), None

        start = jnp.zeros(6), (jnp.zeros(5), jnp.zeros(5))
        (_, (h, _)), _ = jax.lax.scan(step, start, xs)
        return self.out(h)


@model("RNN", "equinox")
def equinox_recurrent(batch):
    return arrays(Recurrent, rows(batch, 4, 3))
