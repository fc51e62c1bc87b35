"""What groups are described and scored by."""

import numpy as np
import pytest

import ifjax
from ifjax.fusion.execution.sources import sources_of
from ifjax.fusion.program import compiled

pytestmark = pytest.mark.promotes(
    ranks="within public functions",
    dtypes="within public functions",
)

RNG = np.random.default_rng(0)
SHAPES = {"w1": (3, 4), "w2": (4, 2)}
PARAMS = {name: RNG.normal(size=shape).astype(np.float16) for name, shape in SHAPES.items()}
GRAPH = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], PARAMS, np.ones((1, 3), np.float16))


def of(spec, stats=None, scores=None):
    program = compiled(spec, given=scores or {})
    sources = sources_of(program, PARAMS, scores or {}, stats)
    (group,) = program.levels[0].problems
    return sources, group, sources.of(group)


def test_weights_are_read_in_single_precision():
    _, _, (entry, scored, given) = of(GRAPH.spec(0.5))
    assert given is None
    for arrays in (entry, scored):
        assert {path: x.dtype for path, x in arrays.items()} == dict.fromkeys(SHAPES, np.float32)
        np.testing.assert_array_equal(arrays["w1"], PARAMS["w1"])


def test_taylor_reads_weights_times_gradients():
    gradients = {name: np.full(shape, 2.0, np.float32) for name, shape in SHAPES.items()}
    spec = GRAPH.spec(0.5, importance="taylor")
    _, _, (entry, scored, _) = of(spec, ifjax.Stats(gradients=gradients))
    np.testing.assert_allclose(scored["w1"], 2 * PARAMS["w1"].astype(np.float32))
    np.testing.assert_array_equal(entry["w1"], PARAMS["w1"])


def test_a_statistic_is_a_mean_over_examples_and_scores_go_before_it():
    stats = ifjax.Stats(fisher={"w1": np.arange(4.0)}, count=2.0)
    spec = GRAPH.spec(0.5, importance="fisher")
    assert of(spec, stats)[2][2].tolist() == [[0, 0.5, 1, 1.5]]
    assert of(spec, stats, {"w1": np.ones(4)})[2][2].tolist() == [[1, 1, 1, 1]]


def test_a_gram_matrix_becomes_what_each_channel_holds():
    stats = ifjax.Stats(chip={"w1": np.diag([9.0, 4.0, 0.0, 1.0]).astype(np.float32)}, count=1.0)
    given = of(GRAPH.spec(0.5, importance="chip"), stats)[2][2]
    np.testing.assert_allclose(given, [[3, 2, 0, 1]], atol=1e-3)


def test_what_later_levels_read_is_changed_and_what_was_given_stays():
    sources, group, _ = of(GRAPH.spec(0.5))
    changed = sources.changed(lambda arrays: {"w1": 2 * arrays["w1"]})
    np.testing.assert_allclose(changed.of(group)[0]["w1"], 2 * sources.of(group)[0]["w1"])
    assert changed.dense is sources.dense
