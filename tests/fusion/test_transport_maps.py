"""Transport maps: scores, targets and plans of every group, on networks of a few neurons."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from scipy.spatial import distance

import ifjax
from ifjax.transport import Sinkhorn, centroids
from ifjax.transport.targets import targets_of
from tests import reference
from tests.fusion.tiny_networks import init, traced


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
