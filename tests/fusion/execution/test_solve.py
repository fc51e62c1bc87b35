"""All problems of a network: on the host as traced, level by level as group by group."""

import functools
import sys

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.fusion import program
from ifjax.fusion.execution import solve
from tests import reference

WIDTHS = {"mlp": (8, 6), "vgg": (6, 8), "res": (4, 6)}
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *args, **kwargs: COMPILED.append(name) if "backend_compile" in name else None
)
METHODS = {
    "exact": {"solver": "exact"},
    "no assignment": {"solver": "exact", "keep": 5},
    "importance": {
        "solver": "exact",
        "source_marginal": "importance",
        "target_marginal": "importance",
    },
    "one marginal": {"solver": "exact", "target_marginal": "importance"},
    "cosine": {"solver": "exact", "cost_p": "cosine"},
    "largest difference": {"solver": "nearest", "cost_p": np.inf},
    "third norm": {"solver": "exact", "cost_p": 3.0},
    "sinkhorn": {"epsilon": 0.1},
    "kernel, simultaneous": {
        "solver": "sinkhorn_kernel",
        "epsilon": 0.1,
        "order": "simultaneous",
    },
    "raw": {"scores_on": "raw", "importance": "lamp", "solver": "nearest"},
    "norm scales": {"importance": "l2", "reduction": "max", "solver": "nearest"},
    "random": {"importance": "random", "solver": "nearest"},
    "centroids": {"targets": "centroids", "solver": "nearest", "cost_p": 2.0},
    "pruned": {"method": "prune", "importance": "linf"},
}


@functools.cache
def traced(model):
    return reference.trace(model, reference.init(model, 0, WIDTHS[model]), 1e-2)


def spec_of(model, name):
    method = dict(METHODS[name])
    if keep := method.pop("keep", None):
        first = traced(model).groups[0].name
        return traced(model).spec(keep={first: keep - (model == "res") * 2}, **method)
    return traced(model).spec(0.5, **method)


@pytest.mark.parametrize("name", METHODS)
def test_the_host_computes_what_a_jitted_program_does(name):
    model = "vgg"
    params, spec = reference.init(model, 1, WIDTHS[model]), spec_of(model, name)
    got = ifjax.transport_maps(params, spec)
    want = jax.jit(ifjax.transport_maps, static_argnums=1)(params, spec)
    assert set(got) == set(want)
    for group, found in got.items():
        np.testing.assert_array_equal(found.targets, want[group].targets, group)
        assert found.converged.all()
        np.testing.assert_allclose(found.map, want[group].map, atol=3e-5, err_msg=group)
        np.testing.assert_allclose(found.cost, want[group].cost, rtol=1e-3, atol=1e-6)
        for x, y in zip(found, want[group], strict=True):
            assert (type(x), x.shape, x.dtype) == (type(y), y.shape, y.dtype)


MERGES = {  # by model: every merge of both kinds of plans, packed and in place
    "vgg": (("exact", "reference"), ("one marginal", "preserving"), ("pruned", "reference")),
    "res": (("exact", "preserving"), ("one marginal", "reference")),
}


@pytest.mark.parametrize("keep_shape", [False, True])
@pytest.mark.parametrize("model", MERGES)
def test_the_host_merges_as_a_jitted_program_does(model, keep_shape):
    params = reference.init(model, 1, WIDTHS[model])
    jitted = jax.jit(ifjax.fuse_params, static_argnames=("spec", "keep_shape"))
    for name, merge in MERGES[model]:
        spec = traced(model).spec(0.5, merge=merge, **METHODS[name])
        got = ifjax.fuse_params(params, spec, keep_shape=keep_shape)
        want = jitted(params, spec, keep_shape=keep_shape)
        for path, x in want.items():
            assert got[path].dtype == x.dtype
            np.testing.assert_allclose(got[path], x, rtol=1e-5, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("model", ["vgg", "res"])
def test_levels_give_what_one_group_after_the_other_does(monkeypatch, model):
    params = reference.init(model, 1, WIDTHS[model])
    spec = traced(model).spec(0.5, solver="nearest", cost_p=2.0)
    together = ifjax.transport_maps(params, spec)
    program._compiled.cache_clear()
    one = lambda structure, order: [[g] for g in structure.in_order()]  # noqa: E731
    monkeypatch.setattr(program, "levels_of", one)
    alone = ifjax.transport_maps(params, spec)
    program._compiled.cache_clear()
    assert list(together) == list(alone)
    for name, found in alone.items():
        np.testing.assert_array_equal(together[name].targets, found.targets)
        np.testing.assert_allclose(together[name].map, found.map, atol=1e-7)
        np.testing.assert_allclose(together[name].cost, found.cost, rtol=1e-5)


def test_nothing_is_compiled_but_the_solver():
    """Pruning and assignments compile nothing, Sinkhorn one program."""
    jax.clear_caches()
    params = {k: jnp.asarray(v) for k, v in reference.init("vgg", 0, (6, 8)).items()}
    counts = {}
    for name in ("pruned", "exact", "raw", "sinkhorn"):
        spec = traced("vgg").spec(0.5, **METHODS[name])
        before = len(COMPILED)
        jax.block_until_ready(ifjax.fuse_params(params, spec))
        counts[name] = len(COMPILED) - before
    assert counts == {"pruned": 0, "exact": 0, "raw": 1, "sinkhorn": 1}


def test_leaves_on_a_device_stay_there_and_others_are_on_the_default_one():
    params = reference.init("vgg", 0, WIDTHS["vgg"])
    spec = traced("vgg").spec(0.5, solver="nearest")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    there = ifjax.fuse_params(jax.device_put(params, place), spec)
    assert all(x.sharding == place and x.committed for x in there.values())
    plain = ifjax.fuse_params({k: jnp.asarray(v) for k, v in params.items()}, spec)
    assert not any(x.committed for x in plain.values())
    for path, x in ifjax.fuse_params(params, spec).items():
        np.testing.assert_array_equal(x, there[path])
        assert x is params[path] or x.devices() == {jax.devices()[0]}


def test_results_do_not_share_memory_with_the_parameters():
    params = reference.init("mlp", 0, WIDTHS["mlp"])
    spec = traced("mlp").spec(0.5, method="prune")
    small = ifjax.fuse_params(params, spec)
    kept = {path: np.array(x) for path, x in small.items()}
    for path, x in params.items():
        if small[path] is not x:
            x[:] = 0
    for path, x in small.items():
        np.testing.assert_array_equal(x, kept[path])


def test_parameters_that_a_jitted_function_closes_over_are_held():
    params = reference.init("vgg", 0, WIDTHS["vgg"])
    for method in ({"epsilon": 0.1}, {"solver": "exact", "cost_p": 3.0}):
        spec = traced("vgg").spec(0.5, **method)
        got = jax.jit(lambda x, spec=spec: ifjax.fuse_params(params, spec) | {"x": x})(1.0)
        want = ifjax.fuse_params(params, spec)
        for path, x in want.items():
            np.testing.assert_array_equal(got[path], x)


@pytest.mark.parametrize("name", ["exact", "sinkhorn", "pruned"])
def test_a_long_call_says_how_far_it_is_on_a_terminal(name, capsys, monkeypatch):
    params, spec = reference.init("mlp", 0, WIDTHS["mlp"]), spec_of("mlp", name)
    ifjax.fuse_params(params, spec)
    monkeypatch.setattr(solve, "_LONG", 0.0)
    ifjax.fuse_params(params, spec)
    assert not capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ifjax.fuse_params(params, spec)
    assert capsys.readouterr().err.endswith("\rfuse: 2/2 transport problems, 0 s\n")
