"""Calls are walked into and evaluated at the small widths; what is not understood is left alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

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


@pytest.mark.promotes(dtypes="its functions mix dtypes")
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


@pytest.mark.parametrize("axis", [0, 1])
def test_log_softmax_is_exact_across_the_neurons_only(axis):
    f, p, x = between(lambda h: jax.nn.log_softmax(h, axis=axis), 6)
    (group,) = hold(f, p, x, groups={"a": 6}).groups
    assert group.exact == (axis == 0)


@jax.custom_vjp
def double(h):
    return 2 * h


double.defvjp(lambda h: (2 * h, None), lambda _, g: (3.0 * g,))


@jax.custom_vjp
def scaled_product(n, h, w):
    return n * jnp.sin(h) @ w


def scaled_product_backward(kept, g):
    n, h, w = kept
    return None, 5 * n * (g @ w.T) * jnp.cos(h), 7 * h.T @ g


scaled_product.defvjp(lambda n, h, w: (scaled_product(n, h, w), (n, h, w)), scaled_product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def floored(h, least):
    return jnp.maximum(h, least)


floored.defvjp(
    lambda h, least: (jnp.maximum(h, least), h > least),
    lambda least, above, g: (jnp.where(above, g, least * g),),
)


@jax.custom_vjp
def several(h):
    return jnp.sin(h), jnp.tanh(h).sum(), jnp.int32(3)


several.defvjp(
    lambda h: (several(h), (h, jnp.full(3, 2.0))),
    lambda kept, g: (2 * g[0] * kept[0] + g[1] * kept[1][0],),
)


@jax.custom_vjp
def normalised(h):
    return h / jnp.sqrt((h**2).sum(-1, keepdims=True))


normalised.defvjp(
    lambda h: (normalised(h), (normalised(h), (h**2).sum(-1, keepdims=True))),
    lambda kept, g: ((g - kept[0] * (g * kept[0]).sum(-1, keepdims=True)) / jnp.sqrt(kept[1]) * 2,),
)

CUSTOM = {
    "a rule that keeps nothing": double,
    "an integer operand": lambda h: scaled_product(3, h, jnp.sin(h[:4].T)) @ h,
    "a static operand": lambda h: floored(h, 0.1),
    "several results": lambda h: several(h)[0] * several(h)[1] * several(h)[2],
    "a reduction": normalised,
    "in a scan": lambda h: lax.scan(lambda c, _: (double(jnp.sin(c)), None), h, None, length=3)[0],
    "in remat": jax.checkpoint(lambda h: double(jnp.sin(double(h)))),
    "in jit": jax.jit(double),
    "in vmap": jax.vmap(double),
}


@pytest.mark.parametrize("call", CUSTOM)
@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_both_halves_of_a_custom_vjp_are_rewritten(call):
    f, p, x = between(CUSTOM[call], 6)
    f = jax.jit(f)
    graph = hold(f, p, x, groups={"a": 6})
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (p, x))
        selection = {"a": kept(6)}

        def gradient(apply):
            return jax.jit(jax.grad(lambda p: (apply(p, x) ** 2).sum()))

        apply = gradient(ifjax.shrink(f, graph.spec(keep=3)))
        small = apply(ifjax.take(p, graph, selection))
        full = gradient(f)(zeroed(p, graph, selection))
        assert distance(small, ifjax.take(full, graph, selection)) < 1e-9
        assert distance(small, jax.tree.map(jnp.zeros_like, small)) > 1e-4
        jaxpr = jax.make_jaxpr(apply)(ifjax.take(p, graph, selection))
        assert ",6]" not in str(jaxpr)
        assert "[6," not in str(jaxpr)


@jax.custom_vjp
def crooked(h):
    return 2 * h


crooked.defvjp(lambda h: (2 * h, None), lambda _, g: (g * jnp.arange(6.0),))


@jax.custom_vjp
def crooked_forward(h):
    return 2 * h


crooked_forward.defvjp(lambda h: (2 * h, h * jnp.arange(6.0)), lambda kept, g: (g + kept,))


@pytest.mark.parametrize("rule", [crooked, crooked_forward])
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_a_derivative_rule_that_depends_on_the_index_leaves_the_function_alone(rule):
    f, p, x = between(rule, 6)
    graph = hold(jax.jit(f), p, x, groups={"a": 6})
    small = jax.tree.map(jnp.float32, ifjax.take(p, graph, {"a": kept(6)}))
    apply = ifjax.shrink(f, graph.spec(0.5))
    before = apply(small, jnp.float32(x))
    with pytest.raises(ValueError, match=r"no gradient at the widths.*laws.*cuts group a"):
        jax.grad(lambda p: apply(p, jnp.float32(x)).sum())(small)
    np.testing.assert_array_equal(apply(small, jnp.float32(x)), before)


def solve(h):
    return lax.custom_linear_solve(lambda v: 2 * v, h, lambda _, b: b / 2, symmetric=True)


OPAQUE = {
    "pure_callback": lambda h: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(h.shape, h.dtype), h),
    "custom_linear_solve": solve,
}


@pytest.mark.parametrize("primitive", OPAQUE)
def test_what_has_no_rule_is_pinned_and_everything_around_it_still_shrinks(primitive):
    middle = OPAQUE[primitive]

    def f(p, x):
        h = middle(jnp.tanh(jax.nn.silu(x @ p["a"]) @ p["m"]))
        return jnp.sin(h @ p["n"]) @ p["b"]

    p = arrays(a=(3, 8), m=(8, 6), n=(6, 4), b=(4, 2))
    graph = hold(f, p, array(4, 3), groups={"a": 8, "n": 4})
    why = reasons(graph)["m", 1]
    assert why.startswith(f"{primitive}: no rule")
    assert "test_calls.py" in why
    assert reasons(graph)["n", 0]
    if primitive == "pure_callback":
        return  # it has no derivative
    with jax.enable_x64(True):
        p, x, selection = jax.tree.map(jnp.asarray, p), jnp.asarray(array(4, 3)), {"a": kept(8)}
        spec = graph.spec(keep={"a": 4})

        def loss(apply):
            return lambda p: (apply(p, x) ** 2).sum()

        got = jax.grad(loss(ifjax.shrink(f, spec)))(ifjax.take(p, graph, selection))
        want = jax.grad(loss(f))(zeroed(p, graph, selection))
        assert distance(got, ifjax.take(want, graph, selection)) < 1e-9


def test_named_values_are_saved_as_the_policy_says():
    policy = jax.checkpoint_policies.save_only_these_names("kept")
    block = jax.checkpoint(lambda h: jnp.sin(checkpoint_name(jnp.sin(h), "kept")), policy=policy)
    f, p, x = between(block, 6)
    graph = hold(f, p, x, groups={"a": 6})
    small = jax.tree.map(jnp.float32, ifjax.take(p, graph, {"a": kept(6)}))
    apply = ifjax.shrink(f, graph.spec(0.5))
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda p: apply(p, jnp.float32(x)).sum()))(small))
    assert "name=kept" in jaxpr
    assert jaxpr.count("sin ") == str(
        jax.make_jaxpr(jax.grad(lambda p: f(p, jnp.float32(x)).sum()))(small)
    ).count("sin ")


MESH = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))


def sharded(f, spec):
    return jax.shard_map(f, mesh=MESH, in_specs=spec, out_specs=spec)


SHARDED = {
    "batch": sharded(lambda h: jnp.sin(h) * lax.psum(h.sum(0), "d"), P("d")),
    "neurons": sharded(jnp.sin, P(None, "d")),
    "collectives": sharded(lambda h: lax.pmax(h, "d") - lax.ppermute(h, "d", [(0, 0)]) / 2, P("d")),
    "in jit": jax.jit(sharded(lambda h: lax.scan(lambda c, x: (c, x), 0.0, h)[1], P("d"))),
}


@pytest.mark.parametrize("form", SHARDED)
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_sharded_functions_are_seen_through(form):
    f, p, x = between(SHARDED[form], 6)
    hold(jax.jit(f), p, x, groups={"a": 6})


@pytest.mark.parametrize(
    ("spec", "body", "groups"),
    [
        (P("d"), lambda h: jnp.sin(h) * lax.psum(h.sum(0), "d"), {"a": 6}),
        (P(None, "d"), jnp.sin, {"a (factor 2 of 2x3)": 3}),
        (
            P(None, "d"),
            lambda h: lax.ppermute(h, "d", [(0, 1), (1, 0)]),
            {"a (factor 2 of 2x3)": 3},
        ),
        (P(None, "d"), lambda h: lax.all_gather(h, "d", axis=1, tiled=True)[:, :3], {}),
    ],
    ids=["batch", "neurons", "permuted", "gathered"],
)
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_shards_are_cut_alike(spec, body, groups):
    if jax.device_count() < 2:
        pytest.skip("needs 2 devices; leave XLA_FLAGS to tests/conftest.py")
    mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
    middle = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    f, p, x = between(middle, 6)
    f = jax.jit(f)
    graph = hold(f, p, x, groups=groups)
    if groups:
        spec = graph.spec(0.5, include=list(groups))
        small = jax.tree.map(lambda s: jnp.ones(s.shape), spec.small_struct(p))
        apply = ifjax.shrink(f, spec)
        jax.jit(jax.grad(lambda p: apply(p, jnp.float32(x)).sum()))(small)


def test_printing_from_within_prints(capfd):
    def watch(h):
        jax.debug.print("{}", h.sum())
        return h

    f, p, x = between(watch, 6)
    hold(f, p, x, groups={"a": 6})
    jax.effects_barrier()
    assert capfd.readouterr().out
