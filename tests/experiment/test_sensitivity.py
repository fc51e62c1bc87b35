"""One group alone: the same accuracy at full width as at the small one."""

import dataclasses

import jax.numpy as jnp
import pytest

import ifjax
from ifjax import data
from ifjax.experiment.config import Config
from ifjax.experiment.network import create
from ifjax.experiment.runner import evaluator
from ifjax.experiment.sensitivity import accuracy_alone, one_at_a_time, table

CONFIG = Config(
    model="mlp", sparsities=(0.9, 0.5), importances=("l1", "random"), solver="nearest", seed=1
)


def test_every_group_every_setting_and_the_accuracy_of_the_small_network() -> None:
    dataset = data.load("digits")
    network = create(CONFIG, dataset)
    test = evaluator(CONFIG, dataset, network)
    graph = ifjax.trace(network.apply_eval, network.variables, jnp.zeros((1, 8, 8, 1)))
    found = dict(one_at_a_time(CONFIG, graph, graph.spec(0.5)))
    assert list(found) == ["params/fc1/kernel", "params/fc2/kernel"]
    for name, specs in found.items():
        assert [(s, i, m) for s, i, m, _ in specs] == [
            (s, i, m) for s in (0.5, 0.9) for i in ("l1", "random") for m in ("prune", "fuse")
        ]
        for sparsity, score, method, spec in specs:
            assert spec.structure.widths == {name: round(128 * (1 - sparsity) - 0.3)}
            assert (spec.method.importance, spec.method.method) == (score, method)
    spec = found["params/fc1/kernel"][3][3]
    at_full_width = accuracy_alone(CONFIG, dataset, network, spec, None, test)
    groups = tuple(dataclasses.replace(g, exact=False) for g in spec.groups)
    doubtful = dataclasses.replace(
        spec, structure=dataclasses.replace(spec.structure, groups=groups)
    )
    assert accuracy_alone(CONFIG, dataset, network, doubtful, None, test) == at_full_width


def test_a_table_without_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one record"):
        table([])
