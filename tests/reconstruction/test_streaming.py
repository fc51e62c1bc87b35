"""`compress` with parameters on the host: the same numbers, one layer on the device at a time."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, decoder, init_decoder
from ifjax.reconstruction.walk import Walk

LAYERS = 4
WIDTHS = DecoderWidths(
    vocabulary=11, hidden=32, ffn=256, query_heads=2, kv_heads=1, head_dim=8, layers=LAYERS
)
TOKENS = np.random.default_rng(0).integers(0, 11, (4, 1, 4))
APPLY = functools.partial(decoder, DecoderConfig(1e-5))


def size(tree):
    """Bytes on a device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.itemsize for x in leaves)


def spread(shape):
    """FSDP: along the first axis that eight devices divide."""
    axis = next((i for i, n in enumerate(shape) if n % 8 == 0), len(shape))
    return P(*[None] * axis, "x") if axis < len(shape) else P()


@pytest.fixture
def most(monkeypatch):
    """Most bytes of arrays that were on the device when a stretch of the sweep was done."""
    begin, found, forget = size(jax.live_arrays()), [0], Walk.forget

    def noted(walk, *args):
        found[0] = max(found[0], size(jax.live_arrays()) - begin)
        forget(walk, *args)

    monkeypatch.setattr(Walk, "forget", noted)
    return found


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("scan", "frontier"), [(True, "held"), (False, "recompute")])
def test_one_layer_is_on_the_device(scan, frontier, most):
    params = jax.tree.map(np.array, init_decoder(jax.random.key(0), WIDTHS, scan=scan))
    graph = ifjax.trace(APPLY, params, TOKENS[0])
    spec = graph.spec(0.5, include="*gate*", importance="reconstruction")
    compress = functools.partial(ifjax.compress, APPLY, frontier=frontier)
    small, _ = compress(params, spec, [*TOKENS])
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(small))
    layer = sum(x.nbytes for x in jax.tree.leaves(params["layers"])) / LAYERS
    assert most[0] < 2.5 * layer, most[0] / layer
    most[0] = 0
    there, _ = compress(jax.tree.map(jnp.asarray, params), spec, [*TOKENS])
    assert most[0] > LAYERS * layer, "which says that it is measured"
    jax.tree.map(np.testing.assert_array_equal, small, there)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.usefixtures("unchecked")
def test_a_tree_that_is_sharded_is_never_gathered(most):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("x",))
    host = jax.tree.map(np.array, init_decoder(jax.random.key(0), WIDTHS, scan=False))
    places = jax.tree.map(lambda x: NamedSharding(mesh, spread(x.shape)), host)
    params = jax.device_put(host, places)
    spec = ifjax.trace(APPLY, host, TOKENS[0]).spec(0.5, include="*gate*")
    assert size(params) < size(jax.tree.map(jnp.asarray, host)) / 6
    layer = size(jax.tree.map(jnp.asarray, host["layers"])) / LAYERS
    small, _ = ifjax.compress(APPLY, params, spec, [*TOKENS])
    assert most[0] < 3 * layer, "both trees have 6.5, values of the frontier 0.7"
    assert size(small) < size(params)
