"""The study of the fold size, on a network small enough for a test."""

import jax
import numpy as np
import pytest

import ifjax
from ifjax import data
from tests import benchmark_module


@pytest.fixture(scope="module")
def study():
    return benchmark_module.loaded("fold_size")


@pytest.fixture(scope="module")
def lab(study):
    return study.Lab("mlp", data.load_digits(), epochs=4, tuning_epochs=1)


def test_a_row_has_what_its_folds_allow(study, lab):
    none = study.measure(lab, 1, "random", 0.0, 0)
    assert none["one"] == [pytest.approx(lab.accuracy(lab.start(0)), abs=0.01)]
    assert none["one, tuned"][0] > none["one"][0] + 10
    assert none["fused"] is none["average"] is none["two fused, tuned"] is None
    two = study.measure(lab, 1, "random", 0.0, 2)
    assert set(two) == {*study.BEFORE, *study.AFTER}
    assert two["fused"] == two["two fused"]
    assert two["one"][0] > none["one, tuned"][0]
    assert study.measure(lab, 1, "alpha = 0.1", 0.0, 2)["one"][0] < two["one"][0]
    assert study.measure(lab, 1, "random", 0.9, 2)["one"][0] < two["one"][0]


def test_half_of_the_neurons_are_pruned(lab):
    network = lab.start(0)
    biases = [
        {name: layer["bias"].size for name, layer in x.variables["params"].items()}
        for x in (network, lab.prune(network))
    ]
    assert biases[1] == {k: n if n == 10 else n // 2 for k, n in biases[0].items()}


def test_a_permuted_copy_is_fused_with_its_original(lab):
    network = lab.start(0)
    image = jax.ShapeDtypeStruct((1, *lab.dataset.image_shape), "float32")
    graph = ifjax.trace(network.apply_eval, network.variables, image)
    order = {g.name: np.random.default_rng(0).permutation(g.size) for g in graph.groups}
    copy = network._replace(variables=ifjax.take(network.variables, graph, order))
    images = lab.dataset.train_images[:512]
    logits = network.apply_eval(network.variables, images)

    def distance(other):
        found = other.apply_eval(other.variables, images)
        return np.linalg.norm(found - logits) / np.linalg.norm(logits)

    assert distance(copy) < 1e-6
    both = [network, copy], np.ones(2, np.float32), images
    # Sinkhorn's maps are soft.
    assert distance(lab.fuse(*both)) < 0.1 < 0.3 < distance(lab.average(*both))


def test_a_solver_that_stopped_early_is_told(study, lab):
    (name, found), *_ = lab.identity.items()
    assert study.converged({name: found._replace(converged=np.ones((), bool))})
    with pytest.raises(RuntimeError, match=name):
        study.converged({name: found})


def test_table_and_plot_have_every_row(study, tmp_path):
    rows = []
    for job in study.jobs([2, 4]):
        row = job | {name: [96.0, 98.0] for name in study.BEFORE + study.AFTER}
        rows.append(row if job["count"] > 1 else row | {"fused": None})
    table = [study.shown(row) for row in rows]
    assert [row["fold size"] for row in table[:4]] == ["1", "1/2", "1/4", "none"]
    assert table[1]["fused"] == "97.0 ± 1.4"
    assert table[0]["fused"] == "-"
    assert [row["folds"] for row in table[-4:]] == ["alpha = 1"] * 2 + ["alpha = 0.1"] * 2
    study.draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_interrupted_run_goes_on(study, monkeypatch, tmp_path):
    monkeypatch.setattr(study.record, "RESULTS", tmp_path)
    options = {"counts": [2], "seeds": 3}
    assert study.known(options) == []
    study.record.write("fold_size", [{"count": 1}], **options)
    assert study.known(options) == [{"count": 1}]
    assert study.known(options | {"seeds": 2}) == []
