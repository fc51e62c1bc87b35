"""Re-indexed neurons: permutations change nothing, subsets are zeroed neurons."""

import jax
import numpy as np
import pytest

import ifjax
from tests import reference
from tests.fusion.tiny_networks import EPS, SINGLE, function, init, traced


@pytest.mark.parametrize("model", ["mlp", "vgg", "res"])
def test_a_permutation_of_any_group_leaves_the_outputs_unchanged(model):
    params, x = init(model), reference.inputs(model, 1)
    expected = function(model)(params, x)
    rng = np.random.default_rng(0)
    for group in traced(model).groups:
        order = rng.permutation(group.size)
        got = ifjax.take(params, traced(model), {group.name: order})
        np.testing.assert_allclose(function(model)(got, x), expected, atol=SINGLE)
        back = ifjax.take(got, traced(model), {group.name: np.argsort(order)})
        jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("model", ["mlp", "vgg", "res"])
def test_a_subset_equals_zeroed_neurons(model):
    rng = np.random.default_rng(1)
    graph = traced(model)
    kept = {g.name: np.sort(rng.permutation(g.size)[: g.size // 2]) for g in graph.groups}
    with jax.enable_x64(True):
        params, x = init(model, dtype=np.float64), reference.inputs(model, 1, np.float64)
        zeroed = dict(params)
        for group in graph.groups:
            dropped = np.setdiff1d(np.arange(group.size), kept[group.name])
            for m in group.members:
                if m.role == "consumer":
                    values = np.moveaxis(zeroed[m.path].copy(), m.axis, 0)
                    values[dropped] = 0
                    zeroed[m.path] = np.moveaxis(values, 0, m.axis)
        spec = graph.spec(keep={g.name: len(kept[g.name]) for g in graph.groups})
        got = ifjax.shrink(reference.apply(model, EPS), spec)(ifjax.take(params, spec, kept), x)
        np.testing.assert_allclose(got, function(model)(zeroed, x), rtol=0, atol=1e-9)


def test_indices_may_come_from_a_jitted_program():
    params = init("mlp")
    order = np.arange(8)[::-1]
    got = jax.jit(lambda index: ifjax.take(params, traced("mlp"), {"fc0.weight": index}))(order)
    expected = ifjax.take(params, traced("mlp"), {"fc0.weight": order.tolist()})
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"fc9": [0]}, r"unknown group 'fc9'"),
        ({"fc0.weight": [0, 8]}, r"fc0\.weight: expected indices in \[0, 8\), got \[0, 8\]"),
        ({"fc0.weight": [-1]}, r"expected indices in \[0, 8\)"),
        ({"fc0.weight": [[0, 1]]}, r"expected a vector .* shape \(1, 2\)"),
        ({"fc0.weight": []}, r"expected a vector of at least one integer index"),
        ({"fc0.weight": [0.0, 1.0]}, r"got float64"),
        ({"fc0.weight": np.ones(8, bool)}, r"got bool"),
    ],
    ids=["unknown", "large", "negative", "matrix", "none", "float", "mask"],
)
def test_indices_that_do_not_fit_are_refused(selection, message):
    with pytest.raises(ValueError, match=message):
        ifjax.take(init("mlp"), traced("mlp"), selection)
