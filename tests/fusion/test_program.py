"""Levels, what of which leaf is read, and how leaves are merged: static and asked once."""

import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.fusion.program import Program, compiled, levels_of
from ifjax.structure import axis as ex
from ifjax.transport import Exact, SinkhornKernel
from tests import reference

WIDTHS = {"mlp": (8, 8, 6), "vgg": (6, 8), "res": (4, 6)}


def graph(model):
    return reference.trace(model, reference.init(model, 0, WIDTHS[model]), 1e-2)


def test_a_program_is_made_once():
    spec = graph("vgg").spec(0.5)
    again = ifjax.FusionSpec.from_json(spec.to_json())
    assert compiled(spec) is compiled(again)
    assert compiled(spec).levels is compiled(again).levels
    assert compiled(spec) is not compiled(spec, keep_shape=True)
    given = compiled(spec, given=["conv0.weight"])
    reads = {p.name: p.reads for level in given.levels for p in level.problems}
    assert reads == {"conv0.weight": "given", "conv1.weight": "weights"}


@pytest.mark.parametrize("model", WIDTHS)
def test_a_level_waits_for_those_that_share_a_leaf(model):
    structure = graph(model).spec(0.5).structure
    levels = levels_of(structure, "sequential")
    order = [group.name for group in structure.in_order()]
    paths = {g.name: {m.path for m in g.members} for g in structure.groups}
    place = {g.name: i for i, level in enumerate(levels) for g in level}
    assert sorted(place) == sorted(order)
    for i, name in enumerate(order):
        before = [n for n in order[:i] if paths[n] & paths[name]]
        assert place[name] == 1 + max((place[n] for n in before), default=-1)
    assert [[g.name for g in level] for level in levels_of(structure, "simultaneous")] == [order]


def test_no_groups_are_no_levels():
    for order in ("sequential", "simultaneous"):
        assert levels_of(graph("mlp").structure, order) == []


def test_a_level_changes_what_later_ones_read_and_nothing_else():
    program = compiled(graph("mlp").spec(0.5))
    for i, level in enumerate(program.levels):
        later = {
            path
            for other in program.levels[i + 1 :]
            for p in other.problems
            for path in p.described.paths
        }
        names = {p.name for p in level.problems}
        for path, steps in level.changes.items():
            assert path in later
            assert {name for step in steps for name in step.groups} <= names
    assert program.levels[-1].changes == {}
    assert compiled(graph("mlp").spec(0.5, order="simultaneous")).levels[0].changes == {}


def test_later_levels_see_the_sizes_of_earlier_ones():
    program = compiled(graph("mlp").spec(0.5))
    widths = {"fc2.weight": (6, 8), "fc1.weight": (8, 8), "fc0.weight": (8, 6)}
    assert [p.name for level in program.levels for p in level.problems] == list(widths)
    for level in program.levels:
        for p in level.problems:
            assert p.extent == (p.size, p.size // 2)
            assert {ex.size(where) for _, _, where in p.described.members} == {p.size}


def test_all_groups_of_an_axis_are_merged_at_once():
    """Dense connections: one step per leaf, whatever the number of segments."""

    def dense(p, x):
        for name in "abc":
            x = jnp.concatenate([x, jnp.tanh(x @ p[name])], -1)
        return x @ p["out"]

    p = {"a": (3, 4), "b": (7, 4), "c": (11, 4), "out": (15, 2)}
    p = {name: np.ones(shape, np.float32) for name, shape in p.items()}
    program = compiled(ifjax.trace(dense, p, np.ones((2, 3), np.float32)).spec(0.5))
    (step,) = program.merges["out"]
    (axis,) = step.axes
    assert axis.axis == 0
    assert dict(axis.roles) == {"a": "consumer", "b": "consumer", "c": "consumer"}
    assert ex.size(axis.where) == 15


def test_what_solves_is_decided_by_the_platform():
    spec = graph("mlp").spec(0.5, solver="auto")
    for backend, solver in (("cpu", Exact()), ("gpu", SinkhornKernel())):
        program = Program(spec, frozenset(), False, backend)
        assert {p.solver for level in program.levels for p in level.problems} == {solver}


def test_pruned_groups_are_selected_and_nothing_is_solved():
    program = compiled(graph("vgg").spec(0.5, method="prune"))
    assert {p.solver for level in program.levels for p in level.problems} == {None}
    assert set(program.merge().values()) == {"select"}
    assert program.refits == ()


@pytest.mark.parametrize(("keep", "sources"), [(4, 2), (2, 4), (6, 2), (5, None)])
def test_assignments_are_known_beforehand(keep, sources):
    """Of eight neurons: so many sources a target has, itself among them."""
    spec = graph("mlp").spec(keep={"fc0.weight": keep}, solver="exact")
    (level,) = compiled(spec).levels
    (p,) = level.problems
    assert (p.sources, p.staying) == (sources, True)
    params = reference.init("mlp", 0, WIDTHS["mlp"])
    found = ifjax.transport_maps(params, spec)["fc0.weight"]
    if sources:
        assert (np.count_nonzero(found.map, axis=0) == sources).all()
