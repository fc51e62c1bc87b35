"""Training states whole, each part right: of flax, haiku, equinox and nnx."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from optax import contrib

import ifjax
from ifjax.frameworks import cut_nnx, equinox_function, nnx_function
from tests.fusion.doubled_network import (
    N,
    Recorded,
    X,
    assert_same_function,
    doubled,
    find,
    fitted,
    gradient,
    own,
    shapes,
    trained,
)

pytestmark = pytest.mark.promotes(ranks="its own functions do", dtypes="its own functions do")


class Net(nn.Module):
    """A convolution, a batch norm and a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.mean((1, 2)))


class State(train_state.TrainState):
    """With statistics and averages."""

    batch_stats: Any
    ema_params: Any


IMAGES = jnp.asarray(np.random.default_rng(2).standard_normal((2, 6, 6, 2)), jnp.float32)


@pytest.mark.parametrize("traced", ["variables", "jitted"])
def test_a_train_state_each_part_right(traced):
    net = Net()
    variables = net.init(jax.random.key(0), IMAGES)
    tx = optax.chain(optax.clip(1.0), contrib.schedule_free_adamw(0.1))
    ema = jax.tree.map(lambda x: 0.5 * x, variables["params"])
    state = State.create(apply_fn=net.apply, tx=tx, ema_params=ema, **variables)
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    spec = ifjax.trace(net.apply, variables, IMAGES).spec(0.5, solver="nearest")
    full = {"params": state.params, "batch_stats": state.batch_stats}
    maps = ifjax.transport_maps(full, spec)
    carry = ifjax.fuse_tree if traced == "variables" else jax.jit(ifjax.fuse_tree, static_argnums=1)
    small = carry(state, spec, maps)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    want = ifjax.apply_maps(full, spec, maps)
    jax.tree.map(close, small.params, want["params"])
    jax.tree.map(close, small.batch_stats, want["batch_stats"])
    of_ema = ifjax.apply_maps({**full, "params": ema}, spec, maps)["params"]
    jax.tree.map(close, small.ema_params, of_ema)
    of_z = ifjax.apply_maps({**full, "params": state.opt_state[1].z}, spec, maps)["params"]
    jax.tree.map(close, small.opt_state[1].z, of_z)
    assert int(small.step) == 1
    assert small.tx is state.tx
    got = small.apply_fn({"params": small.params, "batch_stats": small.batch_stats}, IMAGES)
    close(got, ifjax.shrink(net.apply, spec)(want, IMAGES))
    small = small.apply_gradients(grads=jax.tree.map(jnp.ones_like, small.params))
    again = carry(state, spec, maps)
    assert again.apply_fn is small.apply_fn  # nothing is compiled twice
    in_place = ifjax.fuse_tree(state, spec, maps, keep_shape=True)
    assert in_place.apply_fn == state.apply_fn
    assert in_place.params["Conv_0"]["kernel"].shape == (3, 3, 2, 8)


class Mlp(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.tanh(nn.Dense(N)(x)))


@pytest.mark.parametrize("form", ["variables", "params", "within"])
def test_the_function_of_a_state_takes_what_it_took(form):
    """The spec may be of module.apply, or of a function of the parameters alone."""
    net = Mlp()
    variables = net.init(jax.random.key(0), X)
    apply_fn, f, p = {
        "variables": (net.apply, net.apply, variables),
        "params": (net.apply, lambda p, x: net.apply({"params": p}, x), variables["params"]),
        "within": (lambda p, x: net.apply({"params": p}, x), net.apply, variables),
    }[form]
    state = train_state.TrainState.create(
        apply_fn=apply_fn, params=variables["params"], tx=optax.adam(0.1)
    )
    spec = ifjax.trace(f, p, X).spec(0.5, method="prune")
    maps = ifjax.transport_maps(p, spec)
    small = ifjax.fuse_tree(state, spec, maps)
    want = ifjax.shrink(f, spec)(ifjax.apply_maps(p, spec, maps), X)
    given = small.params if form == "within" else {"params": small.params}
    np.testing.assert_allclose(small.apply_fn(given, X), want, atol=1e-6)


def test_a_train_state_without_a_function_and_with_an_optimizer_of_ones_own():
    spec, maps = fitted()
    state = train_state.TrainState.create(apply_fn=None, params=doubled(), tx=own())
    small = ifjax.fuse_tree(state, spec, maps)
    assert small.apply_fn is None
    assert_same_function(small.params, doubled())
    assert_same_function(small.opt_state.q, doubled())


