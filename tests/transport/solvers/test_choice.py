"""Which solver a name is."""

import logging

import pytest

from ifjax.transport import solvers
from ifjax.transport.solvers import choice
from tests.transport.solvers.problems import SOLVERS


@pytest.mark.parametrize("name", SOLVERS)
def test_a_name_is_itself(name):
    assert solvers.choose(name, 3, 2, backend="gpu") == name


@pytest.mark.parametrize(
    ("n", "m", "uniform", "pot", "backend", "expected"),
    [
        (4096, 2048, True, False, "cpu", "exact"),
        (4096, 2048, False, True, "cpu", "sinkhorn_kernel"),
        (64, 45, True, True, "cpu", "exact"),
        (64, 45, True, False, "cpu", "sinkhorn_kernel"),
        (64, 32, False, False, "cpu", "sinkhorn_kernel"),
        (64, 32, True, True, "gpu", "sinkhorn_kernel"),
        (64, 32, True, True, "tpu", "sinkhorn_kernel"),
    ],
)
def test_auto_goes_by_size_marginals_and_backend(
    monkeypatch, caplog, n, m, uniform, pot, backend, expected
):
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda _: pot or None)
    with caplog.at_level(logging.DEBUG, "ifjax.solvers"):
        assert solvers.choose("auto", n, m, uniform=uniform, backend=backend) == expected
    assert caplog.messages == [f"auto: {expected} for {n} x {m} on {backend}"]


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"'emd'; known: auto, exact, nearest, sinkhorn, "):
        solvers.choose("emd", 3, 2)
    with pytest.raises(ValueError, match="'emd'"):
        solvers.solver_of("emd")
