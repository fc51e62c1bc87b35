"""Which specs a configuration stands for."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

import ifjax
from ifjax.experiment.config import Config
from ifjax.experiment.errors import UserError
from ifjax.experiment.variants import sparsity_of_share, variants

PARAMS = {"w1": jnp.ones((3, 40)), "w2": jnp.ones((40, 25)), "w3": jnp.ones((25, 4))}
GRAPH = ifjax.trace(
    lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["w1"]) @ p["w2"]) @ p["w3"],
    PARAMS,
    jnp.ones((1, 3)),
)
TOTAL = 3 * 40 + 40 * 25 + 25 * 4


def weights(sparsity: float) -> int:
    a, b = (max(1, int(n * (1 - sparsity) + 1e-9)) for n in (40, 25))
    return 3 * a + a * b + b * 4


@pytest.mark.parametrize("share", [0.03, 0.4, 0.5, 0.77, 0.9, 0.98])
def test_the_sparsity_of_a_share_is_the_nearest_of_all(share: float) -> None:
    """Beside a search through all thousandths."""
    found = sparsity_of_share(GRAPH.spec, share)
    assert GRAPH.spec(found).weights() == (TOTAL, weights(found))
    misses = [abs(1 - weights(k / 1000) / TOTAL - share) for k in range(1, 1000)]
    assert abs(1 - weights(found) / TOTAL - share) == min(misses)


def test_more_than_there_is_cannot_be_removed() -> None:
    least = 1 - weights(0.999) / TOTAL
    with pytest.raises(UserError, match=rf"0.995 of the weights .* {least:.3f} of them are gone"):
        sparsity_of_share(GRAPH.spec, 0.995)


def test_every_combination_once_and_one_width_per_sparsity() -> None:
    config = Config(
        sparsities=(0.8, 0.4), importances=("l2", "lamp"), target="weights", solver="nearest"
    )
    low, high = variants(config, GRAPH)
    for group, asked in ((low, 0.4), (high, 0.8)):
        assert len({variant.spec.structure for variant in group}) == 1
        assert {variant.asked for variant in group} == {asked}
        found = [(v.spec.method.importance, v.spec.method.method) for v in group]
        assert found == list(itertools.product(("l2", "lamp"), ("prune", "fuse", "prune")))
        assert [v.method for v in group] == ["prune", "fuse", "reconstruct"] * 2
        assert {variant.spec.method.solver for variant in group} == {"nearest"}
    assert len({variant.name for variant in low + high}) == 12
    assert low[1].label == "Intra-Fusion, l2"


def test_reconstruction_chooses_by_itself_unless_an_importance_is_asked_for() -> None:
    config = Config(sparsities=(0.5,), methods=("reconstruct",))
    ((default,),) = variants(config, GRAPH)
    ((asked,),) = variants(dataclasses.replace(config, importances=("l2",)), GRAPH)
    chosen = [(v.spec.method.importance, v.spec.method.method) for v in (default, asked)]
    assert chosen == [("reconstruction", "prune"), ("l2", "prune")]
    for other in ({"per_group": True}, {"mode": "paf"}, {"coordinator": "auto"}):
        assert dataclasses.replace(config, **other).ways == ()


def test_patterns_choose_the_groups() -> None:
    ((variant,),) = variants(
        Config(sparsities=(0.5,), methods=("fuse",), include=("w*",), exclude=("w2",)), GRAPH
    )
    assert variant.spec.structure.widths == {"w1": 20}
    assert (variant.name, variant.label) == ("fuse-0.5", "Intra-Fusion")
