"""Patterns, widths and their errors."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ifjax
from ifjax.spec.widths import kept_neurons
from tests.graph.laws import array, arrays


def network(p, x):
    for k in ("l1/kernel", "l2/kernel", "head/kernel"):
        x = jnp.tanh(x @ p[k])
    return x @ p["out"]


P = arrays(**{"l1/kernel": (3, 10), "l2/kernel": (10, 7), "head/kernel": (7, 4), "out": (4, 2)})
GRAPH = ifjax.trace(network, P, array(4, 3))


def widths(*args, **kwargs) -> dict[str, int]:
    return {g.name.split("/")[0]: g.kept for g in GRAPH.spec(*args, **kwargs).groups}


def test_one_number_for_all():
    assert widths(0.5) == {"l1": 5, "l2": 3, "head": 2}
    assert widths(0.0) == {"l1": 10, "l2": 7, "head": 4}
    assert widths(np.float64(0.5)) == widths(0.5)


def test_first_match_wins_and_unmatched_groups_are_kept():
    assert widths({"l1/*": 0.9, "l*": 0.5}) == {"l1": 1, "l2": 3, "head": 4}
    assert widths({"l*": 0.5, "l1/*": 0.9}) == {"l1": 5, "l2": 3, "head": 4}


def test_absolute_numbers_go_first():
    assert widths(keep=4) == {"l1": 4, "l2": 4, "head": 4}
    assert widths(0.5, keep={"l2/kernel": 6}) == {"l1": 5, "l2": 6, "head": 2}


def test_include_and_exclude():
    assert widths(0.5, include="l?/kernel") == {"l1": 5, "l2": 3, "head": 4}
    assert widths(0.5, include=["l1/kernel", "head*"]) == {"l1": 5, "l2": 7, "head": 2}
    assert widths(0.5, include=(p for p in ["l1/kernel"])) == {"l1": 5, "l2": 7, "head": 4}
    assert widths(0.5, exclude=lambda g: g.size < 8) == {"l1": 5, "l2": 7, "head": 4}
    assert widths(0.5, include=lambda g: g.size < 8, exclude="head*")["l2"] == 3


def test_rounding():
    assert widths(0.5, round_to=4) == {"l1": 4, "l2": 4, "head": 4}
    assert widths(0.5, round_to=8) == {"l1": 8, "l2": 7, "head": 4}


def test_names_with_brackets_match_themselves():
    """A segment inside a factor is named with brackets, a class of characters in globs."""

    def f(p, x):
        h = jnp.tanh(x @ p["a"]).reshape(-1, 2, 5)
        return jnp.concatenate([h[:, :, :2] * 2, jnp.sin(h[:, :, 2:])], 2).reshape(-1, 10) @ p["b"]

    graph = ifjax.trace(f, arrays(a=(3, 10), b=(10, 2)), array(4, 3))
    names = [g.name for g in graph.groups]
    assert any("[" in name for name in names)
    for name in names:
        assert graph.spec(keep={name: 1}).structure.widths == {name: 1}
        assert graph.spec({name: 0.6}, include=[name]).structure.widths == {name: 1}


@pytest.mark.parametrize("value", [1, 1.0, -0.1, math.nan, math.inf, True, False, "0.5", 0j])
@pytest.mark.usefixtures("unchecked")
def test_sparsity_outside_its_range(value):
    with pytest.raises(ValueError, match=r"sparsity must be a number in \[0, 1\); got"):
        GRAPH.spec(value)
    with pytest.raises(ValueError, match=r"sparsity must be .* for 'l1/\*'"):
        GRAPH.spec({"l1/*": value})


ERRORS = {
    "spec needs a sparsity or keep": {},
    "sparsity pattern 'l9\\*' matches none of the 3 groups; the nearest are": {
        "sparsity": {"l9*": 0.5}
    },
    "keep pattern 'conv' matches none": {"keep": {"conv": 2}},
    "include pattern 'L1/kernel' matches none .* 'l1/kernel'": {
        "sparsity": 0.5,
        "include": "L1/kernel",
    },
    "exclude pattern 'x' matches none": {"sparsity": 0.5, "exclude": ["l1*", "x"]},
    "group l2/kernel has 7 neurons; cannot keep 8": {"keep": {"l2*": 8}},
    "keep must be a positive integer; got 0": {"keep": 0},
    "keep must be a positive integer; got 2.0": {"keep": {"l1*": 2.0}},
    "keep must be a positive integer; got True": {"keep": True},
    "round_to must be a positive integer; got 0": {"sparsity": 0.5, "round_to": 0},
    "round_to must be a positive integer; got 1.5": {"sparsity": 0.5, "round_to": 1.5},
    "round_to must be a positive integer; got True": {"sparsity": 0.5, "round_to": True},
    "unknown option 'metric' of spec; expected one of .*importance": {
        "sparsity": 0.5,
        "metric": "l1",
    },
    "method must be one of fuse, prune; got 'cut'": {"sparsity": 0.5, "method": "cut"},
    "importance must be one of": {"sparsity": 0.5, "importance": "l7"},
    "cost_p must be at least 1": {"sparsity": 0.5, "cost_p": 0.5},
    "epsilon must be positive": {"sparsity": 0.5, "epsilon": math.nan},
    "sparsity 0.001, keep None removes no neuron of any selected group": {
        "sparsity": 0.001,
        "round_to": 10,
        "include": "l1*",
    },
    "sparsity 0.5, keep None removes no neuron": {"sparsity": 0.5, "exclude": "*"},
}


@pytest.mark.parametrize("message", ERRORS)
@pytest.mark.usefixtures("unchecked")
def test_errors_say_what_is_expected(message):
    with pytest.raises(ValueError, match=message):
        GRAPH.spec(**ERRORS[message])


def test_a_network_that_cannot_be_cut_says_so():
    graph = ifjax.trace(lambda p, x: x @ p["w"], arrays(w=(3, 2)), array(4, 3))
    assert graph.groups == ()
    with pytest.raises(ValueError, match="removes no neuron"):
        graph.spec(0.5)
    assert graph.spec(0.0).structure.widths == {}


@given(st.integers(1, 200), st.floats(0, 1, exclude_max=True), st.integers(1, 40))
def test_kept_neurons_is_the_formula(n, sparsity, round_to):
    m = max(1, math.floor(n * (1 - sparsity) + 1e-9))
    kept = kept_neurons(n, sparsity, round_to)
    if round_to == 1:
        assert kept == m
        return
    multiples = list(range(round_to, n + 1, round_to))
    if not multiples:
        assert kept == n
    else:
        assert kept in multiples
        assert abs(kept - m) == min(abs(k - m) for k in multiples)


def test_an_exact_name_means_that_group_alone():
    params = {"conv[1]": jnp.ones((3, 6)), "conv1": jnp.ones((6, 4)), "o": jnp.ones((4, 2))}

    def apply(p, x):
        return jnp.tanh(jnp.tanh(x @ p["conv[1]"]) @ p["conv1"]) @ p["o"]

    graph = ifjax.trace(apply, params, jnp.ones((1, 3)))
    assert graph.spec({"conv[1]": 0.5}).structure.widths == {"conv[1]": 3}
    assert graph.spec(0.5, include="conv[1]").structure.widths == {"conv[1]": 3}
    assert set(graph.spec({"conv*": 0.5}).structure.widths) == {"conv[1]", "conv1"}
