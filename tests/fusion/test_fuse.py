"""The promises of fusion, on networks of a few neurons with random weights."""

import functools
import itertools
import math

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.transport import solvers
from tests import reference

WIDTHS = {"mlp": (8, 6), "vgg": (6, 8), "res": (4, 6)}
# Batch norms with an eps that matters.
EPS = 1e-2
# Changes of single-precision outputs of order one.
SINGLE = 1e-5
METHODS = {
    "prune": {"method": "prune"},
    "reference": {"merge": "reference"},
    "preserving": {"merge": "preserving"},
}
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *args, **kwargs: COMPILED.append(name) if "backend_compile" in name else None
)


def init(model, seed=0, dtype=np.float32):
    return reference.init(model, seed, WIDTHS[model], dtype)


@functools.cache
def traced(model):
    return reference.trace(model, init(model), EPS)


@functools.cache
def function(model):
    return jax.jit(reference.apply(model, EPS))


@functools.cache
def shrunk(model, plan):
    return jax.jit(ifjax.shrink(reference.apply(model, EPS), ifjax.FusionSpec(plan)))


def outputs(model, spec, small, dtype=np.float32):
    """Of the small network."""
    return np.asarray(shrunk(model, spec.structure)(small, reference.inputs(model, 1, dtype)))


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for path in expected:
        np.testing.assert_array_equal(got[path], expected[path], path)
        assert got[path].dtype == expected[path].dtype


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


# Dtypes, jit, gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", METHODS)
def test_half_precision_stays_and_is_computed_in_single(kind):
    params = {path: jnp.asarray(x, jnp.bfloat16) for path, x in init("vgg").items()}
    spec = traced("vgg").spec(0.5, **METHODS[kind])
    half = ifjax.fuse_params(params, spec)
    single = ifjax.fuse_params({p: x.astype(jnp.float32) for p, x in params.items()}, spec)
    for path, x in half.items():
        assert x.dtype == jnp.bfloat16, path
        # One rounding of the result, 2^-8; the scale is fitted to the rounded variance.
        np.testing.assert_allclose(
            x.astype(jnp.float32), single[path], rtol=1.5 * 2**-8, atol=1e-6, err_msg=path
        )


@pytest.mark.parametrize("kind", METHODS)
def test_double_precision_stays_and_is_computed_in_double(kind):
    params = init("vgg", dtype=np.float64)
    spec = traced("vgg").spec(0.5, solver="nearest", **METHODS[kind])
    single = ifjax.fuse_params({p: x.astype(np.float32) for p, x in params.items()}, spec)
    with jax.enable_x64(True):
        double = jax.tree.map(np.asarray, ifjax.fuse_params(params, spec))
    for path, x in double.items():
        assert x.dtype == np.float64, path
        np.testing.assert_allclose(x, single[path], rtol=1e-5, atol=1e-5, err_msg=path)
    if kind != "prune":
        assert np.any(double["fc.weight"] != double["fc.weight"].astype(np.float32))


def test_double_precision_from_numpy_is_single_where_jax_is():
    params = init("mlp", dtype=np.float64)
    small = ifjax.fuse_params(params, traced("mlp").spec(0.5))
    assert small["fc0.weight"].dtype == np.float32


@pytest.mark.parametrize("keep_shape", [False, True])
@pytest.mark.parametrize("kind", METHODS)
def test_shapes_are_those_of_eval_shape(kind, keep_shape):
    params = init("res")
    spec = traced("res").spec(0.4, **METHODS[kind])
    fuse = functools.partial(ifjax.fuse_params, spec=spec, keep_shape=keep_shape)
    found = jax.eval_shape(fuse, params)
    struct = spec.small_struct(params)
    small = fuse(params)
    for path, x in small.items():
        expected = params[path] if keep_shape else struct[path]
        assert x.shape == found[path].shape == expected.shape
        assert x.dtype == found[path].dtype == expected.dtype


@pytest.mark.parametrize("keep_shape", [False, True])
def test_one_compilation_for_one_spec(keep_shape):
    jitted = jax.jit(ifjax.fuse_params, static_argnames=("spec", "keep_shape"))
    first, second = ({k: jnp.asarray(v) for k, v in init("mlp", s).items()} for s in (0, 1))
    spec = traced("mlp").spec(0.3)
    jax.block_until_ready(jitted(first, spec, keep_shape=keep_shape))
    count = len(COMPILED)
    # An equal spec, made again, is the same one.
    again = ifjax.FusionSpec.from_json(spec.to_json())
    small = jitted(second, again, keep_shape=keep_shape)
    jax.block_until_ready(small)
    assert len(COMPILED) == count
    eager = ifjax.fuse_params(second, spec, keep_shape=keep_shape)
    for path in eager:
        np.testing.assert_allclose(small[path], eager[path], atol=1e-5, err_msg=path)


def test_called_eagerly_a_second_time_nothing_is_compiled():
    first, second = ({k: jnp.asarray(v) for k, v in init("vgg", s).items()} for s in (0, 1))
    spec = traced("vgg").spec(0.3)
    jax.block_until_ready(ifjax.fuse_params(first, spec))
    count = len(COMPILED)
    jax.block_until_ready(ifjax.fuse_params(second, spec))
    assert len(COMPILED) == count > 0


