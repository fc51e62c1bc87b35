"""The promises of fusion, on networks of a few neurons with random weights."""

import itertools

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.transport import solvers
from tests import reference
from tests.fusion.tiny_networks import METHODS, SINGLE, assert_same, function, init, outputs, traced

# What is kept stays -----------------------------------------------------------------------------


@pytest.mark.parametrize("keep_shape", [False, True])
@pytest.mark.parametrize("kind", METHODS)
def test_keep_all_is_the_identity_bit_for_bit(kind, keep_shape):
    params = {**init("vgg"), "bn0.running_var": np.full(6, 1e-30, np.float32)}
    spec = traced("vgg").spec(0.0, **METHODS[kind])
    assert_same(ifjax.fuse_params(params, spec, keep_shape=keep_shape), params)
    jitted = jax.jit(ifjax.fuse_params, static_argnames=("spec", "keep_shape"))
    assert_same(jitted(params, spec, keep_shape=keep_shape), params)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("model", ["mlp", "vgg", "res"])
def test_leaves_that_no_cut_group_touches_stay_bit_for_bit(model, kind):
    params = init(model)
    for group in traced(model).groups:
        spec = traced(model).spec(0.5, include=[group.name], solver="nearest", **METHODS[kind])
        small = ifjax.fuse_params(params, spec)
        others = set(params) - {m.path for m in group.members}
        assert_same({p: small[p] for p in others}, {p: params[p] for p in others})
        changed = [p for p in small if small[p].shape != params[p].shape]
        assert sorted(changed) == sorted({m.path for m in group.members})


def test_leaves_that_are_no_floats_pass_through():
    params = {**init("mlp"), "steps": np.int32(7), "key": jax.random.key(3)}
    spec = ifjax.trace(reference.apply("mlp"), params, reference.inputs("mlp")).spec(0.5)
    small = ifjax.fuse_params(params, spec)
    assert small["steps"] == 7
    assert small["steps"].dtype == np.int32
    np.testing.assert_array_equal(
        jax.random.key_data(small["key"]), jax.random.key_data(params["key"])
    )


# Duplicates -------------------------------------------------------------------------------------


def with_duplicates(model, classes):
    """Neurons of one class have equal producers, biases and norms, and consumers that differ.

    Returns the weights, and scores that make the first neuron of every class a target.
    """
    params, rng, scores = init(model), np.random.default_rng(5), {}
    for group in traced(model).groups:
        index = np.asarray(classes[group.size])
        first = np.array([int(np.argmax(index == c)) for c in index])
        scores[group.name] = (first == np.arange(group.size)).astype(np.float32)
        for m in group.members:
            x = np.take(params[m.path], first, m.axis)
            if m.role == "consumer":
                x = x + 0.03 * rng.normal(size=x.shape).astype(np.float32)
            params[m.path] = x
    return params, scores


