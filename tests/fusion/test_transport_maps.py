"""Transport maps: scores, targets and plans of every group, on networks of a few neurons."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from scipy.spatial import distance

import ifjax
from ifjax import importance
from ifjax.transport import Sinkhorn, centroids
from ifjax.transport.targets import targets_of
from tests import reference

SCORES = [name for name in importance.names() if name != "reconstruction"]  # which has none

WIDTHS = {"mlp": (8, 6), "vgg": (6, 8)}


def init(model, seed=0):
    return reference.init(model, seed, WIDTHS[model])


@functools.cache
def traced(model):
    return reference.trace(model, init(model), 1e-2)


def test_sparsity_of_one_group_leaves_the_others_scores_alone():
    """A random metric draws for each group on its own, and the seed is part of the spec."""
    params = init("mlp")
    chosen = [
        ifjax.transport_maps(
            params, traced("mlp").spec(0.5, method="prune", importance="random", seed=seed)
        )
        for seed in (0, 0, 1)
    ]
    targets = [{k: tuple(np.asarray(v.targets)) for k, v in maps.items()} for maps in chosen]
    assert targets[0] == targets[1]
    assert targets[0] != targets[2]


def test_scores_can_be_read_before_the_norm_is_folded():
    params = init("vgg")
    params["bn0.weight"][:] = [10, 10, 10, 0.01, 0.01, 0.01]
    params["conv0.weight"][3:] *= 10
    params["conv1.weight"][:] = 0.01
    for kind, expected in (("folded", [0, 1, 2]), ("raw", [3, 4, 5])):
        spec = traced("vgg").spec({"conv0*": 0.5}, method="prune", scores_on=kind)
        (found,) = ifjax.transport_maps(params, spec).values()
        assert found.targets.tolist() == expected


def test_scores_may_be_integers():
    scores = {"fc0.weight": np.arange(8)}
    maps = ifjax.transport_maps(init("mlp"), traced("mlp").spec(0.5, solver="nearest"), scores)
    assert maps["fc0.weight"].targets.tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("p", [1.0, 2.0, "cosine"])
def test_the_cost_of_a_map_is_that_of_the_distances_between_neurons(p):
    rng = np.random.default_rng(0)
    params = {"w1": rng.normal(size=(5, 8)), "w2": rng.normal(size=(8, 3))}
    params = {name: jnp.float32(x) for name, x in params.items()}
    graph = ifjax.trace(lambda w, x: x @ w["w1"] @ w["w2"], params, jnp.ones((1, 5)))
    found = ifjax.transport_maps(params, graph.spec(0.5, cost_p=p, solver="exact"))["w1"]
    rows = np.float64(np.concatenate([params["w1"].T, params["w2"]], axis=1))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    metric = {1.0: "cityblock", 2.0: "euclidean", "cosine": "cosine"}[p]
    cost = distance.cdist(rows, rows[found.targets], metric)
    best = ot.emd2(np.full(8, 1 / 8), np.full(4, 1 / 4), cost)
    np.testing.assert_allclose(found.cost, best, rtol=1e-5)


def test_sinkhorn_that_does_not_converge_says_so():
    solver = Sinkhorn(epsilon=0.00123, max_iterations=10)
    params, spec = init("mlp"), traced("mlp").spec(0.5, solver=solver)
    message = (
        r"Sinkhorn\(.*\) did not converge for [12] of 2 groups, first fc1\.weight: marginal "
        r"error .* after 10 iterations at epsilon 0\.00123; use a larger epsilon, or solver='exact'"
    )
    with pytest.raises(RuntimeError, match=message):
        ifjax.fuse_params(params, spec)
    maps = jax.jit(ifjax.transport_maps, static_argnums=1)(params, spec)
    assert not maps["fc1.weight"].converged


def missing():
    raise ImportError("solver 'exact' needs POT: pip install 'ifjax[exact]'")


@pytest.mark.parametrize("choice", [{"source_marginal": "importance"}, {"keep": 3}])
def test_exact_without_pot_is_refused_before_anything_is_computed(monkeypatch, choice):
    monkeypatch.setattr("ifjax.transport.solvers.host.pot", missing)
    monkeypatch.setattr("ifjax.fusion.execution.solve.problem_of", pytest.fail)
    choice = {"keep": 4} | choice
    with pytest.raises(ImportError, match=r"pip install 'ifjax\[exact\]'"):
        ifjax.fuse_params(init("mlp"), traced("mlp").spec(**choice, solver="exact"))


def test_pruning_and_assignments_need_no_pot(monkeypatch):
    monkeypatch.setattr("ifjax.transport.solvers.host.pot", missing)
    for choice in ({"method": "prune"}, {}):
        spec = traced("mlp").spec(0.5, solver="exact", **choice)
        assert ifjax.fuse_params(init("mlp"), spec)["fc0.weight"].shape == (4, 6)


def test_init_warm_starts_sinkhorn():
    """From the previous potentials, slightly changed weights need fewer iterations."""
    rng = np.random.default_rng(5)
    before = {"w1": rng.normal(size=(7, 24)), "w2": rng.normal(size=(24, 3))}
    after = {k: w + 1e-3 * rng.normal(size=w.shape) for k, w in before.items()}
    before, after = (
        {k: jnp.asarray(w, jnp.float32) for k, w in p.items()} for p in (before, after)
    )
    graph = ifjax.trace(lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"], before, jnp.ones((1, 7)))
    spec = graph.spec(0.5)
    first = ifjax.transport_maps(before, spec)
    cold, warm = ifjax.transport_maps(after, spec), ifjax.transport_maps(after, spec, init=first)
    assert warm["w1"].converged
    assert warm["w1"].iterations < cold["w1"].iterations
    np.testing.assert_allclose(warm["w1"].map, cold["w1"].map, atol=2e-3 / 24)
    short = {"w1": first["w1"]._replace(potential=jnp.zeros(3))}
    with pytest.raises(ValueError, match=r"init of group w1: expected .* \(24,\), got \(3,\)"):
        ifjax.transport_maps(after, spec, init=short)
    with pytest.raises(ValueError, match=r"unknown group 'fc9'; the groups are"):
        ifjax.transport_maps(after, spec, init={**first, "fc9": next(iter(first.values()))})


# Importances ------------------------------------------------------------------------------------


def batch(model):
    rng = np.random.default_rng(3)
    x = reference.inputs(model, 3)
    return (x,), rng.normal(size=(len(x), 5 if model == "mlp" else 10)).astype(np.float32)


def loss(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


@functools.cache
def stats(model):
    return ifjax.collect_stats(
        reference.apply(model, 1e-2),
        init(model),
        traced(model),
        [batch(model)],
        loss_fn=loss,
        metrics=("taylor", "fisher", "chip"),
    )


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("model", ["mlp", "vgg"])
def test_every_importance_fuses_and_prunes_in_either_order(model, name):
    params, small = init(model), {}
    for method, order in itertools.product(("fuse", "prune"), ("sequential", "simultaneous")):
        spec = traced(model).spec(
            0.5, importance=name, method=method, order=order, solver="nearest"
        )
        if (model, name) == ("mlp", "bn_scale"):
            with pytest.raises(ValueError, match=r"group fc1\.weight: importance 'bn_scale' reads"):
                ifjax.fuse_params(params, spec, stats=stats(model))
            continue
        maps = ifjax.transport_maps(params, spec, stats=stats(model))
        small[method, order] = ifjax.fuse_params(params, spec, stats=stats(model))
        for path, x in small[method, order].items():
            assert x.shape == spec.structure.shape(path)
            assert np.all(np.isfinite(x)), (method, order, path)
        scores = ifjax.neuron_scores(params, spec, stats(model))
        first = spec.structure.in_order()[0].name  # nothing has changed before its turn
        assert sorted(scores) == sorted(maps)
        for group in maps if order == "simultaneous" or name in STILL else [first]:
            kept = np.sort(np.argsort(-scores[group], stable=True)[: spec.structure.widths[group]])
            np.testing.assert_array_equal(maps[group].targets, kept, group)
    for order in ("sequential", "simultaneous") if small else ():
        assert any(np.any(small["fuse", order][p] != small["prune", order][p]) for p in params)


# Importances that do not look at weights that earlier groups have changed.
STILL = ("bn_scale", "taylor", "fisher", "chip", "random")


def test_taylor_sums_weights_times_gradients_in_every_kernel():
    params, gradients = init("mlp"), {k: np.sin(v) for k, v in init("mlp", 1).items()}
    spec = traced("mlp").spec(0.5, importance="taylor", reduction="sum", normalization="none")
    got = ifjax.neuron_scores(params, spec, ifjax.Stats(gradients=gradients))
    product = {k: params[k].astype(np.float64) * gradients[k] for k in params}
    for name, after in (("fc0.weight", "fc1.weight"), ("fc1.weight", "fc2.weight")):
        expected = np.abs(product[name].sum(1)) + np.abs(product[after].sum(0))
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, err_msg=name)
    halved = ifjax.Stats(gradients=gradients, count=2.0)
    assert ifjax.neuron_scores(params, spec, halved)["fc0.weight"].shape == (8,)


def test_gradients_of_weights_alone_suffice_and_lie_where_the_weights_do():
    params = {"params": init("mlp")}
    apply = reference.apply("mlp")
    graph = ifjax.trace(lambda p, x: apply(p["params"], x), params, reference.inputs("mlp"))
    spec = graph.spec(0.5, importance="taylor", solver="nearest")
    gradients = {k: v for k, v in init("mlp", 1).items() if k.endswith("weight")}
    right = ifjax.Stats(gradients={"params": gradients})
    assert ifjax.fuse_params(params, spec, stats=right)["params"]["fc0.weight"].shape == (4, 6)
    message = r"gradients of params/fc1\.weight: expected shape .* got none; .* \{\"params\": grads"
    with pytest.raises(ValueError, match=message):
        ifjax.fuse_params(params, spec, stats=ifjax.Stats(gradients=gradients))


def test_scores_of_batch_norms_are_the_sizes_of_their_scales():
    params = init("vgg")
    spec = traced("vgg").spec(0.5, importance="bn_scale", normalization="max")
    scale = np.abs(params["bn0.weight"])
    got = ifjax.neuron_scores(params, spec)["conv0.weight"]
    np.testing.assert_allclose(got, scale / scale.max(), rtol=1e-6)


def test_scales_of_norms_that_cannot_be_folded_are_read_as_well():
    """A norm before the kernel, on a stream that it cannot be folded into."""

    def network(p, x):
        h = x @ p["a"] + jnp.sin(x) @ p["b"]
        h = (h - p["mean"]) * jax.lax.rsqrt(p["variance"] + 1e-5) * p["scale"] + p["offset"]
        return jax.nn.relu(h) @ p["c"]

    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (3, 4), "c": (4, 2)}
    shapes |= dict.fromkeys(("mean", "variance", "scale", "offset"), (4,))
    p = {k: jnp.asarray(rng.uniform(0.5, 1, s), jnp.float32) for k, s in shapes.items()}
    graph = ifjax.trace(network, p, jnp.ones((2, 3)))
    assert graph.structure.norms == ()
    spec = graph.spec(0.5, importance="bn_scale", normalization="none")
    (got,) = ifjax.neuron_scores(p, spec).values()
    np.testing.assert_allclose(got, p["scale"], rtol=1e-6)


def test_the_first_member_is_the_first_producer_and_not_the_first_leaf():
    rng = np.random.default_rng(1)
    p = {"a": rng.normal(size=(5, 2)), "b": rng.normal(size=(3, 5)), "c": rng.normal(size=(3, 5))}
    p = {k: jnp.asarray(v, jnp.float32) for k, v in p.items()}

    def network(p, x):  # a consumes; c produces before b does
        return jax.nn.relu(x @ p["c"] + jnp.sin(x) @ p["b"]) @ p["a"]

    graph = ifjax.trace(network, p, jnp.ones((2, 3)))
    got = {}
    for reduction in importance.REDUCTIONS:
        spec = graph.spec(0.5, reduction=reduction, normalization="none")
        (got[reduction],) = ifjax.neuron_scores(p, spec).values()
    each = [np.abs(p["c"]).sum(0), np.abs(p["b"]).sum(0), np.abs(p["a"]).sum(1)]
    np.testing.assert_allclose(got["first"], each[0], rtol=1e-6)
    np.testing.assert_allclose(got["sum"], np.sum(each, 0), rtol=1e-6)
    np.testing.assert_allclose(got["mean"], np.mean(each, 0), rtol=1e-6)
    np.testing.assert_allclose(got["max"], np.max(each, 0), rtol=1e-6)


def test_reductions_change_the_order_and_normalisations_the_scale():
    params, found = init("vgg"), {}
    choices = [(r, "none") for r in importance.REDUCTIONS]
    choices += [("mean", n) for n in importance.NORMALIZATIONS]
    for reduction, normalization in choices:
        spec = traced("vgg").spec(
            {"conv0*": 0.5}, reduction=reduction, normalization=normalization, scores_on="raw"
        )
        (found[reduction, normalization],) = ifjax.neuron_scores(params, spec).values()
    plain = found["mean", "none"]
    for normalization, unit in (("mean", plain.mean()), ("max", plain.max()), ("sum", plain.sum())):
        np.testing.assert_allclose(found["mean", normalization], plain / unit, rtol=1e-6)
    orders = {tuple(np.argsort(found[r, "none"]).tolist()) for r in importance.REDUCTIONS}
    assert len(orders) > 1


def test_statistics_may_be_traced_and_compile_once():
    traces = []

    def fuse(params, spec, stats):
        traces.append(spec)
        return ifjax.fuse_params(params, spec, stats=stats)

    jitted = jax.jit(fuse, static_argnames="spec")
    spec = traced("mlp").spec(0.5, importance="fisher", solver="nearest")
    for seed in range(2):
        params = {k: jnp.asarray(v) for k, v in init("mlp", seed).items()}
        fisher = {k: v * (seed + 1) for k, v in stats("mlp").fisher.items()}
        given = ifjax.Stats(fisher=fisher, count=jnp.float32(2))
        got, expected = jitted(params, spec, given), ifjax.fuse_params(params, spec, stats=given)
        for path in expected:
            np.testing.assert_allclose(got[path], expected[path], atol=1e-6, err_msg=path)
    assert len(traces) == 1


def test_scores_stand_in_for_statistics_of_their_group():
    spec = traced("mlp").spec(0.5, importance="fisher", solver="nearest")
    only = ifjax.Stats(fisher={"fc1.weight": jnp.arange(6.0)})
    with pytest.raises(ValueError, match=r"fisher of fc0\.weight: expected shape \(8,\), got none"):
        ifjax.transport_maps(init("mlp"), spec, stats=only)
    scores = {"fc0.weight": np.arange(8)}
    maps = ifjax.transport_maps(init("mlp"), spec, scores, only)
    assert maps["fc0.weight"].targets.tolist() == [4, 5, 6, 7]
    assert maps["fc1.weight"].targets.tolist() == [3, 4, 5]
    both = scores | {"fc1.weight": np.arange(6)}
    assert set(ifjax.transport_maps(init("mlp"), spec, both)) == set(maps)


# Centroids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kmeans", "gaussian_mixture"])
def test_neurons_are_transported_to_the_centroids_of_their_features(kind):
    # Neurons in pairs, so that the last digit of a feature decides nothing.
    pairs = {k: np.array(x) for k, x in init("mlp").items()}
    pairs["fc0.weight"][4:] = 0.3 * pairs["fc0.weight"][4:] + pairs["fc0.weight"][:4]
    pairs["fc1.weight"][:, 4:] = 0.3 * pairs["fc1.weight"][:, 4:] + pairs["fc1.weight"][:, :4]
    params = jax.tree.map(jnp.asarray, pairs)
    spec = traced("mlp").spec(
        {"fc0*": 0.5},
        targets="centroids",
        centroids=kind,
        solver="exact",
        cost_p=2.0,
        target_marginal="importance",
        source_marginal="importance",
    )
    (found,) = ifjax.transport_maps(params, spec).values()
    rows = np.concatenate([params["fc0.weight"], params["fc1.weight"].T], 1).astype(np.float64)
    scores = np.abs(params["fc0.weight"]).sum(1) + np.abs(params["fc1.weight"]).sum(0)
    features = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 1)
    made = targets_of(kind).clusters(
        jnp.asarray(features, jnp.float32), 4, key, jnp.asarray(scores, jnp.float32)
    )
    np.testing.assert_array_equal(found.targets, made.targets)
    distance = np.linalg.norm(features[:, None] - np.asarray(made.centroids), axis=-1)
    mass = scores @ np.asarray(made.shares)
    plan = ot.emd(scores / scores.sum(), mass / mass.sum(), distance)
    np.testing.assert_allclose(found.map, plan, atol=1e-5)
    np.testing.assert_allclose(found.cost, (plan * distance).sum(), rtol=1e-4)


@pytest.mark.parametrize("kind", ["kmeans", "gaussian_mixture"])
def test_centroids_fuse_under_jit_as_they_do_eagerly(kind):
    params = init("mlp")
    spec = traced("mlp").spec({"fc0*": 0.5}, targets="centroids", centroids=kind, solver="nearest")
    got = jax.jit(ifjax.fuse_params, static_argnames=("spec", "keep_shape"))(
        params, spec, keep_shape=True
    )
    (found,) = ifjax.transport_maps(params, spec).values()
    expected = ifjax.apply_maps(params, spec, {"fc0.weight": found}, keep_shape=True)
    for path in expected:
        np.testing.assert_allclose(got[path], expected[path], atol=1e-5, err_msg=path)
    alive = np.flatnonzero(np.any(np.asarray(got["fc0.weight"]) != 0, 1))
    np.testing.assert_array_equal(alive, found.targets)  # the places of the representatives


def test_duplicates_are_found_by_their_centroids_and_merge_without_change():
    """Four neurons and a scaled-down consumer copy of each: four centroids, whatever the scores."""
    params = init("mlp")
    copies = np.arange(8) % 4
    for path, axis in (("fc0.weight", 0), ("fc0.bias", 0), ("fc1.weight", 1)):
        params[path] = np.take(params[path], copies, axis)
    spec = traced("mlp").spec(
        {"fc0*": 0.5}, targets="centroids", solver="nearest", merge="preserving"
    )
    (found,) = ifjax.transport_maps(params, spec).values()
    assert sorted(np.asarray(found.targets) % 4) == [0, 1, 2, 3]
    small = ifjax.fuse_params(params, spec)
    x = reference.inputs("mlp", 1)
    got = ifjax.shrink(reference.apply("mlp"), spec)(small, x)
    np.testing.assert_allclose(got, reference.apply("mlp")(params, x), atol=1e-5)


def test_pruning_to_centroids_keeps_their_representatives():
    params = init("mlp")
    spec = traced("mlp").spec({"fc0*": 0.5}, targets="centroids", method="prune")
    (found,) = ifjax.transport_maps(params, spec).values()
    small = ifjax.fuse_params(params, spec)
    np.testing.assert_array_equal(small["fc0.weight"], params["fc0.weight"][found.targets])


def test_a_mixture_without_scikit_learn_is_refused_before_anything_is_computed(monkeypatch):
    def missing():
        raise ImportError("centroids 'gaussian_mixture' needs scikit-learn")

    monkeypatch.setattr(centroids, "_mixture", missing)
    monkeypatch.setattr(ifjax.fusion.transport_maps, "checked_leaves", pytest.fail)
    spec = traced("mlp").spec(0.5, targets="centroids", centroids="gaussian_mixture")
    with pytest.raises(ImportError, match="needs scikit-learn"):
        ifjax.fuse_params(init("mlp"), spec)


@pytest.mark.parametrize("solver", ["nearest", "exact"])
def test_an_accelerator_s_way_to_the_maps_gives_the_same_maps(solver, monkeypatch):
    """There the features are one matrix, and the costs one sum."""
    params = init("vgg")
    spec = traced("vgg").spec(0.5, solver=solver)
    want = ifjax.transport_maps(params, spec)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    got = jax.jit(ifjax.transport_maps, static_argnames="spec")(params, spec)
    for name, found in want.items():
        np.testing.assert_array_equal(got[name].targets, found.targets)
        np.testing.assert_allclose(got[name].map, found.map, atol=1e-6)
        np.testing.assert_allclose(got[name].cost, found.cost, rtol=1e-5)
