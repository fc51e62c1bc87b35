"""The Sinkhorn solver of ott-jax."""

import subprocess
import sys

import numpy as np
import pytest
from ott.geometry import geometry
from ott.solvers import linear

from ifjax.transport import transport
from tests.transport.solvers.problems import THRESHOLD, problem


@pytest.mark.promotes(ranks="ott-jax itself does", dtypes="and so")
def test_the_plan_is_that_of_plain_ott_jax():
    cost, a, b, targets = problem(2, kind="importance")
    plain = linear.solve(
        geometry.Geometry(cost, epsilon=0.05 * float(cost.mean())), a, b, threshold=1e-5
    )
    got = transport.solve(cost, a, b, targets, solver="sinkhorn", epsilon=0.05)
    assert np.abs(got.map - plain.matrix).sum() < 2 * THRESHOLD


def test_ott_jax_is_imported_by_this_solver_alone():
    code = """
import sys
import jax.numpy as jnp
import pytest
from ifjax.transport import transport
half = jnp.full(2, 0.5)
for solver in ("sinkhorn_kernel", "exact", "nearest"):
    transport.solve(jnp.eye(2), half, half, jnp.arange(2), solver=solver)
print("ott" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
