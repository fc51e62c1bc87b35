"""All 30 cases that the Intra-Fusion reference implementation computed, end to end."""

import functools

import jax
import numpy as np
import pytest

import ifjax
from ifjax.fusion.execution import solve
from ifjax.fusion.merge import matrices
from tests import reference

CASES = [
    f"{network}_{case}"
    for network in ("mlp", "vgg", "res")
    for case in (
        *(f"l1_default_{percent}" for percent in (25, 50, 70)),
        *(f"l1_if_p1_uniform_uniform_{percent}" for percent in (25, 50, 70)),
        "l2_if_p1_uniform_uniform_50",
        "lamp_if_p1_uniform_uniform_50",
        "l1_if_p2_uniform_uniform_50",
        "l1_if_p1_importance_importance_50",
    )
]
# Absolute, on maps, weights and outputs of order one; scores have mean one.
TOLERANCE = 1e-5

traced = functools.cache(reference.trace)


@functools.cache
def forward(model):
    return jax.jit(reference.apply(model))


@functools.cache
def shrunk(model, plan):
    """Of the plan alone: the methods of one sparsity share the program."""
    return jax.jit(ifjax.shrink(reference.apply(model), ifjax.FusionSpec(plan)))


def close(got, expected, what):
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE, err_msg=what)


def test_every_case_is_here():
    assert sorted(CASES) == sorted(reference.cases())


@pytest.mark.parametrize("name", CASES)
def test_the_case_is_the_reference_s(monkeypatch, name):
    settings, case = reference.cases()[name], reference.load(name)
    model, params = settings["model"], reference.params(case, "before")
    graph = traced(model)
    spec = graph.spec(settings["sparsity"], **reference.method(settings))
    groups = sorted(graph.groups, key=lambda g: -g.position)
    if settings["ot"]:
        assert {f"group{k}/map" for k in range(len(groups))} == {k for k in case if "/map" in k}
    close(forward(model)(params, case["x"]), case["y_dense"], "the network itself")

    recorded = {}
    monkeypatch.setattr(solve, "problem_of", recording(solve.problem_of, recorded))
    scores = reference.scores(settings, case, groups)
    found_maps = ifjax.transport_maps(params, spec, scores)
    assert list(found_maps) == [g.name for g in groups]
    for k, group in enumerate(groups if settings["ot"] else []):
        found, where = found_maps[group.name], f"group {k}, {group.name}"
        close(recorded[k], case[f"group{k}/importance"], f"scores of {where}")
        dropped = np.setdiff1d(np.arange(group.size), found.targets)
        np.testing.assert_array_equal(dropped, np.sort(case[f"group{k}/pruned"]), where)
        by_source = matrices(found.map)["pushforward"]
        close(by_source, case[f"group{k}/map"], f"map of {where}")

    small = ifjax.apply_maps(params, spec, found_maps)
    got, expected = (
        reference.folded(graph.structure, x) for x in (small, reference.params(case, "after"))
    )
    assert sorted(got) == sorted(expected)
    for path in got:
        close(got[path], expected[path], path)
    close(shrunk(model, spec.structure)(small, case["x"]), case["y_pruned"], "outputs")


def recording(function, results):
    """The function, which also notes the scores that it returns, by the number of the group."""

    def recorded(group, *given):
        found = function(group, *given)
        results[group.number] = found.scores
        return found

    return recorded
