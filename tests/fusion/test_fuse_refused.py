"""Parameters, scores and maps that do not fit are refused, each by its name."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from tests.fusion.tiny_networks import init, traced


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
