"""`compress` where a mesh goes over two processes, against one; and what it reads arrays with."""

import functools
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, decoder, init_decoder
from ifjax.parallel import hosts
from ifjax.reconstruction import precision
from ifjax.reconstruction.journal import Journal
from ifjax.reconstruction.walk import Walk
from tests import processes, xla

WIDTHS = DecoderWidths(
    vocabulary=11, hidden=16, ffn=16, query_heads=2, kv_heads=2, head_dim=4, layers=2
)
APPLY = functools.partial(decoder, DecoderConfig(0.5))
TOKENS = np.random.default_rng(0).integers(0, 11, (4, 8, 3))


def test_what_one_process_says_is_what_all_have():
    if jax.device_count() < 4:  # which a process of the other test must not ask for
        pytest.skip("needs 4 devices")
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    said = {"a": np.array([1.0, np.pi]), "b": np.arange(3, dtype=np.int8), "c": 0.1, "d": None}
    found = hosts.agreed({**said, "on": jax.numpy.ones(1)}, mesh)
    assert isinstance(found.pop("on"), jax.Array)
    jax.tree.map(np.testing.assert_array_equal, said, found)
    assert [x.dtype for x in (found["a"], found["b"])] == [np.float64, np.int8]
    assert type(found["c"]) is float
    assert hosts.every(np.array([3, 4]), mesh).tolist() == [[3, 4]] * 4
    assert hosts.mesh_apart(jax.device_put(np.ones(4), NamedSharding(mesh, P("data")))) is None


def fsdp(path, x):
    """Over all devices, along the first axis that they divide."""
    axis = next((i for i, n in enumerate(x.shape) if n % 4 == 0), None)
    return P() if axis is None else P(*[None] * axis, ("data", "model"))


def test_a_layout_without_a_mesh_is_told(monkeypatch):
    monkeypatch.setattr(hosts, "is_apart", lambda x: True)
    with pytest.raises(TypeError, match="of devices, got SingleDeviceSharding"):
        hosts.mesh_apart(jax.device_put(np.ones(4), jax.devices()[0]))


def tensor_parallel(path, x):
    """Feed-forward neurons and heads over one axis of the mesh; behind the axis of the layers."""
    at = {"query": 2, "key": 2, "value": 2, "out": 1, "gate": 2, "up": 2, "down": 1}
    name = path[-1].key
    return P(*[None] * at[name], "model") if name in at else P()


def spread(x, place):
    return jax.make_array_from_callback(x.shape, place, x.__getitem__)


def size(arrays):
    """Bytes on the devices of this process."""
    return sum(part.data.nbytes for x in arrays for part in x.addressable_shards)


def close(found, wanted, atol):
    """The parts that this process has, to rounding."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        for part in x.addressable_shards:
            np.testing.assert_allclose(part.data, y[part.index], rtol=1e-3, atol=atol)


def same(found, wanted):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        for part, other in zip(x.addressable_shards, y.addressable_shards, strict=True):
            np.testing.assert_array_equal(part.data, other.data)


class Stopped(Exception):
    """In the place of a lost machine."""


def check_restart(run, wanted, folder, number):
    """Stopped on the way, with a file less in one process: the same bits."""
    save, done = Journal._save, []

    def until(journal, *args):
        save(journal, *args)
        done.append(args)
        if len(done) == 3:
            raise Stopped

    Journal._save = until
    try:
        with pytest.raises(Stopped):
            run(folder=folder)
    finally:
        Journal._save = save
    [*finished] = (folder / f"process_{number}").glob("*.npz")
    assert len(finished) == 3
    if number:
        max(finished, key=lambda path: path.stat().st_mtime_ns).unlink()
    same(run(folder=folder)[0], wanted)
    if number:  # another run in the folder of this process alone
        (folder / "process_1" / "run.json").write_text('{"digest": "another"}')
    with pytest.raises(ValueError, match="another run" if number else "of another process"):
        run(folder=folder)


def check(layout, scan, globally, atol=3e-5, **options):
    """`compress` on the mesh, against one device; what it was called with, and what it gave."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    params = jax.tree.map(np.asarray, init_decoder(jax.random.key(0), WIDTHS, scan=scan))
    spec = ifjax.trace(APPLY, params, TOKENS[0]).spec(0.5, importance="reconstruction", **options)
    one, report = ifjax.compress(APPLY, params, spec, [*TOKENS])
    full = jax.tree_util.tree_map_with_path(
        lambda path, x: spread(x, NamedSharding(mesh, layout(path, x))), params
    )
    batches = [spread(x, NamedSharding(mesh, P("data"))) for x in TOKENS] if globally else [*TOKENS]
    run = functools.partial(ifjax.compress, APPLY, full, spec, batches)
    found, other = run()
    jax.tree.map(np.testing.assert_array_equal, report.kept, other.kept)
    places = ifjax.small_shardings(spec, full)
    assert jax.tree.map(lambda x: x.sharding, found) == places
    close(found, one, atol)
    return run, full, found


def process(number: int, port: int, folder: Path) -> None:
    """One of two processes of two devices each."""
    xla.reuse_contexts()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    held, gathered, forget, replicating = [], [], Walk.forget, hosts._replicating

    def noted(walk, *args):
        held.append(size(walk.full.values()) if walk.mesh else 0)
        forget(walk, *args)

    def replicated(place):
        return lambda x: gathered.append(x.nbytes) or replicating(place)(x)

    Walk.forget, hosts._replicating = noted, replicated
    run, full, found = check(fsdp, False, True, include="*gate*")
    leaf = max(x.nbytes for x in jax.tree.leaves(full))
    assert 0 < max(gathered) <= leaf, "the weights of a layer come to the host"
    check_restart(run, found, folder, number)
    batches = [x + number for x in TOKENS]
    with pytest.raises(ValueError, match=r"others in each: .*make_array_from_process_local_data"):
        run.func(APPLY, full, run.args[2], batches)
    held.clear()
    precision.stays = lambda columns: True
    options = {"include": "*gate*", "atol": 1e-4}  # solved in single precision
    run, full, _ = check(tensor_parallel, True, False, **options)
    assert max(held) == size(jax.tree.leaves(full)), "layers lie as their stack does"
    print("same in process", number)


@pytest.mark.slow
def test_in_two_processes(tmp_path: Path):
    path = f"tests.parallel.test_hosts.Path({str(tmp_path)!r})"
    call = f"parallel.test_hosts.process({{number}}, {{port}}, {path})"
    environment = {**os.environ, "XLA_FLAGS": xla.flags(devices=2), "JAX_PLATFORMS": "cpu"}
    processes.both(call, environment, timeout=900)
