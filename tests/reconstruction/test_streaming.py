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

LAYERS = 3
WIDTHS = DecoderWidths(
    vocabulary=16, hidden=32, ffn=256, query_heads=8, kv_heads=4, head_dim=4, layers=LAYERS
)
TOKENS = np.random.default_rng(0).integers(0, 16, (2, 8, 2))
APPLY = functools.partial(decoder, DecoderConfig(1e-5))
# The axis of neurons, heads or words, which a tensor-parallel layer splits.
NEURONS = {"embedding": 0, "query": 1, "key": 1, "value": 1, "out": 0}
NEURONS |= {"gate": 1, "up": 1, "down": 0}
MESHES = {"fsdp": {"data": 8}, "tensor": {"model": 8}, "both": {"data": 2, "model": 4}}


def size(tree):
    """Bytes on a device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.itemsize for x in leaves)


def peak(call):
    """What it gives, and the most bytes of its arrays on a device after a stretch of the sweep."""
    begin, found, forget = size(jax.live_arrays()), [0], Walk.forget

    def noted(walk, *args):
        found[0] = max(found[0], size(jax.live_arrays()) - begin)
        forget(walk, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Walk, "forget", noted)
        return call(), found[0]


def network(scan):
    """Parameters on the host, and a spec of half of the feed-forward neurons."""
    params = jax.tree.map(np.array, init_decoder(jax.random.key(0), WIDTHS, scan=scan))
    graph = ifjax.trace(APPLY, params, TOKENS[0])
    return params, graph.spec(0.5, include="*gate*", importance="reconstruction")


@functools.cache
def on_one_device():
    params, spec = network(scan=False)
    return params, spec, *ifjax.compress(APPLY, params, spec, [*TOKENS])


def bytes_of_a_layer(params):
    return sum(x.nbytes for x in jax.tree.leaves(params["layers"])) / LAYERS


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("scan", "frontier"), [(True, "held"), (False, "recompute")])
def test_one_layer_is_on_the_device(scan, frontier):
    params, spec = network(scan)
    compress = functools.partial(ifjax.compress, APPLY, frontier=frontier)
    (small, _), most = peak(lambda: compress(params, spec, [TOKENS[0]]))
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(small))
    layer = bytes_of_a_layer(params)
    assert most < 2.5 * layer, most / layer
    put = functools.partial(jax.tree.map, jnp.asarray, params)
    (there, _), most = peak(lambda: compress(put(), spec, [TOKENS[0]]))
    assert most > LAYERS * layer, "which says that it is measured"
    jax.tree.map(np.testing.assert_array_equal, small, there)


def place(mesh, path, x):
    """Neurons and heads over one axis of the mesh, the first other axis that divides over another.

    What does not divide is whole on each, as few heads of keys are.
    """
    spec, at, along = [None] * x.ndim, NEURONS.get(path[-1].key), dict(mesh.shape)
    if at is not None and "model" in along and x.shape[at] % along["model"] == 0:
        spec[at] = "model"
    for i, n in enumerate(x.shape):
        if "data" in along and "data" not in spec and spec[i] is None and n % along["data"] == 0:
            spec[i] = "data"
    return NamedSharding(mesh, P(*spec))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("layout", MESHES)
def test_a_tree_that_is_sharded_is_never_gathered(layout):
    """On eight devices, with parameters spread by FSDP, over tensors, or both: as on one device."""
    sizes = MESHES[layout]
    devices = np.array(jax.devices()[:8]).reshape(*sizes.values())
    mesh = jax.sharding.Mesh(devices, tuple(sizes))
    host, spec, one, report = on_one_device()
    places = jax.tree_util.tree_map_with_path(functools.partial(place, mesh), host)
    batches = [*TOKENS]
    if "data" in sizes:
        batches = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in TOKENS]
    run = functools.partial(ifjax.compress, APPLY)
    (small, other), most = peak(lambda: run(jax.device_put(host, places), spec, batches))
    jax.tree.map(np.testing.assert_array_equal, report.kept, other.kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), small, one)
    assert jax.tree.map(lambda x: x.sharding, small) == ifjax.small_shardings(spec, places)
    layer = bytes_of_a_layer(host)
    assert most < 2 * layer, "both trees have 5, the dense one 3.1"
    assert size(small) < sum(x.nbytes for x in jax.tree.leaves(one)) / 5
