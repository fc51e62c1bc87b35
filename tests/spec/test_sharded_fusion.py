"""Parameters on a mesh of eight devices, in a process of its own, against one device."""

import collections
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax.spec.spec import small_shardings
from tests import processes, xla
from tests.spec.sharded_transformer import (
    SEED,
    collectives,
    devices,
    network,
    shardings,
    transformer,
)

# Buffers are scheduled as on accelerators, one after another; a busy machine is waited for.
SCHEDULE = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)


# Checks that run on eight devices; each returns nothing, or raises -------------------------------


def close(found, wanted, tolerance=3e-5):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(
            np.asarray(x), np.asarray(y), rtol=0, atol=tolerance, err_msg=str(path)
        )


def same(tree, places):
    return all(
        x.sharding.mesh == place.mesh and x.sharding.is_equivalent_to(place, len(x.shape))
        for x, place in zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    )


def fused(params, spec, outputs=None, **options):
    run = jax.jit(lambda p: ifjax.fuse_params(p, spec, **options), out_shardings=outputs)
    return run(params)


def check_equal(layout, **method):
    """Under jit, with the stated output shardings."""
    params, _, graph = network()
    spec = graph.spec(0.5, **method)
    full = jax.device_put(params, shardings(params, layout))
    outputs = small_shardings(spec, full)
    found = fused(full, spec, outputs)
    assert same(found, outputs)
    assert same(spec.small_struct(full), outputs)
    close(found, ifjax.fuse_params(params, spec))


