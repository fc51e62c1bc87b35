"""Calls are walked into and evaluated at the small widths; what is not understood is left alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, between, distance, hold, kept, reasons, zeroed


@jax.custom_jvp
def softsign(h):
    return h / (1 + abs(h))


@softsign.defjvp
def softsign_jvp(primals, tangents):
    (h,), (t,) = primals, tangents
    return softsign(h), 7.0 * t  # not the derivative, to see which one is used


CALLS = {
    "jit": jax.jit(jnp.sin),
    "nested jit": jax.jit(lambda h: jax.jit(jnp.sin)(h) + jax.jit(jnp.cos)(h)),
    "one jitted function, two axes": lambda h: jax.jit(jnp.tanh)(jax.jit(jnp.tanh)(h).T).T,
    "remat": jax.checkpoint(lambda h: jnp.sin(jnp.sin(h))),
    "remat with a policy": jax.checkpoint(
        lambda h: jnp.sin(jnp.exp(h)), policy=jax.checkpoint_policies.everything_saveable
    ),
    "custom_jvp": softsign,
    "relu": lambda h: jax.nn.relu(h + 0.3) + jax.nn.relu6(h) + jax.nn.leaky_relu(h),
    "silu and gelu": lambda h: jax.nn.silu(h) + jax.nn.gelu(h) + jax.nn.gelu(h, approximate=False),
    "vmap": jax.vmap(jax.jit(jnp.sin)),
    "jvp": lambda h: jax.jvp(jax.nn.silu, (h,), (h,))[1],
    "vjp": lambda h: jax.vjp(jax.nn.softplus, h)[1](h)[0],
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_pass_the_group_and_keep_their_gradient(call):
    f, p, x = between(CALLS[call], 6)
    graph = hold(f, p, x, groups={"a": 6})
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (p, x))
        selection = {"a": kept(6)}

        def loss(apply):
            return lambda p: (apply(p, x) ** 2).sum()

        small = jax.grad(loss(ifjax.shrink(f, graph.spec(keep=3))))(ifjax.take(p, graph, selection))
        full = jax.grad(loss(f))(zeroed(p, graph, selection))
        want = ifjax.take(full, graph, selection)
        # the kept rows and columns; a zeroed neuron changes none of them
        assert distance(small, want) < 1e-9
        assert distance(small, jax.tree.map(jnp.zeros_like, small)) > 1e-4


def test_the_derivative_of_relu_at_zero_is_kept():
    f, p, x = between(jax.nn.relu, 6)
    graph = ifjax.trace(f, p, x)
    small = {"a": np.zeros((3, 3), np.float32), "b": np.ones((3, 2), np.float32)}
    gradient = jax.grad(lambda p: ifjax.shrink(f, graph.spec(0.5))(p, x).sum())(small)
    np.testing.assert_array_equal(gradient["a"], 0)  # 0.5 x where max is differentiated instead


def test_custom_derivatives_with_integer_operands_and_constants():
    table = jnp.array([0.5, 2.0, 3.0])

    @jax.custom_jvp
    def pick(h, n):
        return h * table[0] + n

    @pick.defjvp
    def pick_jvp(primals, tangents):
        (h, n), (t, _) = primals, tangents
        return pick(h, n), t * table[1]

    f, p, x = between(lambda h: pick(h, jnp.arange(4)[:, None] * jnp.ones((1, 6), int)), 6)
    graph = hold(f, p, x, groups={"a": 6})
    small = ifjax.take(jax.tree.map(jnp.float32, p), graph, {"a": kept(6)})
    x = jnp.float32(x)
    got = jax.grad(lambda p: ifjax.shrink(f, graph.spec(keep=3))(p, x).sum())(small)
    np.testing.assert_allclose(got["a"], x.T @ (2.0 * jnp.ones((4, 2)) @ small["b"].T), rtol=1e-5)


def test_log_softmax_pins_its_own_axis_only():
    f, p, x = between(lambda h: jax.nn.log_softmax(h, axis=0), 6)
    hold(f, p, x, groups={"a": 6})
    f, p, x = between(jax.nn.log_softmax, 6)
    graph = hold(f, p, x, groups={})
    assert reasons(graph)["a", 1].startswith("reduce_max: reduced over this axis at ")
    assert "laws.py" in reasons(graph)["a", 1]  # of the call, where the callee has no line


@jax.custom_vjp
def double(h):
    return 2 * h


double.defvjp(lambda h: (2 * h, None), lambda _, g: (3.0 * g,))

OPAQUE = {
    "scan": lambda h: lax.scan(lambda c, _: (jnp.sin(c), None), h, None, length=2)[0],
    "while": lambda h: lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, 2 * c[1]), (0, h))[
        1
    ],
    "cond": lambda h: lax.cond(True, jnp.sin, jnp.cos, h),
    "custom_vjp_call": double,
    "pure_callback": lambda h: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(h.shape, h.dtype), h),
    "gather": lambda h: h[:, jnp.array([1, 0, 2, 3, 5, 4])],
    "dynamic_slice": lambda h: lax.dynamic_slice_in_dim(h, 1, 5, 1),
    "scatter": lambda h: h.at[:, jnp.array([0, 2])].set(0.0),
    "fft": lambda h: jnp.fft.fft(h).real,
    "top_k": lambda h: lax.top_k(h, 6)[0],
    "cholesky": lambda h: jnp.linalg.cholesky(h.T @ h + 2 * jnp.eye(6))[:4],
}


@pytest.mark.parametrize("primitive", OPAQUE)
def test_what_has_no_rule_is_pinned_and_everything_around_it_still_shrinks(primitive):
    middle = OPAQUE[primitive]
    out = 5 if primitive == "dynamic_slice" else 6

    def f(p, x):
        h = middle(jnp.tanh(jax.nn.silu(x @ p["a"]) @ p["m"]))
        return jnp.sin(h @ p["n"]) @ p["b"]

    p = arrays(a=(3, 8), m=(8, 6), n=(out, 4), b=(4, 2))
    graph = hold(f, p, array(4, 3), groups={"a": 8, "n": 4})
    why = reasons(graph)["m", 1]
    assert why.startswith(f"{primitive}: ") or primitive == "cholesky"
    assert "test_calls.py" in why
    assert reasons(graph)["n", 0]
    if primitive not in ("scan", "custom_vjp_call", "cond"):
        return  # their gradients are theirs
    with jax.enable_x64(True):
        p, x, selection = jax.tree.map(jnp.asarray, p), jnp.asarray(array(4, 3)), {"a": kept(8)}
        spec = graph.spec(keep={"a": 4})

        def loss(apply):
            return lambda p: (apply(p, x) ** 2).sum()

        got = jax.grad(loss(ifjax.shrink(f, spec)))(ifjax.take(p, graph, selection))
        want = jax.grad(loss(f))(zeroed(p, graph, selection))
        assert distance(got, ifjax.take(want, graph, selection)) < 1e-9


def test_printing_from_within_pins_and_prints(capfd):
    def watch(h):
        jax.debug.print("{}", h.sum())
        return h

    f, p, x = between(watch, 6)
    graph = hold(f, p, x, groups={})
    assert "reduce_sum" in reasons(graph)["a", 1]
    jax.effects_barrier()
    assert capfd.readouterr().out
