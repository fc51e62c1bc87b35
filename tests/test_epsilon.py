"""Sinkhorn approaches the exact maps and weights, by the benchmark that tabulates it."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests import reference


@pytest.fixture(scope="module")
def benchmark():
    folder = Path(__file__).parents[1] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("epsilon", folder / "epsilon.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


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