def check_eager():
    """Without jit: where it lies is what `small_shardings` says; failures are raised."""
    params, apply, graph = network()
    spec = graph.spec(0.5, order="simultaneous", solver="nearest", merge="preserving")
    full = jax.device_put(params, shardings(params, "mixed"))
    small = ifjax.fuse_params(full, spec)
    assert same(small, small_shardings(spec, full))
    close(small, ifjax.fuse_params(params, spec))
    broken = {**full, "out": full["out"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match=r"out: expected finite weights, got 1 of 512"):
        ifjax.fuse_params(broken, spec)
    # The small function, on the small parameters where they lie.
    tokens = jnp.arange(6).reshape(2, 3)
    close(
        jax.jit(ifjax.shrink(apply, spec))(small, tokens),
        ifjax.shrink(apply, spec)(ifjax.fuse_params(params, spec), tokens),
    )


def check_explicit():
    """On a mesh whose axes are explicit, as `jax.make_mesh` makes it."""
    params, _, graph = network()
    spec = graph.spec(0.5, solver="nearest", include="*gate*")
    mesh = devices((2, 4), explicit=True)
    full = jax.device_put(params, shardings(params, "mixed", mesh))
    wanted, outputs = ifjax.fuse_params(params, spec), small_shardings(spec, full)
    for found in (
        ifjax.fuse_params(full, spec),
        jax.jit(ifjax.fuse_params, static_argnums=1)(full, spec),
    ):
        assert same(found, outputs)
        close(found, wanted)
    maps = jax.jit(ifjax.transport_maps, static_argnums=1)(full, spec)
    close(ifjax.apply_maps(full, spec, maps), wanted)


def check_whole_shape():
    """With `keep_shape` every leaf stays where it was."""
    params, _, graph = network()
    spec = graph.spec(0.5, solver="nearest", include="*gate*")
    places = shardings(params, "tensor")
    found = fused(jax.device_put(params, places), spec, places, keep_shape=True)
    close(found, ifjax.fuse_params(params, spec, keep_shape=True))


def check_stacked():
    """Layers of a scan, or experts, spread over the axis that batches their groups."""
    rng = np.random.default_rng(SEED)
    shapes = {"a": (8, 6, 12), "b": (8, 12, 6)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}

    def apply(params, x):
        def layer(x, p):
            return x + jax.nn.relu(x @ p["a"]) @ p["b"], None

        return jax.lax.scan(layer, x, params)[0]

    graph = ifjax.trace(apply, params, jnp.zeros((2, 6)))
    (group,) = (g for g in graph.groups if g.batch)
    # At a smaller epsilon Sinkhorn makes more of the last digit of a norm than the tolerance.
    spec = graph.spec(0.5, include=group.name, epsilon=0.1)
    full = jax.device_put(params, NamedSharding(devices((8,)), P("x")))
    found = fused(full, spec, small_shardings(spec, full))
    assert all(x.sharding.spec == P("x") for x in found.values())
    close(found, ifjax.fuse_params(params, spec))


def check_widths_that_do_not_divide():
    params, _, graph = network()
    spec = graph.spec(0.4, solver="nearest", include="*gate*")  # 28 of 48
    full = jax.device_put(params, shardings(params, "tensor"))
    with pytest.warns(UserWarning, match=r"3 axes .* block0/up, axis 1: width 28 over x .8 dev"):
        outputs = small_shardings(spec, full)
    found = fused(full, spec, outputs)
    assert found["block0"]["up"].sharding.spec == P(None, None)
    close(found, ifjax.fuse_params(params, spec))


def check_gradient():
    """Through the merge."""
    params, _, graph = network()
    spec = graph.spec(0.5, solver="nearest", include="*gate*", order="simultaneous")
    full = jax.device_put(params, shardings(params, "mixed"))

    def loss(params):
        return sum(jnp.sum(x**3) for x in jax.tree.leaves(ifjax.fuse_params(params, spec)))

    close(jax.jit(jax.grad(loss))(full), jax.grad(loss)(params))


def check_checkpoint():
    """Saved from eight devices, loaded onto eight or one."""
    params, _, graph = network()
    spec = graph.spec(0.5, solver="nearest", include="*gate*")
    full = jax.device_put(params, shardings(params, "mixed"))
    small = ifjax.fuse_params(full, spec)
    with tempfile.TemporaryDirectory() as folder:
        ifjax.save(Path(folder) / "small", small, spec)
        places = small_shardings(spec, full)
        again, _ = ifjax.load(Path(folder) / "small", sharding=places)
        assert same(again, places)
        close(again, small, 0)
        close(ifjax.load(Path(folder) / "small")[0], small, 0)


def check_mesh_of_the_user():
    """`jax.set_mesh` and parameters that do not lie on it."""
    params, _, graph = network()
    spec = graph.spec(0.5, solver="nearest", order="simultaneous", include="*gate*")
    wanted = ifjax.fuse_params(params, spec)
    for mesh in (devices((2, 4)), devices((2, 4), explicit=True)):
        full = jax.device_put(params, shardings(params, "mixed", mesh))
        with jax.set_mesh(mesh):
            close(ifjax.fuse_params(params, spec), wanted)
            close(ifjax.fuse_params(full, spec), wanted)
            close(jax.jit(ifjax.fuse_params, static_argnums=1)(full, spec), wanted)


def check_memory(layout):
    """A device never needs more than a few times its share of the tree, nor gathers a leaf."""
    params, apply = transformer(3, 64, 256)
    graph = ifjax.trace(apply, params, jnp.zeros((1, 3), jnp.int32))
    spec = graph.spec(0.5, include="*gate*", order="simultaneous")
    full = jax.device_put(params, shardings(params, layout))
    outputs = small_shardings(spec, full)
    run = jax.jit(lambda p: ifjax.fuse_params(p, spec), out_shardings=outputs)
    program = run.lower(full).compile()
    memory = program.memory_analysis()
    tree = sum(x.nbytes for x in jax.tree.leaves(params))
    assert memory.argument_size_in_bytes <= tree / 8 + 1024
    assert memory.temp_size_in_bytes < 0.5 * tree, memory.temp_size_in_bytes / tree
    total = collections.Counter()
    for kind, size in collectives(program.as_text()):
        total[kind] += size
    assert total["all-gather"] < 0.01 * tree, total
    assert total["all-reduce"] < 0.1 * tree, total
    assert total["all-to-all"] + total["collective-permute"] < 1.5 * tree, total


CHECKS = {
    "jit fsdp simultaneous": (check_equal, "fsdp", {"order": "simultaneous"}),
    # At a smaller epsilon Sinkhorn makes more of the last digit of a norm than the tolerance.
    "jit tensor sequential": (
        check_equal,
        "tensor",
        {"include": ("embed", "*gate*"), "epsilon": 0.1},
    ),
    "jit mixed exact": (
        check_equal,
        "mixed",
        {"solver": "exact", "merge": "preserving", "include": ("embed", "*gate*")},
    ),
    "jit mixed prune": (check_equal, "mixed", {"method": "prune"}),
    "eager": (check_eager,),
    "explicit": (check_explicit,),
    "keep shape": (check_whole_shape,),
    "stacked": (check_stacked,),
    "not dividing": (check_widths_that_do_not_divide,),
    "gradient": (check_gradient,),
    "checkpoint": (check_checkpoint,),
    "mesh of the user": (check_mesh_of_the_user,),
    "memory fsdp": (check_memory, "fsdp"),
    "memory tensor": (check_memory, "tensor"),
    "memory mixed": (check_memory, "mixed"),
}


def main(names=None):
    """Runs the checks and prints what became of them."""
    assert jax.device_count() == 8
    xla.reuse_contexts()
    result = {}
    for name, (check, *arguments) in CHECKS.items():
        if names and not any(n in name for n in names):
            continue
        options = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        try:
            check(*arguments, **options)
            result[name] = ""
        except BaseException:
            result[name] = traceback.format_exc()
        if names:
            print(name, time.process_time(), result[name][-1500:] or "ok", flush=True)
    print("RESULT" + json.dumps(result))


def environment(devices: int) -> dict[str, str]:
    """Of a process of so many devices."""
    flags = f"{xla.flags(devices)} {SCHEDULE}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@functools.cache
def results() -> dict[str, str]:
    """What became of every check: an empty string, or what was raised."""
    code = "from tests.spec import test_sharded_fusion; test_sharded_fusion.main()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment(devices=8),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("RESULT")[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_on_eight_devices(name):
    assert not results()[name], results()[name]


def process(number: int, port: int) -> None:
    """One of two processes of four devices each: no process can look at all parameters."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    params, _, graph = network()
    full = jax.tree.map(
        lambda x, place: jax.make_array_from_callback(x.shape, place, np.asarray(x).__getitem__),
        params,
        shardings(params, "fsdp"),
    )
    assert not full["out"].is_fully_addressable
    for solver in ("sinkhorn", "exact"):
        spec = graph.spec(0.5, solver=solver, include="*gate*")
        places = small_shardings(spec, full)
        wanted = ifjax.fuse_params(params, spec)
        for found in (fused(full, spec, places), ifjax.fuse_params(full, spec)):
            assert same(found, places)
            for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                for shard in x.addressable_shards:
                    close(shard.data, np.asarray(y)[shard.index])
    print("same in process", number)


@pytest.mark.slow
def test_in_two_processes():
    processes.both("spec.test_sharded_fusion.process({number}, {port})", environment(devices=4))
