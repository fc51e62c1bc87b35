"""Dead equations, callbacks on the side and named axes say nothing about a function's result."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax.jaxprs import compat
from ifjax.jaxprs.normal import normalised
from tests.graph.laws import array, arrays, between, distance, hold, kept, reasons


def names(f, *args, **options):
    """The primitives of a normalised function, those of its calls in their place."""

    def inside(jaxpr):
        for equation in compat.unpack(jaxpr)[0].eqns:
            inner = [v for v in equation.params.values() if hasattr(v, "eqns")]
            if not inner:
                yield equation.primitive.name
            for j in inner:
                yield from inside(j)

    return list(inside(normalised(jax.make_jaxpr(f)(*args), **options)))


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_dead_equations_go_wherever_they_stand():
    def inner(x):
        return jnp.sin(x), jnp.cos(x)

    def f(x):
        def step(carry, row):
            return carry + row, jnp.exp(row)

        jnp.tanh(x)
        total, _ = lax.scan(step, jnp.zeros(3), x)
        return jax.jit(inner)(x)[0] + total

    assert set(names(f, jnp.ones((4, 3)))) & {"tanh", "cos", "exp"} == set()
    assert {"sin", "add"} <= {*names(f, jnp.ones((4, 3)))}


SIDE = {
    "print": lambda h: jax.debug.print("{}", h),
    "print in order": lambda h: jax.debug.print("{}", h, ordered=True),
    "print of a sum": lambda h: jax.debug.print("{x}", x=h.sum()),
    "print of one neuron": lambda h: jax.debug.print("{}", h[:, 0]),
    "print of a sorted layer": lambda h: jax.debug.print("{}", jnp.sort(h, -1)),
    "sharding": lambda h: jax.debug.inspect_array_sharding(h, callback=lambda _: None),
    "callback": lambda h: jax.debug.callback(lambda h: None, h),
    "io_callback": lambda h: io_callback(lambda h: None, None, h),
    "io_callback, ordered": lambda h: io_callback(lambda h: None, None, h, ordered=True),
    "io_callback whose result is dropped": lambda h: io_callback(
        lambda h: np.float32(0), jax.ShapeDtypeStruct((), np.float32), h
    ),
    "pure_callback whose result is dropped": lambda h: jax.pure_callback(
        lambda h: h, jax.ShapeDtypeStruct(h.shape, h.dtype), h
    ),
    "print in a jitted function": jax.jit(lambda h: jax.debug.print("{}", h)),
    "print in a branch": lambda h: lax.cond(
        h.sum() > 0, lambda: jax.debug.print("{}", h), lambda: None
    ),
    "print of every row": lambda h: jax.vmap(lambda r: jax.debug.print("{}", r))(h),
    "print of every neuron": lambda h: jax.vmap(lambda r: jax.debug.print("{}", r))(h.T),
    "print in a loop": lambda h: lax.fori_loop(
        0, 2, lambda i, s: (jax.debug.print("{}", h), s)[1], 0
    ),
}


@pytest.mark.parametrize("look", SIDE)
def test_a_callback_on_the_side_leaves_the_layer_a_group(look, capfd):
    """It is cut as without the callback."""
    plain, p, x = between(jnp.tanh)

    def watched(h):
        SIDE[look](h)
        return jnp.tanh(h)

    f, _, _ = between(watched)
    graph = hold(f, p, x, groups={"a": 8})
    small = ifjax.take(p, graph, {"a": kept(8)})
    got = ifjax.shrink(f, graph.spec(keep=4))(small, x)
    jax.effects_barrier()
    capfd.readouterr()
    np.testing.assert_allclose(got, plain(small, x), rtol=1e-5)


def test_a_shrunk_function_still_prints(capfd):
    def middle(h):
        jax.debug.print("width {} sum {}", h.shape[1], h.sum() * 0)
        jax.debug.print("layer {}", h * 0)
        return jnp.tanh(h)

    f, p, x = between(middle)
    graph = ifjax.trace(f, p, x)
    ifjax.shrink(f, graph.spec(keep=2))(ifjax.take(p, graph, {"a": [1, 4]}), x)
    jax.effects_barrier()
    printed = capfd.readouterr().out
    assert "sum 0.0" in printed.replace("-0.0", "0.0")
    assert printed.count("0.") == 1 + 2 * len(x)  # a row of two neurons for every example


def test_a_callback_whose_result_is_used_pins_what_it_looks_at():
    def middle(h):
        scale = jax.pure_callback(lambda h: h.mean(), jax.ShapeDtypeStruct((), h.dtype), h)
        return h * scale

    f, p, x = between(middle)
    assert "pure_callback" in reasons(ifjax.trace(f, p, x))["a", 1]

    def ordered(h):
        return h * io_callback(lambda h: h.mean(), jax.ShapeDtypeStruct((), h.dtype), h)

    f, p, x = between(ordered)
    assert "callback whose results are used" in reasons(ifjax.trace(f, p, x))["a", 1]


def batch_norm(h, p):
    """As equinox, haiku and flax write it with the name of an axis."""
    mean = lax.pmean(h, "batch")
    variance = lax.pmean(jnp.square(h - mean), "batch")
    return (h - mean) * lax.rsqrt(variance + 1e-5) * p["s"]


def moments(h, p):
    mean, square = jnp.split(lax.pmean(jnp.concatenate([h, h * h]), "batch"), 2)
    return (h - mean) * lax.rsqrt(square - mean**2 + 1e-5) * p["s"]


NAMED = {
    "pmean": batch_norm,
    "moments, joined": moments,
    "psum of several": lambda h, p: sum(lax.psum((h, jnp.sin(h)), "batch")) * h * p["s"],
    "psum over a count": lambda h, p: h - lax.psum(h, "batch") / lax.psum(1, "batch") * p["s"],
    "pmax and pmin": lambda h, p: (h - lax.pmin(h, "batch")) * lax.pmax(h, "batch") * p["s"],
    "in a jitted function": lambda h, p: jax.jit(batch_norm)(h, p),
    "in a checkpoint": lambda h, p: jax.checkpoint(batch_norm)(h, p),
}


@pytest.mark.parametrize("norm", NAMED)
def test_statistics_over_a_named_axis_are_over_the_batch(norm):
    def f(p, x):
        def one(x):
            return jax.nn.relu(NAMED[norm](x @ p["a"], p)) @ p["b"]

        return jax.vmap(one, axis_name="batch")(x)

    p = arrays(a=(3, 8), s=(8,), b=(8, 2))
    graph = hold(f, p, array(5, 3), groups={"a": 8})
    assert [g.kind for g in graph.groups] == ["neuron"]
    assert all(g.exact for g in graph.groups)


def test_a_mean_over_named_channels_counts_them():
    """A map over the neurons: the count of its mean follows the width."""

    def f(p, x):
        h = x @ p["a"]
        h = jax.vmap(lambda h: h - lax.pmean(h, "c"), 1, 1, axis_name="c")(h)
        return h @ p["b"]

    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (arrays(a=(3, 8), b=(8, 2)), array(5, 3)))
        graph = ifjax.trace(f, p, x)
        assert [(g.size, g.exact) for g in graph.groups] == [(8, False)]
        small = ifjax.take(p, graph, {"a": kept(8)})
        assert distance(ifjax.shrink(f, graph.spec(keep=4))(small, x), f(small, x)) < 1e-12


def test_an_axis_of_the_array_and_one_of_a_mesh():
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))

    def f(p, x):
        def one(x):
            return jnp.tanh(x @ p["a"] - lax.pmean(x @ p["a"], ("batch", "d"))) @ p["b"]

        mapped = jax.vmap(one, axis_name="batch")
        specs = {"in_specs": P("d"), "out_specs": P("d"), "check_vma": False}
        return jax.shard_map(mapped, mesh=mesh, **specs)(x)

    hold(f, arrays(a=(3, 8), b=(8, 2)), array(4, 3), groups={"a": 8})


def test_a_mask_made_for_its_shape_leaves_the_position_axis_alone():
    def f(p, x):
        h = x + p["positions"]
        length = jnp.ones_like(h[..., 0]).shape[1]
        mask = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(mask, h @ jnp.swapaxes(h, 1, 2), -1e9)
        return (jax.nn.softmax(scores) @ h @ p["b"]).sum(1)

    graph = ifjax.trace(f, arrays(positions=(5, 4), b=(4, 2)), array(2, 5, 4))
    assert "slice" not in reasons(graph)["positions", 1]
