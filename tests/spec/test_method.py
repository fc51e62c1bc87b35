"""The choices of a method, checked."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ifjax import Method, importance, transport


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
    "targets must be one of top, centroids, kmeans, .*; got 'bottom'": {"targets": "bottom"},
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
    "epsilon must be positive and finite; got 'a'": {"epsilon": "a"},
    "cost_p must be at least 1 .* got None": {"cost_p": None},
    "cost_p must be at least 1 .* got True": {"cost_p": True},
    "seed must be an integer; got 'a'": {"seed": "a"},
    "seed must be an integer; got 1.5": {"seed": 1.5},
    "seed must be an integer; got True": {"seed": True},
    r"importance must be one of .* did you mean L1\(\)": {"importance": importance.L1},
    r"targets must be one of .* did you mean KMeans\(\)": {"targets": transport.KMeans},
    r"solver must be one of .* did you mean Sinkhorn\(\)": {"solver": transport.Sinkhorn},
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
        *("l1", "l2", "linf", "lamp", "bn_scale", "taylor", "fisher", "chip", "random"),
        "reconstruction",
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


# Values -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Last(importance.Metric):
    """A metric of somebody's own: the last weight."""

    times: float = 1.0

    def member(self, x, axis):
        return self.times * jnp.abs(x).take(-1, 1 - axis)


NAMED = {
    "l1": importance.L1(),
    "l2": importance.L2(),
    "linf": importance.LInf(),
    "lamp": importance.Lamp(),
    "bn_scale": importance.BNScale(),
    "taylor": importance.Taylor(),
    "fisher": importance.Fisher(),
    "chip": importance.Chip(),
    "random": importance.Random(),
}


@pytest.mark.parametrize("name", NAMED)
def test_an_importance_is_a_value_or_its_name(name):
    by_value, by_name = Method(importance=NAMED[name]), Method(importance=name)
    assert (by_value, hash(by_value)) == (by_name, hash(by_name))
    assert by_value.importance == name
    assert by_name.importance_value == NAMED[name]


SOLVED = {
    "sinkhorn": transport.Sinkhorn(epsilon=0.02),
    "sinkhorn_kernel": transport.SinkhornKernel(epsilon=0.02),
    "auto": transport.Auto(epsilon=0.02),
    "exact": transport.Exact(),
    "nearest": transport.Nearest(),
}


@pytest.mark.parametrize("name", SOLVED)
def test_a_solver_is_a_value_or_its_name_and_epsilon(name):
    assert set(SOLVED) == {*transport.SOLVERS}
    epsilon = getattr(SOLVED[name], "epsilon", None)
    by_value, by_name = Method(solver=SOLVED[name]), Method(solver=name, epsilon=epsilon)
    assert (by_value, hash(by_value)) == (by_name, hash(by_name))
    assert (by_value.solver, by_value.epsilon) == (name, epsilon or 0.01)
    assert by_name.solver_value == SOLVED[name]


AIMED = {
    ("top", "kmeans"): transport.Top(),
    ("centroids", "kmeans"): transport.KMeans(),
    ("centroids", "gaussian_mixture"): transport.GaussianMixture(),
}


@pytest.mark.parametrize("names", AIMED)
def test_targets_are_a_value_or_their_names(names):
    by_value, by_name = Method(targets=AIMED[names]), Method(targets=names[0], centroids=names[1])
    assert (by_value, hash(by_value)) == (by_name, hash(by_name))
    assert (by_value.targets, by_value.centroids) == names
    assert by_name.targets_value == AIMED[names]


def test_epsilon_is_that_of_the_solver():
    method = Method(solver=transport.Sinkhorn(0.02), epsilon=0.02)
    assert method == Method(epsilon=0.02)
    few = transport.Sinkhorn(0.02, max_iterations=10)
    assert (Method(solver=few).solver, Method(solver=few).epsilon) == (few, 0.02)
    for epsilon in (0.01, 0.03):
        for solver in (transport.Sinkhorn(0.02), few):
            with pytest.raises(ValueError, match=rf"epsilon={epsilon} is given, and a solver with"):
                Method(solver=solver, epsilon=epsilon)
    # One that reads none disagrees with none, as its name does not.
    assert Method(solver=transport.Exact(), epsilon=0.5) == Method(solver="exact", epsilon=0.5)


def test_centroids_are_those_of_the_targets():
    few = transport.KMeans(starts=3)
    assert Method(targets=few, centroids="kmeans") == Method(targets=few)
    assert (Method(targets=few).targets, Method(targets=few).centroids) == (few, "kmeans")
    for value in (few, transport.KMeans()):
        with pytest.raises(
            ValueError, match="centroids='gaussian_mixture' are given, and disagree"
        ):
            Method(targets=value, centroids="gaussian_mixture")


