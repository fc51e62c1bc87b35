"""Numbers that come from widths, in words; see facts/test_numbers.py for which ones they are."""

import dataclasses

import jax.numpy as jnp

import ifjax
from ifjax.graph.width_numbers import WidthNumber, renamed

PARAMS = {"a": jnp.ones((3, 12)), "b": jnp.ones((12, 2))}


def deviation(p, x):
    h = x @ p["a"]
    square = jnp.sum(jnp.square(h - jnp.mean(h, -1, keepdims=True)), -1, keepdims=True) / 11
    return (h / jnp.sqrt(square + 1e-3)) @ p["b"]


def test_a_number_is_told_with_its_line_its_width_and_what_becomes_of_it():
    (number,) = ifjax.trace(deviation, PARAMS, jnp.ones((1, 3))).numbers
    assert number.groups == ("a",)
    assert number.follows
    assert not number.unclear
    assert str(number) == number.text
    assert "div by 11" in number.text
    assert "follows as 12 - 1, 12 the width of a" in number.text
    assert "test_width_numbers.py:" in number.text


def test_a_number_goes_on_with_what_its_group_has_become():
    whole = ifjax.trace(lambda p, x: x @ p["a"] @ p["b"], PARAMS, jnp.ones((1, 3))).structure
    halves = ifjax.trace(
        lambda p, x: (x @ p["a"])[:, :5] @ p["b"][:5] + (x @ p["a"])[:, 5:] @ p["b"][5:],
        PARAMS,
        jnp.ones((1, 3)),
    ).structure
    number = WidthNumber("12", ("a",), follows=False, unclear=True)
    assert renamed(number, whole, whole) == number
    found = renamed(number, whole, halves)
    assert found == dataclasses.replace(number, groups=tuple(g.name for g in halves.groups))
    assert len(found.groups) == 2
