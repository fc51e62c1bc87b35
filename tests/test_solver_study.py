"""The study of the solvers, on a group small enough for a test."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.transport import solvers
from tests import benchmark_module


@pytest.fixture(scope="module")
def study():
    return benchmark_module.loaded("solvers")


def test_the_rows_tell_the_solvers_apart(study, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "EPSILONS", (0.1, 0.01))
    rows = study.measure_groups(functools.partial(study.synthetic_costs, 24, 12))
    by = {(row["solver"], row["epsilon"]): row for row in rows}
    assert by["exact", None]["cost, max %"] == 0
    assert by["exact, whole", None]["cost, max %"] == pytest.approx(0, abs=1e-4)
    assert by["nearest", None]["cost, mean %"] < 0 < by["nearest", None]["marginal error"]
    for name in ("sinkhorn", "sinkhorn_kernel"):
        assert by[name, 0.1]["cost, mean %"] > by[name, 0.01]["cost, mean %"] > 0
        assert by[name, 0.01]["converged"] == "100%"
    accuracy = {"part": "accuracy", "network": "net", "solver": "sinkhorn_kernel", "epsilon": 0.1}
    named = [{"part": "groups", "groups": "24 x 12"} | row for row in rows]
    study.draw([*named, accuracy | {"50%": 90.0}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_variants_solve_what_they_say(study):
    variants = benchmark_module.loaded("solver_variants")
    (stack,) = study.synthetic_costs(24, 12)
    cost, a, b = stack[0], jnp.full(24, 1 / 24), jnp.full(12, 1 / 12)
    plan = solvers.SinkhornKernel(epsilon=0.1)(cost, a, b).map
    met = variants.feasible(plan * 1.01, a, b)
    assert solvers.marginal_error(met, a, b) < 1e-6
    np.testing.assert_allclose(variants.largest(plan, a, b).max(1), a)
    stays = variants.exact_but_own(cost, a, b)
    whole = solvers.Exact()(cost, a, b)
    np.testing.assert_allclose((stays.map * cost).sum(), (whole.map * cost).sum(), rtol=1e-6)
    assert np.all(stays.map[jnp.argmin(cost, 0), jnp.arange(12)] > 0)