@pytest.mark.parametrize("solver", ["nearest", "exact", "sinkhorn"])
@pytest.mark.parametrize("model", ["mlp", "vgg"])
def test_duplicates_merge_without_change(model, solver):
    """For uniform marginals classes of equal size, so that the plan can map each to its target."""
    classes = {8: [0, 1, 2, 3, 3, 1, 2, 0], 6: [0, 1, 2, 1, 0, 2]}
    params, scores = with_duplicates(model, classes)
    expected = np.asarray(function(model)(params, reference.inputs(model, 1)))
    for merge, change in (("preserving", 0), ("reference", None)):
        spec = traced(model).spec(0.5, solver=solver, merge=merge, epsilon=0.003)
        maps = ifjax.transport_maps(params, spec, scores)
        for name, found in maps.items():
            n = traced(model).structure.group[name].size
            wanted = np.equal.outer(classes[n], np.arange(n // 2)) / n
            np.testing.assert_allclose(found.map, wanted, atol=1e-6, err_msg=name)
        got = outputs(model, spec, ifjax.apply_maps(params, spec, maps))
        if change == 0:
            np.testing.assert_allclose(got, expected, atol=SINGLE)
        else:  # both sides are summed: the other merge does change the function
            assert np.abs(got - expected).max() > 0.1


@pytest.mark.parametrize("model", ["mlp", "vgg"])
def test_classes_of_any_size_merge_without_change(model):
    classes = {8: [0, 0, 0, 1, 2, 0, 3, 1], 6: [0, 1, 1, 1, 2, 1]}
    params, scores = with_duplicates(model, classes)
    spec = traced(model).spec(0.5, solver="nearest", merge="preserving")
    got = outputs(model, spec, ifjax.fuse_params(params, spec, scores))
    expected = function(model)(params, reference.inputs(model, 1))
    np.testing.assert_allclose(got, expected, atol=SINGLE)


def test_equal_neurons_merge_without_scores_of_the_caller():
    """One whole copy of every neuron: both share their score, and the first is the target."""
    params = init("mlp")
    copies = np.arange(8) % 4
    for path, axis in (("fc0.weight", 0), ("fc0.bias", 0), ("fc1.weight", 1)):
        params[path] = np.take(params[path], copies, axis)
    spec = traced("mlp").spec({"fc0*": 0.5}, solver="nearest", merge="preserving")
    scores = {"fc0.weight": np.repeat([1.0, 0.5], 4)}
    got = outputs("mlp", spec, ifjax.fuse_params(params, spec, scores))
    np.testing.assert_allclose(
        got, function("mlp")(params, reference.inputs("mlp", 1)), atol=SINGLE
    )


# Symmetry and degenerate neurons ----------------------------------------------------------------


@pytest.mark.parametrize("solver", [*solvers.SOLVERS, None])
@pytest.mark.parametrize("model", ["mlp", "vgg"])
def test_permuted_neurons_fuse_to_the_same_function(model, solver):
    rng = np.random.default_rng(2)
    orders = {g.name: rng.permutation(g.size) for g in traced(model).groups}
    method = {"solver": solver} if solver else {"method": "prune"}
    with jax.enable_x64(True):
        params = init(model, dtype=np.float64)
        spec = traced(model).spec(0.5, **method)
        permuted = ifjax.take(params, spec, orders)
        assert any(np.any(permuted[path] != params[path]) for path in params)
        got, expected = (
            outputs(model, spec, ifjax.fuse_params(p, spec), np.float64) for p in (permuted, params)
        )
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", solvers.SOLVERS)
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("model", ["mlp", "vgg"])
def test_dead_neurons_make_no_nan(model, kind, solver):
    params = init(model)
    for group in traced(model).groups:
        roles = {m.role for m in group.members}
        for m in group.members:
            at = [slice(None)] * params[m.path].ndim
            if m.role != "variance":
                at[m.axis] = slice(0, 3)  # more than are dropped: some targets are dead
                params[m.path][tuple(at)] = 0
            at[m.axis] = 3
            if m.role == "multiplicative":
                params[m.path][tuple(at)] = 0
            at[m.axis] = 4
            if m.role == "variance":
                params[m.path][tuple(at)] = 0
        assert {"producer", "consumer"} <= roles
    for marginal in ("uniform", "importance"):
        spec = traced(model).spec(
            0.3, solver=solver, source_marginal=marginal, target_marginal=marginal, **METHODS[kind]
        )
        for keep_shape in (False, True):
            small = ifjax.fuse_params(params, spec, keep_shape=keep_shape)
            for path, x in small.items():
                assert np.all(np.isfinite(x)), path
                if path.endswith("running_var"):
                    assert np.all(x >= 0), path
        assert np.all(np.isfinite(function(model)(small, reference.inputs(model))))


def test_a_network_of_zeros_stays_one():
    params = {path: np.zeros_like(x) for path, x in init("vgg").items()}
    small = ifjax.fuse_params(params, traced("vgg").spec(0.5))
    assert all(np.all(np.isfinite(x)) for x in small.values())
    assert all(np.all(small[p] == 0) for p in small if not p.startswith("bn"))


# The table of all choices -----------------------------------------------------------------------


TABLE = list(
    itertools.product(
        ("l1", "l2", "linf", "random"),  # the metrics that need nothing but weights
        solvers.SOLVERS,
        ("reference", "preserving"),
        ("fuse", "prune"),
        ("sequential", "simultaneous"),
    )
)


@pytest.mark.parametrize(
    ("model", "rows"),
    [("mlp", TABLE), ("vgg", [row for row in TABLE if row[0] == "l1"])],
    ids=["mlp", "vgg"],
)
def test_every_combination_is_finite_shaped_typed_and_deterministic(model, rows):
    params = init(model)
    before = {path: x.copy() for path, x in params.items()}
    functions = set()
    for score, solver, merge, method, order in rows:
        spec = traced(model).spec(
            0.5, importance=score, solver=solver, merge=merge, method=method, order=order
        )
        where = str(spec.method)
        small = ifjax.fuse_params(params, spec)
        struct = spec.small_struct(params)
        assert set(small) == set(params), where
        for path, x in small.items():
            assert np.all(np.isfinite(x)), (where, path)
            assert (x.shape, x.dtype) == (struct[path].shape, struct[path].dtype), (where, path)
        assert_same(ifjax.fuse_params(params, spec), small)
        got = outputs(model, spec, small)
        assert np.all(np.isfinite(got)), where
        functions.add(got.tobytes())
    assert_same(params, before)
    # The choices matter: pruning knows neither solver nor merge, all else gives other numbers.
    fused, scores = 3 * 2 * 2, len({row[0] for row in rows})
    assert len(functions) >= scores * fused * 0.6


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("model", ["mlp", "vgg", "res"])
def test_keep_shape_is_the_function_of_the_small_network(model, kind):
    params = init(model)
    spec = traced(model).spec(0.5, solver="nearest", **METHODS[kind])
    maps = ifjax.transport_maps(params, spec)
    small = ifjax.apply_maps(params, spec, maps)
    large = ifjax.apply_maps(params, spec, maps, keep_shape=True)
    assert {p: x.shape for p, x in large.items()} == {p: x.shape for p, x in params.items()}
    got = function(model)(large, reference.inputs(model, 1))
    np.testing.assert_allclose(got, outputs(model, spec, small), atol=SINGLE)
    # The small network is what stands at the targets; everywhere else are zeros.
    cut = ifjax.take(large, spec, {name: found.targets for name, found in maps.items()})
    for path in small:
        np.testing.assert_allclose(cut[path], small[path], atol=1e-6, err_msg=path)
    for group in spec.groups:
        dropped = np.setdiff1d(np.arange(group.size), maps[group.name].targets)
        for m in group.members:
            if m.role in ("producer", "consumer", "additive", "mean"):
                assert np.all(np.take(np.asarray(large[m.path]), dropped, m.axis) == 0), m


def test_orders_agree_on_groups_that_share_no_leaf_and_differ_on_others():
    params = reference.init("mlp", 0, (8, 5, 6))
    graph = reference.trace("mlp", params)
    apart = ["fc0.weight", "fc2.weight"]
    for include, same in ((apart, True), (None, False)):
        got = [
            ifjax.fuse_params(params, graph.spec(0.5, include=include, order=order))
            for order in ("sequential", "simultaneous")
        ]
        close = all(np.allclose(got[0][p], got[1][p], rtol=0, atol=1e-6) for p in params)
        assert close == same


@pytest.mark.parametrize("method", ["prune", "fuse"])
def test_keep_shape_divides_by_no_zero(method):
    rng = np.random.default_rng(6)
    p = {"w": rng.normal(size=(4, 8)), "t": 1 + rng.random(8), "o": rng.normal(size=(8, 3))}
    p = {k: jnp.asarray(v, jnp.float32) for k, v in p.items()}

    def f(p, x):
        return ((x @ p["w"]) / p["t"][None]) @ p["o"]

    x = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    spec = ifjax.trace(f, p, x).spec(0.5, method=method)
    want = ifjax.shrink(f, spec)(ifjax.fuse_params(p, spec), x)
    np.testing.assert_allclose(f(ifjax.fuse_params(p, spec, keep_shape=True), x), want, rtol=1e-5)


@pytest.mark.parametrize("model", ["mlp", "vgg"])
def test_fusing_a_full_shape_result_again_changes_nothing(model):
    """The kept neurons stay where they are; what is dropped is zero, whatever it is added to."""
    params, spec = init(model), traced(model).spec(0.5)
    once = ifjax.fuse_params(params, spec, keep_shape=True)
    twice = ifjax.fuse_params(once, spec, keep_shape=True)
    for path in once:
        np.testing.assert_allclose(twice[path], once[path], rtol=1e-4, atol=1e-5, err_msg=path)
    got = outputs(model, spec, ifjax.compact(once, spec, ifjax.transport_maps(params, spec)))
    np.testing.assert_allclose(got, function(model)(once, reference.inputs(model, 1)), atol=1e-4)


def test_statistics_reach_the_maps():
    params = init("mlp")
    spec = traced("mlp").spec(0.5, importance="taylor", method="prune")
    grads = {k: np.arange(v.size, dtype=np.float32).reshape(v.shape) for k, v in params.items()}
    stats = ifjax.Stats(gradients=grads)
    small = ifjax.fuse_params(params, spec, stats=stats)
    expected = ifjax.apply_maps(params, spec, ifjax.transport_maps(params, spec, stats=stats))
    assert_same(small, expected)
    with pytest.raises(ValueError, match="taylor"):
        ifjax.fuse_params(params, spec)
