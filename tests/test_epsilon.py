"""Sinkhorn approaches the exact maps and weights, by the benchmark that tabulates it."""

import pytest

from tests import benchmark_module, reference


@pytest.fixture(scope="module")
def benchmark():
    return benchmark_module.loaded("epsilon")


def test_maps_and_weights_approach_the_exact_ones_as_epsilon_falls(benchmark):
    cases = benchmark.Cases(select="mlp_l1_if_p1_uniform_uniform")
    assert len(cases.settings) == 3
    assert set(cases.settings) < set(reference.cases())
    table = [benchmark.measure(cases, epsilon) for epsilon in (0.1, 0.01, 0.001)]
    for name in ("map, mean", "map, max", "weights, mean", "weights, max", "cost, mean %"):
        first, second, third = (row[name] for row in table)
        assert first > second > abs(third), name
    assert table[-1]["map, mean"] < 5e-3
    assert table[-1]["weights, max"] < 3e-2
    assert table[-1]["end to end, mean"] < table[0]["end to end, mean"]
    assert all(row["converged"] == "100%" for row in table)