class Together(NamedTuple):
    """As in examples of haiku."""

    params: Any
    avg_params: Any
    opt_state: Any


@pytest.mark.parametrize("form", ["tuple", "list", "dict", "named", "nested", "beside"])
def test_a_tree_of_parameters_and_optimizer(form):
    spec, maps = fitted()
    p, s = trained(optax.adam(0.1), doubled(), 1)
    tree, get = {
        "tuple": ((p, s), lambda t: t),
        "list": ([p, s], lambda t: t),
        "dict": ({"params": p, "opt_state": s, "step": 3}, lambda t: (t["params"], t["opt_state"])),
        "named": (Together(p, p, s), lambda t: (t.avg_params, t.opt_state)),
        "nested": (
            [{"model": p, "optimizer": {"state": s}}],
            lambda t: (t[0]["model"], t[0]["optimizer"]["state"]),
        ),
        "beside": ({**p, "opt_state": s}, lambda t: ({k: t[k] for k in p}, t["opt_state"])),
    }[form]
    small, state = get(ifjax.fuse_tree(tree, spec, maps))
    assert_same_function(small, p)
    want = ifjax.apply_maps(s[0].mu, spec, maps, kind="select")
    jax.tree.map(np.testing.assert_array_equal, state[0].mu, want)


def test_two_trees_beside_an_optimizer_that_nothing_names_are_refused():
    spec, maps = fitted()
    p, s = trained(optax.adam(0.1), doubled(), 1)
    with pytest.raises(ValueError, match=r"0: shaped like the parameters, and nothing says"):
        ifjax.fuse_tree((p, gradient(p), s), spec, maps)
    small, grads, _ = ifjax.fuse_tree((p, gradient(p), s), spec, maps, {"1": "gradients"})
    assert_same_function(small, p)
    assert grads["a"].shape == (6, 4)


def test_equinox_model_and_optimizer():
    model = eqx.nn.MLP(6, 3, N, 1, key=jax.random.key(0))
    f, arrays = equinox_function(model, lambda m, x: jax.vmap(m)(x))
    spec = ifjax.trace(f, arrays, X).spec(0.5, solver="nearest")
    maps = ifjax.transport_maps(arrays, spec)
    state = contrib.schedule_free_sgd(0.1).init(eqx.filter(model, eqx.is_inexact_array))
    small, carried = ifjax.fuse_tree((arrays, state), spec, maps)
    want = ifjax.apply_maps(arrays, spec, maps)
    for got in (small, carried.z):
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(x, y)


class Module(nnx.Module):
    """Two layers."""

    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(6, N, rngs=rngs), nnx.Linear(N, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.tanh(self.a(x)))


NNX = {
    "muon": contrib.muon(0.1),
    "schedule free": contrib.schedule_free_sgd(0.1),
    "prodigy": contrib.prodigy(0.1),
    "history": optax.chain(
        optax.adam(0.1),
        optax.GradientTransformation(
            lambda p: Recorded(jnp.zeros((), int), jnp.arange(float(N)), ()),
            lambda u, s, p=None: (u, s),
        ),
    ),
    "own": own(),
}


@pytest.mark.parametrize("name", NNX)
def test_cut_nnx_takes_the_optimizer_along(name):
    module = Module(nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, NNX[name], wrt=nnx.Param)
    f, state = nnx_function(module)
    spec = ifjax.trace(f, state, X).spec(0.5, solver="nearest")
    maps = ifjax.transport_maps(state, spec)
    want = ifjax.apply_maps(state, spec, maps)["a"]["kernel"][...]
    cut_nnx(module, spec, X, maps=maps, optimizer=optimizer)
    fresh = nnx.Optimizer(module, NNX[name], wrt=nnx.Param)
    assert shapes(nnx.state(optimizer)) == shapes(nnx.state(fresh))
    found = find(optimizer.opt_state, {"schedule free": "z", "prodigy": "params0"}.get(name, "q"))
    if found is not None:
        np.testing.assert_allclose(found["a"]["kernel"][...], want, atol=1e-6)
    optimizer.update(module, nnx.grad(lambda m: (m(X) ** 2).mean())(module))
