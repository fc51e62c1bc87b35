"""What a cut module is held against."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import ifjax
from ifjax.frameworks.agreement import outer, require_agreement
from ifjax.structure.axis import Atom, Pinned, Product, Sum

HEADS, SIZE = Atom("heads", 4), Atom("size", 6)
CUT = {"heads": 3, "size": 2}


@pytest.mark.parametrize(
    ("axis", "n", "left"),
    [
        (Product((HEADS, SIZE)), 4, 3),
        (Product((HEADS, SIZE)), 24, 6),
        (Product((Pinned(2), HEADS, SIZE)), 8, 6),
        (Product((Pinned(2), HEADS, SIZE)), 2, 2),
        (Product((Product((Pinned(2), HEADS)), SIZE)), 2, 2),
        (Sum((Product((HEADS, SIZE)), Product((HEADS, SIZE)))), 8, 6),
        (Sum((Product((HEADS, Pinned(6))), Pinned(24))), 8, 7),
        (SIZE, 6, 2),
        (SIZE, 1, 1),
        (Pinned(24), 4, 4),
        (Product((SIZE, HEADS)), 4, 4),  # divided otherwise
        (Sum((Pinned(5), HEADS)), 3, 3),
    ],
)
def test_outermost_entries(axis, n, left):
    assert outer(axis, n, CUT) == left


def full(p, x):
    return x @ p["a"] / 8**0.5 @ p["b"]


SPEC = ifjax.trace(full, {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}, jnp.ones((1, 4))).spec(0.5)
SMALL = {"a": jnp.zeros((4, 4)), "b": jnp.zeros((4, 2))}  # the values do not matter
X = jnp.array([[1.0, 2.0, 3.0, 4.0]])


def agree(apply_cut, x=X, **static):
    require_agreement(full, apply_cut, SMALL, SPEC, (x,), static, ["inner (Layer)"])


def test_the_same_function_in_other_words():
    agree(lambda p, x: x @ (p["a"] @ p["b"]) / 8**0.5)


@pytest.mark.parametrize(
    ("otherwise", "how"),
    [
        (lambda p, x: x @ p["a"] / p["a"].shape[1] ** 0.5 @ p["b"], "outputs differ by"),
        (lambda p, x: x @ p["a"].reshape(4, 8) @ p["b"], "TypeError: cannot reshape"),
        (lambda p, x: full(p, x)[0], r"shapes \[\(1, 2\)\] expected, got \[\(2,\)\]"),
        (lambda p, x: (full(p, x), x), r"expected, got \[\(1, 2\), \(1, 4\)\]"),
        (lambda p, x: full(p, x) * jnp.nan, "outputs differ by nan"),
    ],
)
def test_another_function(otherwise, how):
    with pytest.raises(ValueError, match=rf"{how}.*inner \(Layer\).*call ifjax.shrink"):
        agree(otherwise)


def test_inputs_outside_of_the_domain():
    with pytest.raises(ValueError, match="not finite here"):
        agree(full, X * jnp.inf)
