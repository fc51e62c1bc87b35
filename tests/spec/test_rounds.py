"""Widths of rounds."""

import functools

import pytest

import ifjax
from tests import reference

WIDTHS = {"mlp": (12, 9), "vgg": (6, 10), "res": (4, 8)}


@functools.cache
def traced(model):
    return reference.trace(model, reference.init(model, 0, WIDTHS[model]))


@pytest.mark.parametrize("rounds", [1, 2, 5, 9])
@pytest.mark.parametrize("kind", ["geometric", "linear"])
def test_rounds_narrow_to_the_widths_of_the_spec(kind, rounds):
    spec = traced("mlp").spec({"fc0*": 0.75, "fc1*": 0.2})
    found = ifjax.iterated(spec, rounds, kind)
    assert len(found) == rounds
    assert found[-1].total == spec
    before = {g.name: g.size for g in spec.groups}
    for i, (step, total) in enumerate(found, 1):
        for group in spec.groups:
            n, m, now = group.size, group.kept, step.structure.group[group.name]
            exact = n * (m / n) ** (i / rounds) if kind == "geometric" else n - (n - m) * i / rounds
            assert now.size == before[group.name]
            assert now.kept == total.structure.group[group.name].kept
            assert abs(now.kept - exact) <= 0.5
            before[group.name] = now.kept
        assert (step.method, total.method) == (spec.method, spec.method)
        for path in spec.structure.leaf:
            assert step.structure.shape(path) == total.structure.shape(path)
        assert step.weights()[1] == total.weights()[1]
        assert step.flops()[1] == total.flops()[1]
        assert ifjax.FusionSpec.from_json(step.to_json()) == step


def test_rounds_compose_to_the_whole():
    first, second, third = ifjax.iterated(traced("res").spec(0.6), 3)
    assert ifjax.compose(second.step, first.total) == second.total
    assert ifjax.compose(third.step, ifjax.compose(second.step, first.step)) == third.total


def test_parameters_follow_round_after_round():
    params = reference.init("vgg", 0, WIDTHS["vgg"])
    spec = traced("vgg").spec(0.5, method="prune")
    for step, total in ifjax.iterated(spec, 3):
        params = ifjax.fuse_params(params, step)
        struct = total.small_struct()
        got = {path: x.shape for path, x in params.items()}
        assert got == {path.replace("/", "."): spec_shape(total, path) for path in struct}
    assert got["conv1.weight"] == (5, 3, 3, 3)


def spec_shape(spec, path):
    return spec.structure.shape(path)


@pytest.mark.parametrize(
    ("rounds", "kind", "message"),
    [
        (0, "linear", r"rounds must be a positive integer; got 0"),
        (2, "cubic", r"kind must be one of geometric, linear; got 'cubic'"),
    ],
)
def test_bad_schedules_are_refused(rounds, kind, message):
    with pytest.raises(ValueError, match=message):
        ifjax.iterated(traced("mlp").spec(0.5), rounds, kind)
