"""The laws of `laws.hold` for networks that nobody chose."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax

from tests.graph.laws import array, hold

pytestmark = pytest.mark.usefixtures("unchecked")

Get = Callable[..., Any]
WIDEST = 12


def conv(x, k, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def linear(get: Get, name: str, x, n: int):
    """A convolution on images, a matrix product on vectors."""
    c = x.shape[-1]
    if x.ndim == 4:
        return conv(x, get(name, 2, 2, c, n))
    return x @ get(name, c, n)


def dense(get, i, x, earlier, n):
    return linear(get, f"w{i}", x, n) + get(f"b{i}", n)


def norm(get, i, x, earlier, n):
    vectors = [get(f"{v}{i}", x.shape[-1]) for v in ("mean", "var", "scale", "offset")]
    mean, var, scale, offset = vectors
    return (x - mean) * lax.rsqrt(jnp.square(var) + 0.5) * scale + offset


def residual(get, i, x, earlier, n):
    return x + linear(get, f"d{i}", jax.nn.silu(linear(get, f"u{i}", x, n)), x.shape[-1])


def skip(get, i, x, earlier, n):
    """Adds, or else appends, an earlier value of the same shape but for the channels."""
    for h in reversed(earlier):
        if h.shape == x.shape:
            return jnp.tanh(x) + h
        if h.shape[:-1] == x.shape[:-1] and h.shape[-1] + x.shape[-1] <= WIDEST:
            return jnp.concatenate([h, x], -1)
    return jnp.sin(x)


def part(get, i, x, earlier, n):
    return x[..., : max(1, min(n, x.shape[-1] - 1))]


def gate(get, i, x, earlier, n):
    half = x.shape[-1] // 2
    return x[..., :half] * jax.nn.sigmoid(x[..., half : 2 * half]) if half else x


def every_second(get, i, x, earlier, n):
    return x[..., n % 2 :: 2] if x.shape[-1] > 2 else x


def padded(get, i, x, earlier, n):
    if x.shape[-1] + 3 > WIDEST:
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 2)]) * get(f"p{i}", x.shape[-1] + 3)


def twice(get, i, x, earlier, n):
    return jnp.concatenate([x, jnp.sin(x)], -1) if x.shape[-1] * 2 <= WIDEST else x


def shuffle(get, i, x, earlier, n):
    c = x.shape[-1]
    if c % 2:
        return x
    y = jnp.swapaxes(x.reshape(*x.shape[:-1], 2, c // 2), -1, -2).reshape(x.shape)
    return y + x if n % 3 == 0 else y


def depthwise(get, i, x, earlier, n):
    if x.ndim != 4:
        return x * get(f"s{i}", x.shape[-1])
    return conv(x, get(f"k{i}", 2, 2, 1, x.shape[-1]), x.shape[-1])


def grouped(get, i, x, earlier, n):
    if x.ndim != 4 or x.shape[-1] % 2:
        return x
    return conv(x, get(f"g{i}", 1, 1, x.shape[-1] // 2, 2 * (1 + n // 2)), 2)


def flatten(get, i, x, earlier, n):
    return x.reshape(x.shape[0], -1) @ get(f"f{i}", x.size // x.shape[0], n)


def pool(get, i, x, earlier, n):
    return x.mean((1, 2)) if x.ndim == 4 else x


def recurrent(get, i, x, earlier, n):
    w = get(f"r{i}", x.shape[-1], x.shape[-1])
    return jnp.tanh(jnp.tanh(x @ w) @ w + x)


STEPS = (
    *(dense, dense, dense, norm, norm, residual, residual, skip, skip, part, gate, every_second),
    *(padded, twice, shuffle, depthwise, grouped, flatten, pool, recurrent),
)
RECIPES = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(2, 6)), min_size=3, max_size=7
).map(lambda steps: [(dense, 4), *steps])


def network(recipe, get: Get, x):
    earlier: list[Any] = []
    for i, (step, n) in enumerate(recipe):
        earlier.append(x)
        x = jax.nn.silu(step(get, i, x, earlier[1:], n))  # not the input: it pins
    return flatten(get, "out", x, earlier, 2)


def holds(recipe):
    """The laws hold for a network; its graph."""
    params: dict[str, np.ndarray] = {}

    def draw(name: str, *shape: int):
        scale = np.sqrt(max(shape)) if len(shape) > 1 else 1
        params[name] = array(*shape, seed=zlib.crc32(name.encode())) / scale
        return params[name]

    x = array(2, 3, 3, 2)
    with jax.enable_x64(True):
        jax.eval_shape(lambda x: network(recipe, draw, x), x)
    graph = hold(
        lambda p, x: network(recipe, lambda name, *shape: p[name], x), params, x, power=False
    )
    assert graph.unused == ()
    return graph


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking costs minutes, and the recipe names its steps
    suppress_health_check=[HealthCheck.too_slow],
)
@given(RECIPES)
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_every_group_of_a_random_network_is_right(recipe):
    holds(recipe)