def test_what_nobody_gave_gives_way_to_a_value():
    for method in (Method(), Method(solver=transport.Sinkhorn(0.02))):
        replaced = dataclasses.replace(method, solver=transport.Sinkhorn(epsilon=0.05))
        assert replaced == Method(solver=transport.Sinkhorn(epsilon=0.05))
        assert (replaced.epsilon, replaced.solver_value.epsilon) == (0.05, 0.05)
        # What follows from a solver stays with it.
        assert dataclasses.replace(replaced, seed=1).solver_value == transport.Sinkhorn(0.05)
        assert dataclasses.replace(replaced, solver=transport.Exact()) == Method(solver="exact")
    mixture = Method(targets="centroids", centroids="gaussian_mixture")
    for method in (Method(), Method(targets=transport.KMeans(starts=3))):
        replaced = dataclasses.replace(method, targets=transport.GaussianMixture())
        assert (replaced, hash(replaced)) == (mixture, hash(mixture))
        assert dataclasses.replace(replaced, targets=transport.Top()) == Method()
    # Read again, or copied, nothing is given either.
    for method in (Method.from_json(Method().to_json()), pickle.loads(pickle.dumps(Method()))):
        replaced = dataclasses.replace(method, solver=transport.Sinkhorn(epsilon=0.05))
        assert replaced.epsilon == 0.05


def test_what_was_given_stays_given():
    method = dataclasses.replace(Method(epsilon=0.01, centroids="kmeans"), seed=1)
    with pytest.raises(ValueError, match=r"epsilon=0\.01 is given, and a solver with another"):
        dataclasses.replace(method, solver=transport.Sinkhorn(epsilon=0.05))
    with pytest.raises(ValueError, match="centroids='kmeans' are given, and disagree"):
        dataclasses.replace(method, targets=transport.GaussianMixture())
    assert (method, hash(method)) == (Method(seed=1), hash(Method(seed=1)))
    assert repr(method) == repr(Method(seed=1))


@pytest.mark.parametrize("name", ["kmeans", "gaussian_mixture"])
def test_targets_may_be_the_name_of_centroids(name):
    assert Method(targets=name) == Method(targets="centroids", centroids=name)
    assert Method(targets=name).targets_value == transport.targets.targets_of(name)


@pytest.mark.usefixtures("unchecked")
def test_numbers_are_those_of_python():
    method = Method(
        seed=np.int64(1), epsilon=np.float32(0.02), cost_p=jnp.float32(2), solver="exact"
    )
    assert method == Method(seed=1, epsilon=0.02, cost_p=2.0, solver="exact")
    assert [type(x) for x in (method.seed, method.epsilon, method.cost_p)] == [int, float, float]
    assert Method.from_json(json.loads(json.dumps(method.to_json()))) == method


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([1], r"method: expected an object with the options method, .*, got \[1\]"),
        ("fuse", "method: expected an object with the options"),
        (None, "method: expected an object with the options"),
        ({"sovler": "exact"}, "method: expected options of solver, .*; got 'sovler'"),
        ({"cost_p": "one"}, "cost_p must be at least 1 .* got 'one'"),
        ({"solver": {"name": "exact"}}, "solver: expected a name, or an object of a name and of"),
        ({"solver": {"name": "exact", "options": 3}}, "solver: expected a name, or an object"),
    ],
)
def test_fields_that_are_no_method(fields, message):
    with pytest.raises(ValueError, match=message):
        Method.from_json(fields)


VALUES = {
    "importance": importance.Random(seed=3),
    "targets": transport.KMeans(starts=3),
    "solver": transport.Sinkhorn(epsilon=0.02, tolerance=1e-4, max_iterations=99),
}


@pytest.mark.parametrize("option", VALUES)
def test_values_with_options_are_kept_replaced_and_written(option):
    method = Method(**{option: VALUES[option]})
    assert getattr(method, option) == getattr(method, f"{option}_value") == VALUES[option]
    assert dataclasses.replace(method, seed=1) == Method(**{option: VALUES[option]}, seed=1)
    text = json.dumps(method.to_json())
    assert Method.from_json(json.loads(text)) == method


def test_methods_without_values_are_written_as_they_were():
    """The JSON of a version before there were values."""
    old = {
        "method": "fuse", "importance": "l1", "reduction": "mean", "normalization": "mean",
        "scores_on": "folded", "targets": "top", "centroids": "kmeans", "cost_p": 1.0,
        "source_marginal": "uniform", "target_marginal": "uniform", "solver": "sinkhorn",
        "epsilon": 0.01, "merge": "reference", "order": "sequential", "heads": "prune", "seed": 0,
    }  # fmt: skip
    assert Method().to_json() == old
    assert list(Method().to_json()) == list(old)
    assert Method.from_json(old) == Method()
    infinite = old | {"cost_p": "inf", "solver": "exact", "epsilon": 0.3}
    method = Method(cost_p=math.inf, solver="exact", epsilon=0.3)
    assert method.to_json() == infinite
    assert Method.from_json(infinite) == method


def test_a_metric_of_ones_own_needs_no_name_and_json_asks_for_one(monkeypatch):
    method = Method(importance=Last(2.0))
    assert hash(method) == hash(Method(importance=Last(2.0)))
    assert method != Method(importance=Last(3.0))
    with pytest.raises(ValueError, match=r"importance: Last\(times=2\.0\).*\['last'\] = Last"):
        method.to_json()
    monkeypatch.setitem(importance.IMPORTANCES, "last", Last)
    assert Method(importance=Last()) == Method(importance="last")
    assert Method.from_json(method.to_json()) == method


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("option", ["importance", "targets", "solver"])
def test_what_is_neither_a_value_nor_a_name_is_refused(option):
    with pytest.raises(ValueError, match=rf"{option} must be one of .* \(or a value, see ifjax"):
        Method(**{option: 3})


def test_values_that_are_not_hashable_are_refused():
    with pytest.raises(TypeError, match="importance: expected a hashable value"):
        Method(importance=Last([1.0]))
