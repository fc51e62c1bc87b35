"""haiku: transformed functions, parameters and state in one tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from tests.zoo.model import model, rows, tokens


def transformed(
    function: Callable[..., Any], *inputs: Any, **initial: Any
) -> tuple[Any, Any, tuple[Any, ...]]:
    """The transformed function, the structs of its parameters and state, and its inputs."""
    pair = hk.without_apply_rng(hk.transform_with_state(function))
    params, state = jax.eval_shape(lambda *x: pair.init(jax.random.key(0), *x, **initial), *inputs)

    def f(p: Any, *x: Any) -> Any:
        return pair.apply(p["params"], p["state"], *x)[0]

    return f, {"params": params, "state": state}, inputs


@model("MLP", "haiku")
def haiku_perceptron(batch):
    def f(x: Any) -> Any:
        y = hk.nets.MLP([8, 6])(x) * jax.nn.sigmoid(hk.Linear(6)(x))
        return hk.Linear(2)(hk.RMSNorm(-1)(y))

    return transformed(f, rows(batch, 3))


@model("ResNet", "haiku", silent=("*/counter*",))
def haiku_resnet(batch):
    """haiku's own ResNet-v2 with bottlenecks, one block a stage."""

    def f(x: Any, training: bool = False) -> Any:
        net = hk.nets.ResNet(
            (1, 1, 1, 1),
            3,
            resnet_v2=True,
            bottleneck=True,
            channels_per_group=(8, 8, 16, 16),
            use_projection=(True, True, True, True),
        )
        return net(x, is_training=training)

    return transformed(f, rows(batch, 8, 8, 3), training=True)


@model("MobileNet", "haiku", silent=("*/depthwise_conv2_d_1/b*", "*: params/conv2_d_1/b*"))
def haiku_depthwise(batch):
    """Depthwise and separable convolutions, batch norm, pooling."""

    def f(x: Any, training: bool = False) -> Any:
        x = hk.Conv2D(6, 3, stride=2)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training=training))
        x = hk.DepthwiseConv2D(1, 3)(x)
        x = hk.SeparableDepthwiseConv2D(1, 3)(jax.nn.relu(x))
        x = hk.Conv2D(8, 1)(x)
        x = hk.Conv2DTranspose(5, 2, stride=2)(hk.InstanceNorm(True, True)(x))
        return hk.Linear(2)(hk.Flatten()(hk.avg_pool(jax.nn.relu(x), 2, 2, "SAME")))

    return transformed(f, rows(batch, 4, 4, 3), training=True)


def attend(x: Any) -> Any:
    """Pre-norm block around haiku's attention."""
    y = hk.LayerNorm(-1, True, True)(x)
    attention = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.RandomNormal(), model_size=8)
    x = x + attention(y, y, y)
    y = hk.LayerNorm(-1, True, True)(x)
    return x + hk.Linear(8)(jax.nn.gelu(hk.Linear(12)(y)))


@model("encoder", "haiku", silent=("*key/b[[]*",))
def haiku_transformer(batch):
    def f(words: Any) -> Any:
        x = hk.Embed(11, 8)(words)
        x = x + hk.get_parameter("position", (5, 8), init=jnp.zeros)
        for _ in range(2):
            x = attend(x)
        return hk.Linear(2)(x.mean(1))

    return transformed(f, tokens(batch, 5))


@model("encoder", "haiku", silent=("*key/b[[]*",))
def haiku_layer_stack(batch):
    """The same block three times by `hk.experimental.layer_stack`."""

    def f(x: Any) -> Any:
        x = hk.Linear(8)(x)
        return hk.Linear(2)(hk.experimental.layer_stack(3)(attend)(x))

    return transformed(f, rows(batch, 5, 3))


@model("RNN", "haiku")
def haiku_recurrent(batch):
    """LSTM, GRU and Elman layers, unrolled by ``scan``."""

    def f(x: Any) -> Any:
        xs = jnp.swapaxes(x, 0, 1)
        for core in (hk.LSTM(6), hk.GRU(5), hk.VanillaRNN(4)):
            xs, _ = hk.dynamic_unroll(core, xs, core.initial_state(batch_size=xs.shape[1]))
        return hk.Linear(2)(xs[-1])

    return transformed(f, rows(batch, 4, 3))


@model("several inputs and outputs", "haiku")
def haiku_quantised(batch):
    """An autoencoder with a nearest-code bottleneck (arXiv 1711.00937)."""

    def f(x: Any) -> Any:
        z = hk.Linear(6)(jax.nn.relu(hk.Linear(8)(x)))
        codes = hk.get_parameter("codes", (7, 6), init=jnp.zeros)
        distance = jnp.square(z[:, None] - codes).sum(-1)
        chosen = codes[jnp.argmin(distance, -1)]
        z = z + jax.lax.stop_gradient(chosen - z)
        return hk.Linear(3)(jax.nn.relu(hk.Linear(8)(z))), distance.min(-1)

    return transformed(f, rows(batch, 3))
