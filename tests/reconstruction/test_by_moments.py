"""Choice and solves without inputs: on moments that the network's statistics give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from ifjax.activations.analytic import Gaussian, LayerMoments


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape) / 2


def norm(p, x):
    return (x - p["mean"]) / jnp.sqrt(p["variance"] + 1e-5) * p["scale"] + p["offset"]


def statistics(seed, n):
    found = {k: normal(seed + i, n) for i, k in enumerate(("mean", "offset", "scale"))}
    return found | {"variance": 0.5 + normal(seed + 9, n) ** 2}


def dense(p, x):
    h = jax.nn.relu(norm(p["norm"], x @ p["in"]))
    return h @ p["left"] + jax.nn.relu(h) @ p["right"] + p["bias"]


def test_every_weight_is_solved_for_on_what_it_reads():
    params = {"in": normal(1, 6, 12), "left": normal(2, 12, 5), "right": normal(3, 12, 5)}
    params |= {"norm": statistics(4, 12), "bias": normal(20, 5)}
    with jax.enable_x64(True):
        struct = jax.ShapeDtypeStruct((1, 6), jnp.float64)
        spec = ifjax.trace(dense, params, struct).spec(0.5)
        moments = ifjax.analytic_moments(dense, params, struct)
        small, report = ifjax.compress(dense, params, spec, moments)
    [index] = report.kept.values()
    assert report.chosen[0].how == "moments of what its consumers read"
    means = 0.0
    for solved, name in zip(report.solved, ("left", "right"), strict=True):
        assert solved.sites == (name,)
        assert solved.offset == "bias"
        assert solved.after < solved.before
        [mean], [covariance] = moments[name]
        gram = covariance + np.outer(mean, mean)
        ridge = 0.01 * np.trace(gram[np.ix_(index, index)]) / len(index) * np.eye(len(index))
        left = covariance[np.ix_(index, index)] + ridge
        right = covariance[index] @ params[name] + ridge @ params[name][index]
        kernel = np.linalg.solve(left, right)
        np.testing.assert_allclose(small[name], kernel, rtol=1e-6)
        means = means + mean @ params[name] - mean[index] @ kernel
    np.testing.assert_allclose(small["bias"], params["bias"] + means, rtol=1e-6)


def before_norm(p, x):
    h = jax.nn.relu(norm(p["first"], x @ p["in"]))
    return jax.nn.relu(norm(p["second"], h @ p["w"])) @ p["out"]


def test_a_norm_reads_what_varies_as_before():
    """The best guess varies less, by what the neurons that are gone said alone."""
    params = {"in": normal(1, 6, 12), "w": normal(2, 12, 5), "out": normal(3, 5, 2)}
    params |= {"first": statistics(4, 12), "second": statistics(20, 5)}
    params["in"][:, 3] = 0  # a neuron that does not vary
    params["w"][:, 1] = 0  # reads nothing
    with jax.enable_x64(True):
        struct = jax.ShapeDtypeStruct((1, 6), jnp.float64)
        graph = ifjax.trace(before_norm, params, struct)
        spec = graph.spec(0.5, include=[graph.groups[0].name])
        moments = ifjax.analytic_moments(before_norm, params, struct)
        small, report = ifjax.compress(before_norm, params, spec, moments)
    [index], [solved] = report.kept.values(), report.solved
    assert solved.sites == ("w",)
    assert solved.offset == "second/mean"
    [mean], [covariance] = moments["w"]
    kernel, dense = small["w"], params["w"]
    own = covariance[np.ix_(index, index)]
    variance = np.diag(kernel.T @ own @ kernel)
    np.testing.assert_allclose(variance, np.diag(dense.T @ covariance @ dense), rtol=1e-6)
    gram = covariance + np.outer(mean, mean)
    ridge = 0.01 * np.trace(gram[np.ix_(index, index)]) / len(index) * np.eye(len(index))
    best = np.linalg.solve(own + ridge, covariance[index] @ dense + ridge @ dense[index])
    gain = kernel / np.where(best == 0, 1, best)
    np.testing.assert_allclose(gain[:, [0, 2, 3, 4]], gain[:1, [0, 2, 3, 4]].repeat(6, 0))
    assert (gain[0, [0, 2, 3, 4]] > 1).all()
    assert (kernel[:, 1] == 0).all()
    away = small["second"]["mean"] - mean[index] @ kernel
    np.testing.assert_allclose(away, params["second"]["mean"] - mean @ dense, rtol=1e-6)


def convolutional(p, x):
    numbers = ("NHWC", "HWIO", "NHWC")

    def conv(x, w, groups=1):
        options = {"dimension_numbers": numbers, "feature_group_count": groups}
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", **options)

    h = jax.nn.relu(norm(p["n1"], conv(x, p["c1"])))
    h = jax.nn.relu(norm(p["n2"], conv(h, p["grouped"], 2)))
    h = conv(h, p["depthwise"], p["depthwise"].shape[-1])
    h = jax.nn.relu(norm(p["n3"], conv(h, p["point"])))
    return h.mean((1, 2)) @ p["out"]


SHAPES = {"c1": (3, 3, 3, 8), "grouped": (3, 3, 4, 12), "depthwise": (3, 3, 1, 12)}
SHAPES |= {"point": (1, 1, 12, 10), "out": (10, 4)}
IMAGES = jax.ShapeDtypeStruct((1, 6, 6, 3), jnp.float32)


@pytest.fixture(scope="module")
def network():
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}
    params |= {"n1": statistics(20, 8), "n2": statistics(40, 12), "n3": statistics(60, 10)}
    return jax.tree.map(jnp.float32, params)


def test_convolutions_of_every_kind_and_all_widths(network):
    """Against plain pruning of the same neurons, on inputs of which nothing was seen."""
    spec = ifjax.trace(convolutional, network, IMAGES).spec(0.5)
    moments = ifjax.analytic_moments(convolutional, network, IMAGES)
    small, report = ifjax.compress(convolutional, network, spec, moments)
    assert {path for s in report.solved for path in s.sites} == {"grouped", "point", "out"}
    offsets = {s.sites[0]: s.offset for s in report.solved}
    assert offsets == {"grouped": "n2/mean", "point": "n3/mean", "out": None}
    apply_small, x = ifjax.shrink(convolutional, spec), normal(80, 16, 6, 6, 3)
    plain = ifjax.take(network, spec, report.kept)
    errors = [np.linalg.norm(apply_small(p, x) - convolutional(network, x)) for p in (plain, small)]
    assert errors[1] < 0.8 * errors[0]


def test_what_moments_cannot_do_is_said(network, tmp_path):
    graph = ifjax.trace(convolutional, network, IMAGES)
    moments = ifjax.analytic_moments(convolutional, network, IMAGES)
    with pytest.raises(ValueError, match='method="prune"'):
        ifjax.compress(convolutional, network, graph.spec(0.5, importance="l1"), moments)
    with pytest.raises(ValueError, match="no folder, frontier or altered"):
        ifjax.compress(convolutional, network, graph.spec(0.5), moments, folder=tmp_path)
    spec = graph.spec(0.5, importance="l1", method="prune")
    few = LayerMoments({"out": moments["out"]}, moments.inputs)
    _, report = ifjax.compress(convolutional, network, spec, few)
    assert {c.how for c in report.chosen} == {"importance"}
    assert [s.sites for s in report.solved] == [("out",)]
    assert ("grouped", "no moments of what it reads") in report.follows
    _, report = ifjax.compress(convolutional, network, graph.spec(0.5), few)
    assert {c.how for c in report.chosen} > {"no moments; by importance"}


@pytest.mark.parametrize("layer", ["grouped", "out"])
def test_moments_of_another_network_are_refused(network, layer):
    spec = ifjax.trace(convolutional, network, IMAGES).spec(0.5)
    other = LayerMoments({layer: Gaussian(np.zeros((1, 5)), np.eye(5)[None])}, (IMAGES,))
    with pytest.raises(ValueError, match=f"^{layer}: expected a mean of .* of another network"):
        ifjax.compress(convolutional, network, spec, other)
