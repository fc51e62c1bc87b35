"""Everything public where the caller's code base promotes nothing by itself."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ifjax
from ifjax.activations.divergence import layer_outputs, output_divergence
from ifjax.frameworks import carry_equinox, cut_equinox, cut_nnx, equinox_function, nnx_function
from ifjax.transport.costs import cost_matrix

SETTINGS = {
    "dtypes": functools.partial(jax.numpy_dtype_promotion, "strict"),
    "ranks": functools.partial(jax.numpy_rank_promotion, "raise"),
}


@pytest.fixture(params=SETTINGS, autouse=True)
def strict(request):
    """One of the settings."""
    with SETTINGS[request.param]():
        yield


def network(p, x):
    """Two layers, a batch norm after the first; promotes nothing."""
    x = x @ p["a"]
    eps = jnp.asarray(1e-5, x.dtype)
    x = (x - p["mean"][None]) * jax.lax.rsqrt(p["var"] + eps)[None] * p["scale"][None]
    return jax.nn.relu(x + p["c"][None]) @ p["b"]


def made(dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 6)
    return {
        "a": jax.random.normal(keys[0], (6, 8), dtype),
        "b": jax.random.normal(keys[1], (8, 4), dtype),
        "c": jax.random.normal(keys[2], (8,), dtype),
        "mean": jax.random.normal(keys[3], (8,), dtype),
        "scale": jax.random.normal(keys[4], (8,), dtype),
        "var": jnp.exp(jax.random.normal(keys[5], (8,), dtype)),
    }


X = jax.random.normal(jax.random.key(9), (4, 6))
BATCHES = [((X,), jnp.zeros((4, 4))), ((X[:2],), jnp.zeros((2, 4)))]
INPUTS = [(X,)]


def loss(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


METHODS = [
    {},
    {"solver": "sinkhorn_kernel"},
    {"solver": "exact"},
    {"solver": "nearest", "merge": "preserving"},
    {"method": "prune"},
    {"cost_p": "cosine", "importance": "lamp"},
    {"cost_p": 2.0, "importance": "l2", "source_marginal": "importance"},
    {"targets": "centroids", "importance": "linf", "target_marginal": "importance"},
    {"importance": "bn_scale", "order": "simultaneous", "reduction": "max"},
    {"importance": "random", "scores_on": "raw"},
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_methods_and_what_is_made_of_their_results(method, dtype):
    params, x = made(dtype), X.astype(dtype)
    graph = ifjax.trace(network, params, x)
    spec = graph.spec(0.5, **method)
    small = ifjax.fuse_params(params, spec)
    assert np.isfinite(ifjax.shrink(network, spec)(small, x).astype(jnp.float32)).all()
    assert {v.dtype for v in small.values()} == {jnp.dtype(dtype)}
    maps = ifjax.transport_maps(params, spec)
    ifjax.apply_maps(params, spec, maps, kind="gradients")
    state = optax.adam(0.1).init(params)
    ifjax.fuse_tree((params, state), spec, maps)
    ifjax.kept_mask(params, spec, maps)
    ifjax.compact(ifjax.fuse_params(params, spec, keep_shape=True), spec, maps)


@pytest.mark.parametrize("importance", ["taylor", "fisher", "chip"])
def test_statistics(importance):
    params = made()
    spec = ifjax.trace(network, params, X).spec(0.5, importance=importance)
    stats = ifjax.collect_stats(network, params, spec, BATCHES, loss_fn=loss)
    stats = stats + ifjax.batch_stats(network, params, spec, BATCHES[0], loss_fn=loss)
    assert ifjax.neuron_scores(params, spec, stats)["a"].shape == (8,)
    ifjax.fuse_params(params, spec, stats=stats)


def test_one_function_after_the_other(tmp_path):
    params = made()
    graph = ifjax.trace(network, params, X)
    graph.verify(network, params, X)
    ifjax.take(params, graph, {"a": [3, 1]})
    ifjax.reset_statistics(network, params, INPUTS)
    spec = graph.spec(0.5)
    ifjax.small_shardings(spec, params)
    first, second = (step.step for step in ifjax.iterated(spec, 2))
    maps = ifjax.transport_maps(params, first)
    small = ifjax.apply_maps(params, first, maps)
    ifjax.onward(graph, first)
    then = ifjax.transport_maps(small, second)
    ifjax.compose_maps(then, maps)
    ifjax.save(tmp_path / "small", small, first)
    ifjax.load(tmp_path / "small")
    layer_outputs(network, params, X)
    output_divergence(network, params, ifjax.shrink(network, first), small, INPUTS)


@pytest.mark.parametrize("on", ["weights", "activations"])
def test_model_fusion(on):
    params, graph = [made(), made(seed=1)], ifjax.trace(network, made(), X)
    given = {"apply_fn": network, "batches": INPUTS} if on == "activations" else {}
    ifjax.fuse_models(params, graph, on=on, **given)
    ifjax.align_models(params, graph, on=on, **given)


@pytest.mark.parametrize("solver", ["sinkhorn", "sinkhorn_kernel", "nearest"])
def test_gradients_inside_and_outside_of_jit(solver):
    params = made()
    spec = ifjax.trace(network, params, X).spec(0.5, solver=solver, epsilon=0.1)

    def total(p):
        return jnp.sum(ifjax.shrink(network, spec)(ifjax.fuse_params(p, spec), X))

    for gradient in (jax.grad(total), jax.jit(jax.grad(total))):
        assert np.isfinite(gradient(params)["a"]).all()


class Module(nnx.Module):
    """Two layers that promote nothing."""

    def __init__(self):
        self.a = nnx.Param(jax.random.normal(jax.random.key(0), (6, 8)))
        self.b = nnx.Param(jax.random.normal(jax.random.key(1), (8, 4)))

    def __call__(self, x):
        return jax.nn.relu(x @ self.a[...]) @ self.b[...]


def test_modules():
    module = Module()
    optimizer = nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param)
    f, state = nnx_function(module)
    spec = ifjax.trace(f, state, X).spec(0.5)
    cut_nnx(module, spec, X, optimizer=optimizer)
    assert module(X).shape == (4, 4)
    model = eqx.nn.MLP(6, 4, 8, 1, key=jax.random.key(0))
    f, arrays = equinox_function(model)
    spec = ifjax.trace(f, arrays, X[0]).spec(0.5)
    maps = ifjax.transport_maps(arrays, spec)
    small = cut_equinox(model, spec, X[0], maps=maps)
    carry_equinox(optax.adam(0.1).init(arrays), small, spec, maps)


@pytest.mark.parametrize("p", [1, 2, 3, "cosine"])
def test_gradients_of_costs(p):
    """What is differentiated runs later, under the caller's settings."""
    x, y = X, 2 * X[:3]
    found = jax.grad(lambda x: cost_matrix(x, y, p).sum())(x)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        want = jax.grad(lambda x: cost_matrix(x, y, p).sum())(x)
    np.testing.assert_array_equal(found, want)
