"""Rounds, statistics and optimizer state, beside what the library's own functions give."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax import data
from ifjax.experiment.compression import (
    calibrate,
    check_importances,
    fuse_state,
    reconstruct_state,
    stages,
)
from ifjax.experiment.config import Config
from ifjax.experiment.network import Network, create
from ifjax.experiment.runner import optimization, train_step
from ifjax.experiment.variants import variants
from ifjax.training import create_state, cross_entropy

CONFIG = Config(
    model="mlp",
    batch_size=32,
    sparsities=(0.5,),
    rounds=2,
    importances=("l1", "linf"),
    calibration_images=96,
    solver="nearest",
)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def network(digits: data.Dataset) -> Network:
    return create(CONFIG, digits)


@pytest.fixture(scope="module")
def graph(network: Network) -> ifjax.DependencyGraph:
    return ifjax.trace(network.apply_eval, network.variables, jnp.zeros((1, 8, 8, 1)))


def test_one_compiled_step_serves_every_importance_and_method(
    digits: data.Dataset, network: Network, graph: ifjax.DependencyGraph
) -> None:
    (group,) = variants(CONFIG, graph)
    assert len(group) == 6
    by = optimization(CONFIG, digits, 0.5, 0.01)
    rounds = stages(CONFIG, digits, network, group[0].spec, by)
    batch = next(iter(digits.train_batches(32, seed=0, epoch=0)))
    for variant in group:
        state, now = create_state(network.variables, by.optimizer), network
        for (step, total), stage in zip(
            ifjax.iterated(variant.spec, CONFIG.rounds), rounds, strict=True
        ):
            if variant.method == "reconstruct":
                state = reconstruct_state(CONFIG, digits, now, state, step, None)
            else:
                state = fuse_state(state, step, None)
            now = stage.network
            assert stage.total.structure.widths == total.structure.widths
            stage.test(state.variables)
            state, _ = stage.step(state, batch.images, batch.labels)
        shapes = {p: x.shape for p, x in ifjax.tree.leaves_by_path(state.variables).items()}
        assert shapes == {p: variant.spec.structure.shape(p) for p in shapes}
    assert [stage.step._cache_size() for stage in rounds] == [1, 1]


def test_optimizer_state_goes_along_with_the_kept_neurons(
    digits: data.Dataset, network: Network, graph: ifjax.DependencyGraph
) -> None:
    by = optimization(CONFIG, digits, 1, 0.01)
    step = train_step(CONFIG, digits, network, by)
    state = create_state(network.variables, by.optimizer)
    for batch in list(digits.train_batches(32, seed=0, epoch=0))[:2]:
        state, _ = step(state, batch.images, batch.labels)
    spec = graph.spec(0.5, method="prune")
    maps = ifjax.transport_maps(state.variables, spec)
    kept = {name: found.targets for name, found in maps.items()}
    small = fuse_state(state, spec, None)
    full = {"params": state.opt_state[1][0].trace}
    jax.tree.map(
        np.testing.assert_array_equal,
        {"params": small.opt_state[1][0].trace},
        ifjax.take(full, spec, kept),
    )
    assert np.abs(small.opt_state[1][0].trace["fc1"]["kernel"]).max() > 0
    assert int(small.opt_state[1][1].count) == int(small.step) == 2


def test_statistics_are_those_of_so_many_images(
    digits: data.Dataset, network: Network, graph: ifjax.DependencyGraph
) -> None:
    spec = graph.spec(0.5)
    stats = calibrate(CONFIG, digits, network, spec, ("l1", "taylor", "fisher"))
    assert stats is not None
    assert float(stats.count) == 96
    assert stats.chip is None
    batches = list(digits.train_batches(32, seed=0, epoch=0))[:3]
    images = jnp.concatenate([digits.normalize(batch.images) for batch in batches])
    labels = jnp.concatenate([batch.labels for batch in batches])

    def loss(variables):
        return cross_entropy(network.apply_eval(variables, images), labels).sum()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        stats.gradients,
        jax.grad(loss)(network.variables),
    )
    assert calibrate(CONFIG, digits, network, spec, ("l1", "lamp")) is None


@pytest.mark.parametrize("importance", ["taylor", "fisher", "chip"])
def test_reconstruction_keeps_the_neurons_that_statistics_choose(
    digits: data.Dataset, network: Network, graph: ifjax.DependencyGraph, importance: str
) -> None:
    config = dataclasses.replace(
        CONFIG, importances=(importance,), methods=("reconstruct",), rounds=1
    )
    ((variant,),) = variants(config, graph)
    stats = calibrate(config, digits, network, variant.spec, (importance,))
    by = optimization(config, digits, 1, 0.01)
    state = create_state(network.variables, by.optimizer)
    small = reconstruct_state(config, digits, network, state, variant.spec, stats)
    maps = ifjax.transport_maps(network.variables, variant.spec, stats=stats)
    kept = maps["params/fc1/kernel"].targets
    full = network.variables["params"]["fc1"]["bias"] + 0.0  # what is before the first cut stays
    np.testing.assert_array_equal(small.variables["params"]["fc1"]["bias"], full[kept])


def test_an_importance_without_what_it_reads_is_refused_before_training(
    digits: data.Dataset, network: Network, graph: ifjax.DependencyGraph
) -> None:
    spec = graph.spec(0.5)
    config = dataclasses.replace(CONFIG, importances=("l1", "lamp", "taylor", "fisher", "chip"))
    check_importances(config, digits, network, spec)
    config = dataclasses.replace(CONFIG, importances=("bn_scale",))
    with pytest.raises(ValueError, match=r"params/fc[12]/kernel.*bn_scale"):
        check_importances(config, digits, network, spec)
