"""Networks of folds, as a configuration wants them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import ifjax
from ifjax import data
from ifjax.experiment.config import Config
from ifjax.experiment.errors import UserError
from ifjax.experiment.fold_models import cut_folds, fuse_folds, prepare_folds, train_folds
from ifjax.experiment.journal import Journal
from ifjax.experiment.network import create

CONFIG = Config(
    mode="fap", model="mlp", folds=2, epochs=1, augment=False, calibration_images=64, progress=False
)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


def test_a_fold_has_one_device_of_a_cpu_at_most(digits: data.Dataset) -> None:
    """Devices of a CPU are forced ones, and share its cores: replicas would gain nothing."""
    layout = prepare_folds(CONFIG, digits).split.layout
    assert (layout.replicas, len(layout.devices)) == (1, min(2, len(jax.devices())))


def test_an_epoch_of_k_folds_has_a_kth_of_the_steps(digits: data.Dataset) -> None:
    whole = digits.num_train // CONFIG.batch_size
    assert prepare_folds(CONFIG, digits).by.steps_per_epoch == whole // 2


def test_folds_that_are_too_small_are_an_error(digits: data.Dataset) -> None:
    with pytest.raises(UserError, match=r"--folds: .*choose fewer folds or smaller batches"):
        prepare_folds(dataclasses.replace(CONFIG, folds=30), digits)


@pytest.mark.parametrize(("start", "equal"), [("same", True), ("own", False)])
def test_networks_begin_alike_or_apart(
    digits: data.Dataset, tmp_path: Path, start: str, equal: bool
) -> None:
    config = dataclasses.replace(CONFIG, fold_start=start, learning_rate=1e-12)
    training, network = prepare_folds(config, digits), create(config, digits)
    with Journal(tmp_path / "run", {}, None) as journal:
        (one, two), accuracies = train_folds(config, digits, network, training, journal)
        assert journal.seconds["folds"] > 0
    kernels = [tree["params"]["fc1"]["kernel"] for tree in (one, two)]
    assert np.allclose(*kernels, atol=1e-6) == equal
    assert np.allclose(kernels[0], network.variables["params"]["fc1"]["kernel"], atol=1e-6)
    assert len(accuracies) == 2


def test_folds_weigh_as_their_images(digits: data.Dataset) -> None:
    """A network that shares out nothing but its last bias shows the weights."""
    network = create(CONFIG, digits)
    graph = ifjax.trace(network.apply_eval, network.variables, np.zeros((1, 8, 8, 1), np.float32))
    training = prepare_folds(dataclasses.replace(CONFIG, split="dirichlet", alpha=0.5), digits)
    models = [network.variables, jax.tree.map(np.array, network.variables)]
    models[1]["params"]["linear"]["bias"] = models[1]["params"]["linear"]["bias"] + 1.0
    fused = fuse_folds(CONFIG, digits, graph, network, models, training)
    sizes = [len(fold) for fold in training.split.folds]
    assert sizes[0] != sizes[1]
    moved = fused["params"]["linear"]["bias"] - network.variables["params"]["linear"]["bias"]
    np.testing.assert_allclose(moved, sizes[1] / sum(sizes), rtol=1e-5)


def test_small_networks_of_all_folds_have_the_widths(digits: data.Dataset) -> None:
    network = create(CONFIG, digits)
    graph = ifjax.trace(network.apply_eval, network.variables, np.zeros((1, 8, 8, 1), np.float32))
    spec = graph.spec(0.5, importance="taylor", solver="nearest")
    models = [network.variables, create(CONFIG, digits, seed=1).variables]
    small = cut_folds(CONFIG, digits, network, models, spec, "taylor")
    struct = spec.small_struct(network.variables)
    for tree in small:
        jax.tree.map(lambda x, s: np.testing.assert_equal(x.shape, s.shape), tree, struct)
    training = prepare_folds(CONFIG, digits)
    fused = fuse_folds(CONFIG, digits, graph, network, small, training, spec)
    jax.tree.map(lambda x, s: np.testing.assert_equal(x.shape, s.shape), fused, struct)
