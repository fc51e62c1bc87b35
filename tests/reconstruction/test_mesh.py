"""`compress` on a mesh: batches and parameters that are sharded give what one device gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


def normal(seed, *shape):
    found = np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
    return found.astype(np.float32)


def network(p, x):
    """A convolution with a norm and a bias, then layers in a loop on a residual stream."""
    numbers = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(x, p["conv"], (2, 2), "SAME", dimension_numbers=numbers)
    n = p["norm"]
    h = (h - n["mean"]) / jnp.sqrt(n["variance"] + 1e-5) * n["scale"] + n["offset"]
    h = jax.nn.relu(h).mean((1, 2)) @ p["in"] + p["bias"]
    step = lambda h, w: (h + jnp.tanh(h @ w["up"]) @ w["down"], None)  # noqa: E731
    return lax.scan(step, h, p["layers"])[0] @ p["out"]


PARAMS = {
    "conv": normal(0, 3, 3, 3, 16),
    "norm": {k: np.full(16, v, np.float32) for k, v in (("scale", 1), ("offset", 0.1))}
    | {"mean": np.zeros(16, np.float32), "variance": np.ones(16, np.float32)},
    "in": normal(1, 16, 16),
    "bias": np.zeros(16, np.float32),
    "layers": {"up": normal(2, 2, 16, 32), "down": normal(3, 2, 32, 16)},
    "out": normal(4, 16, 8),
}
LAYOUT = {
    "in": P(None, "model"),
    "layers": {"up": P(None, None, "model"), "down": P(None, "model", None)},
    "conv": P(None, None, None, "model"),
}


@pytest.mark.parametrize("params_on", ["host", "replicated", "sharded"])
@pytest.mark.parametrize("frontier", ["held", "recompute"])
def test_sharded_batches_and_parameters(params_on, frontier):
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))
    x = np.random.default_rng(9).normal(size=(64, 8, 8, 3)).astype(np.float32)
    spec = ifjax.trace(network, PARAMS, x).spec(0.5, exclude=["in"])
    one, report = ifjax.compress(network, PARAMS, spec, np.split(x, 4))
    params = PARAMS
    if params_on != "host":
        whole = jax.tree.map(lambda w: P(), PARAMS)
        layout = whole | LAYOUT if params_on == "sharded" else whole
        place = lambda w, s: jax.device_put(w, NamedSharding(mesh, s))  # noqa: E731
        params = jax.tree.map(place, PARAMS, layout)
    split = NamedSharding(mesh, P("data"))
    batches = [jax.device_put(part, split) for part in np.split(x, 4)]
    found, other = ifjax.compress(network, params, spec, batches, frontier=frontier)
    jax.tree.map(np.testing.assert_array_equal, report.kept, other.kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), one, found)
    if params_on != "host":
        places = ifjax.small_shardings(spec, params)
        assert jax.tree.map(lambda a: a.sharding, found) == places
    again, _ = ifjax.compress(network, params, spec, [jax.device_put(x, split)])  # cut anew
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), one, again)
