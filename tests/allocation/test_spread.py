"""`spread` against every combination of widths, and the ladders of ties."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.allocation.account import account_of
from ifjax.allocation.curve import falling
from ifjax.allocation.spread import least, spread
from ifjax.allocation.ties import ties_of


def chain(*sizes):
    """The graph of a chain of dense layers, whose groups are a, b, and so on."""
    names = "abcdef"[: len(sizes) - 1]
    params = {k: jnp.ones((n, m)) for k, n, m in zip(names, sizes, sizes[1:], strict=False)}

    def apply(p, x):
        for k in names:
            x = x @ p[k]
        return x

    return ifjax.trace(apply, params, jnp.ones((1, sizes[0])))


def test_the_account_is_that_of_the_structure():
    graph = chain(4, 9, 8, 7, 3)
    for widths in ({}, {"a": 5}, {"a": 5, "b": 1, "c": 6}):
        assert account_of(graph.structure, "flops", ()).total(widths) == graph.structure.flops(
            widths
        )
        weights = account_of(graph.structure, "weights", ())
        assert weights.total(widths) == graph.structure.weights(widths)
        assert weights.change(widths, {"b": 3}) == weights.total(
            {**widths, "b": 3}
        ) - weights.total(widths)
        neurons = account_of(graph.structure, "neurons", ["a", "c"])
        assert neurons.total(widths) == widths.get("a", 9) + widths.get("c", 7)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("of", ["flops", "weights", "neurons"])
def test_nothing_better_exists(seed, of):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 11, 5)
    graph = chain(*map(int, sizes))
    ties = ties_of(graph.groups, False, 1, 1.0, 1)
    curves = {}
    for tie in ties:
        steps = rng.exponential(size=tie.top) * np.linspace(3, 0.2, tie.top) ** 2
        effects = [*np.cumsum(steps[::-1])[::-1], 0.0]
        curves[tie.name] = falling(range(tie.top + 1), effects)
    account = account_of(graph.structure, of, [g.name for g in graph.groups])
    most = int(account.total({}) * rng.uniform(0.3, 0.8))

    def effect(rungs):
        return sum(curves[t.name].at(r) for t, r in zip(ties, rungs, strict=True))

    def count(rungs):
        pairs = zip(ties, rungs, strict=True)
        return account.total({k: m for t, r in pairs for k, m in t.widths(r).items()})

    every = itertools.product(*(range(t.top + 1) for t in ties))
    best = min(effect(rungs) for rungs in every if count(rungs) <= most)
    found = spread(ties, curves, account, most)
    assert count(found) <= most
    assert effect(found) <= 1.05 * best + 1e-12
    for i, tie in enumerate(ties):  # not one neuron more
        if found[i] < tie.top:
            assert count([r + (j == i) for j, r in enumerate(found)]) > most


def test_ladders_know_floors_caps_and_multiples():
    graph = chain(4, 16, 24, 4)
    a, b = ties_of(graph.groups, False, {"a": 3, "*": 0.5}, {"b": 0.9}, 4)
    assert a.ladder == ((4,), (8,), (12,), (16,))
    assert a.is_whole
    assert b.ladder == ((12,), (16,), (20,))
    assert not b.is_whole


def test_ties_of_different_sizes_have_one_ratio():
    [tie] = ties_of(chain(4, 16, 32, 4).groups, "*", 1, 1.0, 1)
    assert all(abs(b / 32 - a / 16) <= 1 / 32 for a, b in tie.ladder)
    assert tie.ladder[-1] == (16, 32)
    assert len(tie.ladder) == 32


def test_a_group_belongs_to_the_first_tie():
    ties = ties_of(chain(4, 8, 8, 8, 4).groups, ["[ab]", "*"], 1, 1.0, 1)
    assert [[g.name for g in t.groups] for t in ties] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({"floor": 0}, "floor: expected a positive number"),
        ({"cap": 1.5}, "cap: expected a positive number"),
        ({"floor": {"z*": 1}}, "floor pattern 'z\\*' matches none"),
        ({"floor": 0.9, "cap": 0.5}, "lies between its floor, 8, and its cap, 4"),
        ({"floor": 5, "cap": 7, "round_to": 4}, "multiple of 4"),
    ],
)
def test_bounds_that_are_none_are_refused(bounds, text):
    given = {"floor": 1, "cap": 1.0, "round_to": 1, **bounds}
    with pytest.raises(ValueError, match=text):
        ties_of(chain(4, 8, 4).groups, False, **given)


def test_the_least_count_is_that_of_the_floors():
    graph = chain(4, 8, 4)
    ties = ties_of(graph.groups, False, 0.25, 1.0, 1)
    assert least(ties, account_of(graph.structure, "weights", ())) == 2 * 4 * 2
