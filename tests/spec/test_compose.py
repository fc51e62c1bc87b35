"""Two cuts as one, against doing one after the other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.structure import axis as ex
from tests import reference
from tests.graph.test_onward import split, split_params

WIDTHS = {"mlp": (12, 9), "vgg": (6, 10), "res": (4, 8)}
MODELS = ("mlp", "vgg", "res", "split")


@functools.cache
def network(model):
    if model == "split":
        return split, split_params(), np.ones((2, 5, 3), np.float32)
    params = reference.init(model, 0, WIDTHS[model])
    return reference.apply(model, 1e-2), params, reference.inputs(model)


@functools.cache
def graph(model):
    return ifjax.trace(*network(model))


def second_of(kind, model, first, small):
    """A spec of the small network, without or with tracing it."""
    apply, _, x = network(model)
    if kind == "onward":
        again = ifjax.onward(graph(model), first)
    else:
        again = ifjax.trace(ifjax.shrink(apply, first), small, x)
    return again.spec(0.5, method="prune", importance="l2")


@pytest.mark.parametrize("kind", ["onward", "traced"])
@pytest.mark.parametrize("model", MODELS)
def test_the_composed_spec_is_that_of_the_twice_cut_network(model, kind, tmp_path):
    apply, params, x = network(model)
    first = graph(model).spec(0.4, method="prune")
    small = ifjax.fuse_params(params, first)
    second = second_of(kind, model, first, small)
    smaller = ifjax.fuse_params(small, second)
    whole = ifjax.compose(second, first)
    assert whole.method == second.method
    assert whole.weights() == (first.weights()[0], second.weights()[1])
    assert whole.flops() == (first.flops()[0], second.flops()[1])
    got = ifjax.shrink(apply, whole)(smaller, x)
    nested = ifjax.shrink(ifjax.shrink(apply, first), second)(smaller, x)
    np.testing.assert_allclose(got, nested, atol=1e-6)
    ifjax.save(tmp_path / "small", smaller, whole)
    loaded, spec = ifjax.load(tmp_path / "small")
    assert spec == whole
    np.testing.assert_array_equal(ifjax.shrink(apply, spec)(loaded, x), got)


def test_names_with_positions_are_matched_by_their_leaves():
    first = graph("split").spec(0.25)
    second = second_of("traced", "split", first, ifjax.fuse_params(network("split")[1], first))
    names = [{g.name for g in s.groups if "(" in g.name} for s in (first, second)]
    assert names[0]
    assert names[0] != names[1]
    assert ifjax.compose(second, first).groups[0].name in {g.name for g in first.groups}


def test_groups_of_one_neuron_stay():
    spec = graph("split").spec(keep={"w (0:8)": 1})
    small = ifjax.fuse_params(network("split")[1], spec)
    second = second_of("traced", "split", spec, small)
    whole = ifjax.compose(second, spec)
    assert whole.structure.widths["w (0:8)"] == 1
    assert whole.structure.shape("w") == (3, 1 + 3)


def test_specs_that_do_not_fit_are_refused():
    first = graph("mlp").spec(0.5)
    with pytest.raises(ValueError, match=r"fc0\.bias: expected shape \(6,\), .* got \(12,\)"):
        ifjax.compose(graph("mlp").spec(0.5), first)
    with pytest.raises(ValueError, match=r"bn0\.bias: expected shape \(6,\).*got none"):
        ifjax.compose(first, graph("vgg").spec({"conv1*": 0.5}))
    second = ifjax.onward(graph("mlp"), first).spec(0.5)
    leaves = tuple(
        dataclasses.replace(x, axes=(ex.Pinned(6),)) if x.path == "fc0.bias" else x
        for x in second.structure.leaves
    )
    loose = ifjax.FusionSpec(dataclasses.replace(second.structure, leaves=leaves))
    with pytest.raises(ValueError, match=r"fc0\.bias: the second spec cuts it to \(6,\), but .*3"):
        ifjax.compose(loose, first)


# Maps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["reference", "preserving"])
@pytest.mark.parametrize("model", ["mlp", "vgg"])
def test_composed_maps_do_what_two_maps_do(model, merge):
    """With uniform marginals that the solver meets."""
    _, params, _ = network(model)
    with jax.enable_x64(True):
        params = {k: jnp.asarray(v, jnp.float64) for k, v in params.items()}
        options = {"merge": merge, "solver": "exact"}
        first = graph(model).spec(0.3, **options)
        maps = ifjax.transport_maps(params, first)
        small = ifjax.apply_maps(params, first, maps)
        second = ifjax.onward(graph(model), first).spec(0.4, **options)
        more = ifjax.transport_maps(small, second)
        expected = ifjax.apply_maps(small, second, more)
        both = ifjax.compose_maps(more, maps)
        whole = ifjax.compose(second, first)
        got = ifjax.apply_maps(params, whole, both)
        structure = graph(model).structure
        refit = {path for n in structure.norms for path in (n.scale, n.variance)}
        for path in expected.keys() - refit:
            np.testing.assert_allclose(got[path], expected[path], atol=1e-9, err_msg=path)
        for n in structure.norms:  # the spread is another, the slope is not
            mine, theirs = (p[n.scale] / np.sqrt(p[n.variance] + n.eps) for p in (got, expected))
            np.testing.assert_allclose(mine, theirs, atol=1e-9)
        for name, found in both.items():
            n = structure.group[name].size
            np.testing.assert_allclose(found.map.sum(1), 1 / n, atol=1e-9)
            np.testing.assert_array_equal(found.targets, maps[name].targets[more[name].targets])


def test_composed_maps_of_pruning_are_the_remaining_neurons():
    _, params, x = network("res")
    first = graph("res").spec(0.3, method="prune")
    maps = ifjax.transport_maps(params, first)
    small = ifjax.apply_maps(params, first, maps)
    second = ifjax.onward(graph("res"), first).spec({"conv.weight": 0.5}, method="prune")
    more = ifjax.transport_maps(small, second)
    expected = ifjax.apply_maps(small, second, more)
    both = ifjax.compose_maps(more, maps)
    assert both.keys() == maps.keys() > more.keys()
    got = ifjax.apply_maps(params, ifjax.compose(second, first), both)
    for path, x in expected.items():
        np.testing.assert_array_equal(got[path], x, path)
    with pytest.raises(ValueError, match=r"group conv\.weight: expected a second .* got \(2, 1\)"):
        ifjax.compose_maps(more, {**maps, "conv.weight": wide(maps["conv.weight"])})


def wide(found):
    return found._replace(map=jnp.ones((4, 4)))


# Compaction -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [{"method": "prune"}, {}, {"merge": "preserving"}])
@pytest.mark.parametrize("model", ["mlp", "vgg", "res"])
def test_full_shape_results_compact_to_the_small_ones(model, method):
    _, params, _ = network(model)
    spec = graph(model).spec(0.5, solver="nearest", **method)
    maps = ifjax.transport_maps(params, spec)
    full = ifjax.apply_maps(params, spec, maps, keep_shape=True)
    expected = ifjax.apply_maps(params, spec, maps)
    targets = {name: np.asarray(found.targets) for name, found in maps.items()}
    for given in (maps, targets):
        got = ifjax.compact(full, spec, given)
        for path, x in expected.items():
            np.testing.assert_allclose(got[path], x, rtol=1e-6, atol=1e-7, err_msg=path)


def test_compaction_without_all_targets_is_refused():
    _, params, _ = network("mlp")
    spec = graph("mlp").spec(0.5, method="prune")
    with pytest.raises(ValueError, match=r"group fc0\.weight: expected 6 kept neurons, got none"):
        ifjax.compact(params, spec, {})
    with pytest.raises(ValueError, match=r"expected 6 kept neurons, got \(2,\)"):
        ifjax.compact(params, spec, {"fc0.weight": [0, 1], "fc1.weight": [0, 1, 2, 3]})
    with pytest.raises(ValueError, match="unknown group 'fc9'"):
        ifjax.compact(params, spec, {"fc9": [0]})
