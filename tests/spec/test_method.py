"""The choices of a method, checked."""

from __future__ import annotations

import math

import jaxtyping
import pytest

from ifjax import Method
from ifjax.importance import metrics as importance


@pytest.fixture
def unchecked(monkeypatch):
    """Let wrong arguments reach our own errors, where types are checked at run time too."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


BAD = {
    "method must be one of fuse, prune; got 'drop'": {"method": "drop"},
    "importance must be one of .* got 'l0'": {"importance": "l0"},
    "scores_on must be one of folded, raw": {"scores_on": "both"},
    "reduction must be one of mean, sum, max, first; got 'prod'": {"reduction": "prod"},
    "normalization must be one of mean, max, sum, none; got None": {"normalization": None},
    "targets must be one of top, centroids; got 'bottom'": {"targets": "bottom"},
    "centroids must be one of kmeans, gaussian_mixture; got 'k'": {"centroids": "k"},
    "source_marginal must be one of uniform, importance": {"source_marginal": "x"},
    "target_marginal must be one of": {"target_marginal": None},
    "solver must be one of": {"solver": "emd"},
    "merge must be one of reference, preserving": {"merge": "average"},
    "order must be one of sequential, simultaneous": {"order": "reverse"},
    "cost_p must be at least 1 .* got 0.5": {"cost_p": 0.5},
    "cost_p must be at least 1 .* got nan": {"cost_p": math.nan},
    "cost_p must be at least 1 .* or 'cosine'; got 'cos'": {"cost_p": "cos"},
    "epsilon must be positive and finite; got 0": {"epsilon": 0.0},
    "epsilon must be positive and finite; got inf": {"epsilon": math.inf},
    "epsilon must be positive and finite; got nan": {"epsilon": math.nan},
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("message", BAD)
def test_options_that_are_no_choice(message):
    with pytest.raises(ValueError, match=message):
        Method(**BAD[message])


def test_the_defaults_are_those_of_the_paper_s_implementation():
    method = Method()
    assert (method.importance, method.reduction, method.normalization) == ("l1", "mean", "mean")
    assert (method.targets, method.merge, method.order) == ("top", "reference", "sequential")


def test_every_importance_is_a_choice():
    assert {Method(importance=name).importance for name in importance.names()} == {
        *("l1", "l2", "linf", "lamp", "bn_scale", "taylor", "fisher", "chip", "random")
    }


def test_auto_says_what_it_is():
    method = Method(solver="auto")
    assert method.solver_for(512, 256, backend="cpu") == "exact"
    assert method.solver_for(512, 256, backend="gpu") == "sinkhorn_kernel"
    assert Method(solver="nearest").solver_for(512, 256) == "nearest"
    # An assignment with uniform marginals only; else it is the network simplex, and too large.
    assert method.solver_for(2048, 1024, backend="cpu") == "exact"
    mass = Method(solver="auto", source_marginal="importance")
    assert mass.solver_for(2048, 1024, backend="cpu") == "sinkhorn_kernel"
