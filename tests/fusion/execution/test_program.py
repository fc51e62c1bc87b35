"""Which groups go together: waves, buckets, and what they share."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.fusion import transport_maps as maps
from ifjax.fusion.execution import buckets as problems
from ifjax.fusion.execution import program as waves
from ifjax.transport import Exact, SinkhornKernel
from tests import reference

WIDTHS = {"mlp": (8, 6, 8, 6), "vgg": (6, 8), "res": (6, 8)}


@functools.cache
def graph(model):
    return reference.trace(model, reference.init(model, 0, WIDTHS[model]))


@pytest.fixture(autouse=True)
def _forget_schedules():
    waves.schedule.cache_clear()
    yield
    waves.schedule.cache_clear()


def schedule(spec):
    return waves.schedule(spec.structure, spec.method, frozenset(), "cpu")


def paths(group):
    return {m.path for m in group.members}


@pytest.mark.parametrize("model", WIDTHS)
def test_a_group_waits_for_those_before_it_that_share_a_leaf_and_for_no_others(model):
    structure = graph(model).spec(0.5).structure
    found = waves.waves(structure, "sequential")
    number = {g.name: i for i, wave in enumerate(found) for g in wave}
    order = structure.in_order()
    assert sorted(number) == sorted(g.name for g in order)
    for k, group in enumerate(order):
        before = [number[g.name] for g in order[:k] if paths(g) & paths(group)]
        assert number[group.name] == max(before, default=-1) + 1
    (everything,) = waves.waves(structure, "simultaneous")
    assert everything == order


def test_branches_share_a_wave_and_chains_do_not():
    assert [len(wave) for wave in waves.waves(graph("mlp").spec(0.5).structure, "sequential")] == [
        1
    ] * 4

    def branches(p, x):
        return x @ p["a"] @ p["b"] + jnp.sin(x) @ p["c"] @ p["d"]

    p = dict.fromkeys("abcd", jnp.ones((4, 4)))
    structure = ifjax.trace(branches, p, jnp.ones((1, 4))).spec(0.5).structure
    assert [len(wave) for wave in waves.waves(structure, "sequential")] == [2]


def test_sizes_of_regular_networks_are_not_padded_and_others_by_an_eighth_at_most():
    regular = [2**k * f for k in range(4, 13) for f in (1, 3, 9, 15)]
    assert [waves.padded(n) for n in regular] == regular
    for n in range(1, 5000):
        assert n <= waves.padded(n) <= 1.125 * n
        assert waves.padded(waves.padded(n)) == waves.padded(n)


def test_groups_of_one_padded_size_share_a_bucket():
    leaves = reference.init("mlp", 0, (32, 31, 32, 31, 32, 20))
    spec = reference.trace("mlp", leaves).spec(0.5, order="simultaneous")
    (wave,) = schedule(spec)
    sizes = [
        {tuple(map(waves.padded, unit.extent)) for unit in bucket.units} for bucket in wave.buckets
    ]
    assert all(len(each) == 1 for each in sizes)
    assert len(set(map(tuple, sizes))) == len(sizes)
    assert [31, 31] in [[unit.size for unit in bucket.units] for bucket in wave.buckets]
    assert waves.in_order([wave]) == [g.name for g in spec.structure.in_order()]


def test_no_bucket_holds_more_than_the_limit_or_its_largest_group(monkeypatch):
    spec = reference.trace("mlp", reference.init("mlp", 0, (16,) * 7)).spec(
        0.5, order="simultaneous"
    )
    monkeypatch.setattr(waves, "padded", lambda n: 1)
    (whole,) = schedule(spec)[0].buckets
    sizes = [unit.bytes for unit in whole.units]
    for limit in (min(sizes), 2 * max(sizes), 3 * max(sizes) - 1):
        (wave,) = waves.schedule(spec.structure, spec.method, frozenset(), "cpu", limit)
        parts = [[unit.bytes for unit in bucket.units] for bucket in wave.buckets]
        assert all(len(part) == 1 or sum(part) <= limit for part in parts)
        assert sorted(itertools.chain.from_iterable(parts)) == sorted(sizes)
        assert len(parts) <= np.ceil(len(sizes) / max(limit // max(sizes), 1)) + 1


def test_a_cpu_stacks_small_groups_only_and_one_program_all(monkeypatch):
    """Large groups fill its cores alone; under jit every bucket would be compiled once more."""
    monkeypatch.setattr(waves, "CPU_BYTES", 0)
    p = {f"w{i}": jnp.ones((4, 4)) for i in range(4)}
    spec = ifjax.trace(lambda p, x: (x @ p["w0"] @ p["w1"], x @ p["w2"] @ p["w3"]), p, p["w0"])
    spec = spec.spec(0.5, solver="nearest")
    calls = []
    monkeypatch.setattr(
        maps, "read", lambda i, b: calls.append(len(b.units)) or problems.read(i, b)
    )
    ifjax.transport_maps(p, spec)
    jax.jit(functools.partial(ifjax.transport_maps, spec=spec))(p)
    assert calls == [1, 1, 2]
    assert waves.bucket_bytes("tpu", *p.values()) == waves.BYTES


def test_the_bytes_of_a_group_are_those_of_its_arrays():
    spec = graph("vgg").spec(0.5, order="simultaneous")
    (wave,) = schedule(spec)
    for entry, at in wave.groups:
        n, m, d = at.unit.extent
        shapes = {x.path: x.shape for x in spec.structure.leaves}
        group = spec.structure.group[entry.name]
        rows = sum(np.prod(shapes[path]) for path in entry.described) // group.size
        assert (n, m, d) == (group.size, group.kept, rows)
        assert at.unit.bytes == 4 * (n * d + m * d + 2 * n * m)


def test_what_solves_is_static_for_the_solving_alone():
    """Waves of two specs that differ in epsilon, merge or solver read with the same programs."""
    buckets = []
    for choice in ({}, {"epsilon": 0.5}, {"solver": "nearest"}, {"merge": "preserving"}):
        found = schedule(graph("vgg").spec(0.5, **choice))
        buckets.append([bucket for wave in found for bucket in wave.buckets])
    assert all(each == buckets[0] for each in buckets)
    assert all(list(map(hash, each)) == list(map(hash, buckets[0])) for each in buckets)


@pytest.mark.parametrize("model", ["vgg", "res"])
def test_sequential_waves_give_what_one_group_after_the_other_does(monkeypatch, model):
    params = {k: jnp.asarray(v) for k, v in reference.init(model, 1, WIDTHS[model]).items()}
    spec = graph(model).spec(0.5, solver="nearest", cost_p=2.0)
    together = ifjax.transport_maps(params, spec)
    assert len(schedule(spec)) <= len(together)
    waves.schedule.cache_clear()
    monkeypatch.setattr(waves, "waves", lambda plan, order: [[g] for g in plan.in_order()])
    alone = ifjax.transport_maps(params, spec)
    assert list(together) == list(alone)
    for name, found in alone.items():
        np.testing.assert_array_equal(together[name].targets, found.targets)
        np.testing.assert_allclose(together[name].map, found.map, atol=1e-7)
        np.testing.assert_allclose(together[name].cost, found.cost, rtol=1e-5)


def test_a_platform_decides_what_auto_is():
    spec = graph("mlp").spec(0.5, solver="auto")
    for backend, solver in (("cpu", Exact()), ("gpu", SinkhornKernel())):
        (first, *_) = waves.schedule(spec.structure, spec.method, frozenset(), backend)
        assert first.solvers == (solver,)


def test_a_whole_network_is_a_handful_of_programs(compiled):
    """Four layers of two sizes: fold, a read and a solve per bucket, one to apply."""
    first, second = (
        {k: jnp.asarray(v) for k, v in reference.init("mlp", seed, WIDTHS["mlp"]).items()}
        for seed in (0, 1)
    )
    spec = graph("mlp").spec(0.5, order="simultaneous", solver="sinkhorn_kernel")
    before = len(compiled)
    jax.block_until_ready(ifjax.fuse_params(first, spec))
    count = len(compiled)
    assert 0 < count - before <= 2 + 2 * len(schedule(spec)[0].buckets)
    again = graph("mlp").spec(0.5, order="simultaneous", solver="sinkhorn_kernel")
    jax.block_until_ready(ifjax.fuse_params(second, again))
    assert len(compiled) == count


@pytest.fixture
def compiled():
    found = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)
