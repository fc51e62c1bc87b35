"""Layers that are alike share compiled pieces; pieces that differ do not."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from ifjax.reconstruction import segments
from ifjax.reconstruction.segments import Job, compiled


def residual(params, x):
    h = x @ params["in"]
    for layer in params["layers"]:
        h = h + jnp.tanh(h @ layer["up"]) @ layer["down"]
    return h @ params["out"]


def network(layers):
    draw = np.random.default_rng(layers)
    make = lambda *shape: jnp.asarray(draw.normal(size=shape) / 4, jnp.float32)  # noqa: E731
    inner = [{"up": make(12, 20), "down": make(20, 12)} for _ in range(layers)]
    return {"in": make(5, 12), "layers": inner, "out": make(12, 3)}


def test_more_layers_take_no_more_programs():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 5)), jnp.float32)

    def programs(layers):
        segments._call.clear_cache()  # type: ignore[attr-defined]
        params = network(layers)
        graph = ifjax.trace(residual, params, x)
        cut = {g.name: 0.5 for g in graph.groups if g.name.endswith("up")}
        ifjax.compress(residual, params, graph.spec(cut), [x])
        return segments._call._cache_size()  # type: ignore[attr-defined]

    assert programs(8) == programs(4) > 1


def piece(function, *values):
    job = Job(lambda x: [function(*x)], tuple((i, True) for i in range(len(values))), ((9, True),))
    call = compiled([job], lambda key: None, lambda key: values[key[0]], [(9, True)])
    return call(lambda key: values[key[0]])[9, True]


def scan(scale):
    return lambda x: lax.scan(lambda c, y: (scale * c + y, c), x[0], x)[0]


def table(values):
    return lambda x: x + jnp.asarray(values)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: 2.0 * x, lambda x: 3.0 * x),
        (lambda x: x[:2], lambda x: x[1:3]),
        (lambda x: x - x[::-1], lambda x: x[::-1] - x),
        (scan(0.5), scan(0.25)),
        (table([1.0, 2, 3, 4]), table([4.0, 3, 2, 1])),
        (lambda x: jnp.sin(x), lambda x: jnp.cos(x)),
        (lambda x: x.astype(jnp.int32), lambda x: x.astype(jnp.int8)),
    ],
)
def test_pieces_that_differ_keep_apart(one, other):
    x = jnp.arange(4.0)
    for function in (one, other, one):
        np.testing.assert_array_equal(piece(function, x), function(x))


def test_what_is_alike_is_compiled_once():
    segments._call.clear_cache()  # type: ignore[attr-defined]
    for values in ([1.0, 2], [3.0, 4]):  # closed-over arrays are arguments
        np.testing.assert_array_equal(piece(table(values), jnp.ones(2)), 1 + np.array(values))
    assert segments._call._cache_size() == 1  # type: ignore[attr-defined]
    piece(table([1.0, 2]), jnp.ones(2, jnp.bfloat16))
    assert segments._call._cache_size() == 2  # type: ignore[attr-defined]
