"""Batch norms that take the name of a vmapped axis, as the frameworks write them."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ifjax
from ifjax.frameworks import carry_equinox, cut_equinox, equinox_function

X = jax.random.normal(jax.random.key(1), (5, 6))


class Equinox(eqx.Module):
    a: eqx.nn.Linear
    n: eqx.nn.BatchNorm
    b: eqx.nn.Linear

    def __init__(self, mode):
        k = jax.random.split(jax.random.key(0), 2)
        self.a, self.b = eqx.nn.Linear(6, 16, key=k[0]), eqx.nn.Linear(16, 3, key=k[1])
        self.n = eqx.nn.BatchNorm(16, axis_name="batch", mode=mode)

    def __call__(self, x, state):
        h, state = self.n(self.a(x), state)
        return self.b(jax.nn.relu(h)), state


def equinox_net(mode, train):
    """The function of a tree of parameters and state, and the tree."""
    net, state = eqx.nn.make_with_state(Equinox)(mode)
    m, m_rest = eqx.partition(net, eqx.is_inexact_array)
    s, s_rest = eqx.partition(state, eqx.is_array)

    def f(p, x):
        one = eqx.combine(p["m"], m_rest)
        one = one if train else eqx.nn.inference_mode(one)
        run = jax.vmap(one, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        out, new = run(x, eqx.combine(p["s"], s_rest))
        return out, eqx.filter(new, eqx.is_array)

    return f, {"m": m, "s": s}


@pytest.mark.parametrize("mode", ["batch", "ema"])
@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_equinox_batch_norm_in_train_mode(mode):
    f, p = equinox_net(mode, train=True)
    graph = ifjax.trace(f, p, X)
    assert [(g.size, g.kind) for g in graph.groups] == [(16, "neuron")]
    both = graph & ifjax.trace(equinox_net(mode, train=False)[0], p, X)
    assert [(g.size, len(g.members)) for g in both.groups] == [(16, 7)]
    spec = both.spec(0.5, method="prune")
    small = ifjax.fuse_params(p, spec)
    apply = ifjax.shrink(f, spec)

    def loss(m, s):
        out, new = apply({"m": m, "s": s}, X)
        return jnp.mean(out**2), new

    optimizer = optax.adam(3e-2)
    state, m, s = optimizer.init(small["m"]), small["m"], small["s"]
    values = []
    for _ in range(20):
        (value, s), gradient = jax.value_and_grad(loss, has_aux=True)(m, s)
        updates, state = optimizer.update(gradient, state)
        m = optax.apply_updates(m, updates)
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]
    assert [*map(jnp.shape, jax.tree.leaves(s))] == [*map(jnp.shape, jax.tree.leaves(small["s"]))]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Dense(16)(x)
        h = nn.BatchNorm(use_running_average=not train, axis_name="batch")(h)
        return nn.Dense(3)(nn.relu(h))


def test_flax_batch_norm_in_train_mode():
    net = Linen()
    variables = net.init(jax.random.key(0), X)

    def train(v, x):
        run = lambda x: net.apply(v, x, train=True, mutable=["batch_stats"])  # noqa: E731
        return jax.vmap(run, out_axes=(0, None), axis_name="batch")(x)

    evaluate = lambda v, x: jax.vmap(lambda x: net.apply(v, x))(x)  # noqa: E731
    graph = ifjax.trace(train, variables, X) & ifjax.trace(evaluate, variables, X)
    assert [(g.size, len(g.members)) for g in graph.groups] == [(16, 7)]
    spec = graph.spec(0.5, method="prune")
    small = ifjax.fuse_params(variables, spec)
    out, new = ifjax.shrink(train, spec)(small, X)
    assert new["batch_stats"]["BatchNorm_0"]["mean"].shape == (8,)

    class Small(Linen):
        @nn.compact
        def __call__(self, x, train=False):
            h = nn.BatchNorm(use_running_average=not train, axis_name="batch")(nn.Dense(8)(x))
            return nn.Dense(3)(nn.relu(h))

    run = lambda x: Small().apply(small, x, train=True, mutable=["batch_stats"])  # noqa: E731
    want, state = jax.vmap(run, out_axes=(0, None), axis_name="batch")(X)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
    got = [*jax.tree.leaves(new["batch_stats"])]
    for a, b in zip(got, jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_a_cut_equinox_module_is_trained_by_the_usual_call():
    """Its optimizer goes on by the same maps."""
    pair = eqx.nn.make_with_state(Equinox)("batch")

    def call(pair, x):
        run = jax.vmap(pair[0], axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return run(x, pair[1])

    apply_fn, params = equinox_function(pair, call)
    spec = ifjax.trace(apply_fn, params, X).spec(0.5, method="prune")
    maps = ifjax.transport_maps(params, spec)
    net, stats = cut_equinox(pair, spec, X, maps=maps, call=call)
    optimizer = optax.adam(3e-2)
    state = optimizer.init(eqx.filter(pair, eqx.is_inexact_array))
    state = carry_equinox(state, (net, stats), spec, maps)

    def loss(net, stats):
        out, stats = call((net, stats), X)
        return jnp.mean(out**2), stats

    gradient, stats = eqx.filter_grad(loss, has_aux=True)(net, stats)
    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(stats, eqx.is_inexact_array))
    updates, _ = optimizer.update((gradient, zeros), state)
    moved = eqx.apply_updates(net, updates[0])
    assert moved.a.weight.shape == (8, 6)
    assert float(loss(moved, stats)[0]) < float(loss(net, stats)[0])