def test_groups_of_one_shape_share_their_programs():
    """A network twice as deep, of equal layers, compiles no more."""
    counts = []
    for depth in (4, 8):
        jax.clear_caches()
        params = reference.init("mlp", 0, (6,) * depth)
        spec = reference.trace("mlp", params).spec(0.5, solver="nearest")
        count = len(COMPILED)
        ifjax.fuse_params({k: jnp.asarray(v) for k, v in params.items()}, spec)
        counts.append(len(COMPILED) - count)
    # One more for the check that all leaves are finite, which knows their number.
    assert counts[1] <= counts[0] + 1


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_gradients_go_through_the_merge_and_not_through_the_maps(solver):
    params = {k: jnp.asarray(v) for k, v in init("vgg").items()}
    spec = traced("vgg").spec(0.5, solver=solver, epsilon=0.1)
    maps = ifjax.transport_maps(params, spec)

    def total(fuse):
        return lambda p: sum(jnp.sum(jnp.sin(x)) for x in fuse(p).values())

    got = jax.grad(total(lambda p: ifjax.fuse_params(p, spec)))(params)
    expected = jax.grad(total(lambda p: ifjax.apply_maps(p, spec, maps)))(params)
    for path in params:
        np.testing.assert_allclose(got[path], expected[path], rtol=1e-4, atol=1e-5, err_msg=path)
        assert np.all(np.isfinite(got[path]))
    assert np.any(got["conv0.weight"] != 0)


# take -------------------------------------------------------------------------------------------


# What is refused --------------------------------------------------------------------------------


def spec_of(model="mlp", **method):
    return traced(model).spec(0.5, solver="nearest", **method)


def without(tree, path):
    return {k: v for k, v in tree.items() if k != path}


@pytest.mark.parametrize(
    "call",
    [
        lambda p: ifjax.fuse_params(p, spec_of("vgg")),
        lambda p: ifjax.transport_maps(p, spec_of("vgg")),
        lambda p: ifjax.apply_maps(p, spec_of("vgg"), {}),
        lambda p: ifjax.take(p, traced("vgg"), {}),
    ],
    ids=["fuse_params", "transport_maps", "apply_maps", "take"],
)
def test_parameters_of_another_network_are_refused_by_leaf(call):
    params = init("vgg")
    with pytest.raises(ValueError, match=r"conv1\.weight: expected shape \(8, 6, 3, 3\), got \(3"):
        call({**params, "conv1.weight": np.ones((3, 6, 3, 3), np.float32)})
    with pytest.raises(ValueError, match=r"conv1\.weight: expected a leaf of shape .*got none"):
        call(without(params, "conv1.weight"))
    with pytest.raises(ValueError, match=r"extra: not a leaf of the network"):
        call({**params, "extra": np.ones(3)})
    with pytest.raises(ValueError, match=r"conv1\.weight: expected dtype float32, got int32"):
        call({**params, "conv1.weight": np.ones((8, 6, 3, 3), np.int32)})
    with pytest.raises(ValueError, match=r"bn0\.bias: expected shape \(6,\), got str"):
        call({**params, "bn0.bias": "six"})


def test_missing_statistics_are_named():
    with pytest.raises(ValueError, match=r"bn0\.running_mean: .*batch_stats"):
        ifjax.fuse_params(without(init("vgg"), "bn0.running_mean"), spec_of("vgg"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_counted_by_leaf(value):
    params = init("vgg")
    params["conv1.weight"][0, 0, 0, :2] = value
    with pytest.raises(ValueError, match=r"conv1\.weight: expected finite weights, got 2 of 432"):
        ifjax.fuse_params(params, spec_of("vgg"))
    half = {k: jnp.asarray(v, jnp.bfloat16) for k, v in params.items()}
    with pytest.raises(ValueError, match=r"got 2 of 432"):
        ifjax.fuse_params(half, spec_of("vgg"))


def test_inside_jit_nothing_is_raised():
    params = init("mlp")
    params["fc0.bias"][0] = math.nan
    jitted = jax.jit(ifjax.fuse_params, static_argnames="spec")
    assert jitted(params, spec_of())["fc0.bias"].shape == (4,)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"fc9": np.ones(8)}, r"unknown group 'fc9'; the groups are fc0\.weight, fc1\.weight"),
        ({"fc0.weight": np.ones(7)}, r"fc0\.weight: expected shape \(8,\), got \(7,\)"),
        ({"fc0.weight": np.full(8, np.nan)}, r"fc0\.weight: expected finite numbers"),
    ],
    ids=["unknown", "shape", "nan"],
)
def test_scores_that_do_not_fit_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        ifjax.fuse_params(init("mlp"), spec_of(), scores)


def test_maps_that_do_not_fit_are_refused():
    params, spec = init("mlp"), spec_of()
    maps = ifjax.transport_maps(params, spec)
    for found, message in (
        (without(maps, "fc0.weight"), r"fc0\.weight: expected .* shape \(8, 4\), got none"),
        ({**maps, "fc0.weight": maps["fc1.weight"]}, r"shape \(8, 4\), got \(6, 3\)"),
        ({**maps, "fc9": maps["fc0.weight"]}, r"unknown group 'fc9'"),
    ):
        with pytest.raises(ValueError, match=message):
            ifjax.apply_maps(params, spec, found)


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
