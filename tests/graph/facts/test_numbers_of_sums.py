"""A number follows the width where it belongs to a sum over it; the others stay and are told.

Numbers that are more than a count: every one by a function that reads its widths, and by one whose
widths are fixed, as those of most frameworks' modules are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from tests.graph.laws import array, arrays, between, kept


def moments(h):
    centred = h - h.mean(-1, keepdims=True)
    return centred, (centred**2).sum(-1, keepdims=True)


def deviation(h, ddof=1):
    centred, squares = moments(h)
    return centred / (jnp.sqrt(squares / (h.shape[-1] - ddof)) + 1e-6)


def bessel(h):
    n = h.shape[-1]
    return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) * (n / (n - 1)))


def shortcut_variance(h):
    """n sum(x^2) - sum(x)^2, over n (n - 1)."""
    n = h.shape[-1]
    squares, total = (h * h).sum(-1, keepdims=True), h.sum(-1, keepdims=True)
    return h / jnp.sqrt((n * squares - total**2) / (n * (n - 1)))


def log_mean_exp(h):
    return h - (jax.nn.logsumexp(h, -1, keepdims=True) - np.log(h.shape[-1]))


def relative_entropy(h):
    p = jax.nn.softmax(h)
    return h * (-(p * jnp.log(p)).sum(-1, keepdims=True) / np.log(h.shape[-1]))


BELONGING = {
    "std, ddof 1": lambda h: (h - h.mean(-1, keepdims=True)) / h.std(-1, ddof=1, keepdims=True),
    "var, ddof 1": lambda h: h / jnp.sqrt(h.var(-1, ddof=1, keepdims=True) + 1e-5),
    "n - 1 by hand": deviation,
    "times 1 / (n - 1)": lambda h: h / jnp.sqrt(moments(h)[1] * (1 / (h.shape[-1] - 1))),
    "n / (n - 1) of a variance": bessel,
    "over sqrt(n - 1)": lambda h: h / (jnp.sqrt(moments(h)[1]) / np.sqrt(h.shape[-1] - 1)),
    "n (n - 1)": shortcut_variance,
    "norm over sqrt(n)": lambda h: (
        h / (jnp.linalg.norm(h, axis=-1, keepdims=True) / np.sqrt(h.shape[-1]) + 1e-6)
    ),
    "norm times 1 / sqrt(n)": lambda h: (
        h / (jnp.linalg.norm(h, axis=-1, keepdims=True) * h.shape[-1] ** -0.5)
    ),
    "over the norm, times sqrt(n)": lambda h: (
        h / jnp.linalg.norm(h, axis=-1, keepdims=True) * h.shape[-1] ** 0.5
    ),
    "root computed by jax": lambda h: (
        h / jnp.linalg.norm(h, axis=-1, keepdims=True) * jnp.sqrt(jnp.float64(h.shape[-1]))
    ),
    "rsqrt of the sum": lambda h: (
        h * jax.lax.rsqrt((h * h).sum(-1, keepdims=True)) * np.sqrt(h.shape[-1])
    ),
    "sqrt(n) before the norm": lambda h: (
        h * np.sqrt(h.shape[-1]) / jnp.linalg.norm(h, axis=-1, keepdims=True)
    ),
    "root of jax before the norm": lambda h: (
        jnp.sqrt(jnp.float64(h.shape[-1])) * h / jnp.linalg.norm(h, axis=-1, keepdims=True)
    ),
    "over 1 / sqrt(n) before the norm": lambda h: (
        (h / h.shape[-1] ** -0.5) * jax.lax.rsqrt((h * h).sum(-1, keepdims=True))
    ),
    "n before the sum": lambda h: h.shape[-1] * h / jnp.abs(h).sum(-1, keepdims=True),
    "before the norm, turned": lambda h: (
        ((h * np.sqrt(h.shape[-1])).T / jnp.linalg.norm(h, axis=-1)[None]).T
    ),
    "before the norm of a called function": lambda h: (
        h * np.sqrt(h.shape[-1]) / jax.jit(lambda h: jnp.linalg.norm(h, axis=-1))(h)[:, None]
    ),
    "squares by einsum": lambda h: (
        h * jax.lax.rsqrt(jnp.einsum("bi,bi->b", h, h) / h.shape[-1])[:, None]
    ),
    "squares by vdot": lambda h: h * jax.lax.rsqrt(jax.vmap(jnp.vdot)(h, h) / h.shape[-1])[:, None],
    "mean by a product with ones": lambda h: h - h @ jnp.ones((h.shape[-1], 1)) / h.shape[-1],
    "mean by a product with 1 / n": lambda h: h - h @ jnp.full((h.shape[-1], 1), 1 / h.shape[-1]),
    "n over the sum": lambda h: h * (h.shape[-1] / jnp.abs(h).sum(-1, keepdims=True)),
    "power of the mean power": lambda h: (
        h / ((jnp.abs(h) ** 3).sum(-1, keepdims=True) / h.shape[-1]) ** (1 / 3)
    ),
    "log of the mean exponential": log_mean_exp,
    "entropy over log n": relative_entropy,
    "geometric mean": lambda h: (
        h / jnp.prod(jnp.abs(h) + 1, -1, keepdims=True) ** (1 / h.shape[-1])
    ),
    "mean of absolute values": lambda h: h / (jnp.abs(h).sum(-1, keepdims=True) / h.shape[-1]),
    "of a scaled layer": lambda h: (
        lambda h: h / jnp.sqrt((h * h).sum(-1, keepdims=True)) * np.sqrt(h.shape[-1])
    )(deviation(h) * jnp.tanh(h)),
    "in a jitted function": jax.jit(deviation),
    "in a checkpoint": jax.checkpoint(deviation),
    "mapped": jax.vmap(lambda h: deviation(h[None])[0]),
}


def fixed_width(f):
    """The function with a width that it insists on."""

    def fixed(p, x):
        assert p["a"].shape[-1] == 8, "declared"
        return f(p, x)

    return fixed


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("case", BELONGING)
def test_a_number_that_belongs_to_a_sum_follows(case, reads):
    f, p, x = between(BELONGING[case])
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (p, x))
        traced = f if reads else fixed_width(f)
        graph = ifjax.trace(traced, p, x)
        assert [(g.size, g.exact) for g in graph.groups] == [(8, False)]
        assert all(number.follows for number in graph.numbers), graph.literals
        for keep in (4, 3):
            small = ifjax.take(p, graph, {"a": np.arange(keep) * 2})
            got = jax.jit(ifjax.shrink(traced, graph.spec(keep=keep)))(small, x)
            np.testing.assert_allclose(got, f(small, x), rtol=1e-12)


def weight_norm(case, k):
    """A kernel [3, 3, n, 4], normalised over what feeds an output."""
    axes, fan = (0, 1, 2), k.shape[0] * k.shape[1] * k.shape[2]
    centred = k - k.mean(axes)
    match case:
        case "unbiased deviation":
            return centred / (k.std(axes, ddof=1) + 1e-5)
        case "scaled standardisation":
            return centred * jax.lax.rsqrt(jnp.maximum(k.var(axes) * fan, 1e-4))
        case "norm times the root of the fan-in":
            return k / jnp.sqrt((k**2).sum(axes)) * np.sqrt(fan)
        case "mean in two steps":
            return k - (k.sum((0, 1)) / 9).sum(0) / k.shape[2]
        case "sum over k k n":
            return k - k.sum(axes) / fan
        case "fan-in minus one":
            return centred / jnp.sqrt((centred**2).sum(axes) / (fan - 1))
    raise AssertionError(case)


WEIGHT = ("unbiased deviation", "scaled standardisation", "norm times the root of the fan-in")
WEIGHT += ("mean in two steps", "sum over k k n", "fan-in minus one")


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("case", WEIGHT)
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_the_fan_in_of_a_weight_follows(case, reads):
    numbers = ("NHWC", "HWIO", "NHWC")

    def f(p, x):
        h = jax.nn.relu(x @ p["a"])
        k = weight_norm(case, p["k"])
        return jax.lax.conv_general_dilated(h, k, (1, 1), "SAME", dimension_numbers=numbers)

    with jax.enable_x64(True):
        p, x = arrays(a=(3, 8), k=(3, 3, 8, 4)), array(2, 4, 4, 3)
        p, x = jax.tree.map(jnp.asarray, (p, x))
        traced = f if reads else fixed_width(f)
        graph = ifjax.trace(traced, p, x)
        assert [(g.size, g.exact) for g in graph.groups] == [(8, False)]
        small = ifjax.take(p, graph, {"a": kept(8)})
        got = ifjax.shrink(traced, graph.spec(keep=4))(small, x)
        np.testing.assert_allclose(got, f(small, x), rtol=1e-11)


STAYING = {
    "a root of the width": lambda h: h / np.sqrt(h.shape[-1]),
    "two over the width": lambda h: h * (2 / h.shape[-1]),
    "He's root": lambda h: h * np.sqrt(2 / h.shape[-1]),
    "a part of the width": lambda h: h / (h.shape[-1] // 4),
    "the width": lambda h: jnp.tanh(h) * h.shape[-1],
    "an offset": lambda h: jnp.tanh(h) + np.log(h.shape[-1]),
    "a temperature": lambda h: jax.nn.softmax(h / h.shape[-1] ** 0.3),
    "a power": lambda h: jnp.abs(h) ** (1 / h.shape[-1]),
    "before the norm and beside it": lambda h: (
        lambda z: z / jnp.linalg.norm(h, axis=-1, keepdims=True) + jnp.tanh(z)
    )(h * np.sqrt(h.shape[-1])),
}


@pytest.mark.parametrize("case", STAYING)
def test_a_number_of_which_it_cannot_be_told_stays_and_is_told(case):
    f, p, x = between(STAYING[case])
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (p, x))
        graph = ifjax.trace(f, p, x)
        (number,) = graph.numbers
        assert (number.groups, number.follows, number.unclear) == (("a",), False, True)
        assert "stays" in str(graph)
        with pytest.warns(UserWarning, match="stay what they were") as found:
            spec = graph.spec(keep=4)
        assert len(found) == 1
        small = ifjax.take(p, graph, {"a": kept(8)})
        wide = dict(p)
        got = ifjax.shrink(f, spec)(small, x)
        if graph.groups[0].exact:  # cutting is zeroing with the old number, so it had to stay
            wide["b"] = wide["b"].at[::2].set(0)
            np.testing.assert_allclose(got, f(wide, x), rtol=1e-12)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_a_number_inside_of_a_loop_follows():
    def middle(h):
        def step(c, row):
            return c + deviation(row[None])[0], None

        return (
            jax.lax.map(lambda row: deviation(row[None])[0], h)
            + jax.lax.scan(step, jnp.zeros_like(h[0]), h)[0]
        )

    f, p, x = between(middle)
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (p, x))
        graph = ifjax.trace(f, p, x)
        small = ifjax.take(p, graph, {"a": kept(8)})
        got = ifjax.shrink(f, graph.spec(keep=4))(small, x)
        np.testing.assert_allclose(got, f(small, x), rtol=1e-12)
