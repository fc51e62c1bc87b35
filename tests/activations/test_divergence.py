"""Layer outputs against the network written out, divergences against a float64 loop."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.activations.divergence import layer_outputs, output_divergence


class Network(nn.Module):
    width: int = 6

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(self.width, (3, 3))(x)))
        x = nn.relu(nn.Dense(16)(x.mean((1, 2))))
        return nn.Dense(5)(x)


@pytest.fixture(scope="module")
def network():
    module = Network()
    x = jax.random.normal(jax.random.key(1), (7, 5, 5, 2))
    return module.apply, module.init(jax.random.key(0), x), x


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_outputs_are_those_of_the_modules(network):
    apply, variables, x = network
    found = layer_outputs(apply, variables, x)
    _, state = Network().apply(variables, x, capture_intermediates=True)
    seen = state["intermediates"]
    assert list(found) == [f"params/{m}/kernel" for m in ("Conv_0", "Dense_0", "Dense_1")]
    for name, output in found.items():
        module = name.split("/")[1]
        bias = variables["params"][module]["bias"]
        (expected,) = seen[module]["__call__"]
        np.testing.assert_allclose(output + bias, expected, rtol=1e-5, atol=1e-6)


def test_weights_are_named_through_what_is_done_to_them():
    params = {"w": jnp.ones((2, 3, 4)), "table": jnp.ones((4, 5)), "gain": jnp.ones(())}

    @jax.checkpoint
    def block(params, x):
        return x @ (params["gain"] * params["table"]).T

    @jax.jit
    def apply(params, x):
        x = x @ params["w"].reshape(6, 4) @ params["table"]
        return block(params, x) @ jnp.ones((4, 2)) + (x @ x.T).sum()

    found = layer_outputs(apply, params, jnp.ones((1, 6)))
    assert {name: float(z[0, 0]) for name, z in found.items()} == {
        "w": 6.0,
        "table": 24.0,
        "gain": 120.0,
    }


def test_a_weight_used_twice_has_two_layers():
    found = layer_outputs(lambda w, x, n: x @ w @ w * n, jnp.full((2, 2), 2.0), jnp.ones(2), 3)
    assert [z.tolist() for z in found.values()] == [[4, 4], [16, 16]]
    assert [name[-2:] for name in found] == ["", "#2"]


def test_divergence_against_a_loop(network):
    """Over uneven batches; the layer that was cut is left out."""
    apply, variables, x = network
    graph = ifjax.trace(apply, variables, x)
    spec = graph.spec(0.5, include="params/Conv_0/kernel", method="prune")
    small, apply_small = ifjax.fuse_params(variables, spec), ifjax.shrink(apply, spec)
    batches = [(x[:4],), (x[4:],)]
    found = output_divergence(apply, variables, apply_small, small, batches)
    assert list(found) == ["params/Dense_0/kernel", "params/Dense_1/kernel"]
    dense, other = layer_outputs(apply, variables, x), layer_outputs(apply_small, small, x)
    for name, value in found.items():
        a = np.asarray(dense[name], np.float64).ravel()
        b = np.asarray(other[name], np.float64).ravel()
        assert value.distance > 0.05
        sizes = np.linalg.norm(a), np.linalg.norm(b)
        np.testing.assert_allclose(value.distance, np.linalg.norm(b - a) / sizes[0], rtol=1e-5)
        np.testing.assert_allclose(value.cosine, a @ b / (sizes[0] * sizes[1]), rtol=1e-5)


def test_the_same_network_does_not_diverge(network):
    apply, variables, x = network
    for found in output_divergence(apply, variables, apply, variables, [(x,)]).values():
        assert found.distance == 0.0
        np.testing.assert_allclose(found.cosine, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("dense", "small", "expected"),
    [(0.0, 1.0, (np.inf, 0.0)), (1.0, 0.0, (1.0, 0.0)), (0.0, 0.0, (0.0, 1.0))],
)
def test_silent_layers(dense, small, expected):
    def apply(w, x):
        return x @ w

    batches = [(jnp.ones((1, 2)),)]
    weights = jnp.full((2, 2), dense), jnp.full((2, 2), small)
    (found,) = output_divergence(apply, weights[0], apply, weights[1], batches).values()
    assert tuple(found) == expected


def test_nothing_to_compare_is_refused():
    def apply(w, x):
        return x @ w

    with pytest.raises(ValueError, match="at least one batch"):
        output_divergence(apply, jnp.ones((2, 2)), apply, jnp.ones((2, 2)), [])
    with pytest.raises(ValueError, match="as wide in both"):
        output_divergence(apply, jnp.ones((2, 2)), apply, jnp.ones((2, 1)), [(jnp.ones((1, 2)),)])
