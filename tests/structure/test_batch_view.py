"""Bringing the axes that batch a group to the front, and back, against plain numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.structure.axis import Atom, Pinned, Product, Sum
from ifjax.structure.batch_view import View, mentioned, without

H, D, E, L = Atom("h", 2), Atom("d", 3), Atom("e", 4), Pinned(5, "layers")


def numbers(*shape):
    return jnp.arange(np.prod(shape)).reshape(shape)


def test_other_axes_and_the_factor_beside_it():
    x = numbers(5, 7, 6)
    view = View((L, Pinned(7), Product((H, D))), ("layers", "h"))
    assert view.rest() == (Pinned(1), Pinned(7), D)
    got = view.front(x, {})
    want = x.reshape(5, 7, 2, 3).transpose(0, 2, 1, 3).reshape(10, 1, 7, 3)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(view.back(got, {}), x)


def test_the_inner_factor():
    x = numbers(6, 7)
    view = View((Product((D, H)), Pinned(7)), ("h",))
    assert view.rest() == (D, Pinned(7))
    got = view.front(x, {})
    np.testing.assert_array_equal(got, x.reshape(3, 2, 7).transpose(1, 0, 2))
    np.testing.assert_array_equal(view.back(got, {}), x)


def test_a_factor_of_every_segment():
    x = numbers(7, 14)
    view = View((Pinned(7), Sum((Product((H, D)), Product((H, E))))), ("h",))
    assert view.rest() == (Pinned(7), Sum((D, E)))
    got = view.front(x, {})
    first, second = x[:, :6].reshape(7, 2, 3), x[:, 6:].reshape(7, 2, 4)
    want = np.concatenate([first, second], 2).transpose(1, 0, 2)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(view.back(got, {}), x)


def test_present_widths():
    """The group was cut to 2, another one before it to 1; the leaf comes back at these widths."""
    x = numbers(2 * 3 * 1)
    view = View((Product((H, D, E)),), ("h",))
    got = view.front(x, {"e": 1})
    assert got.shape == (2, 3)
    back = view.back(got[:, :2], {"e": 1, "d": 2})
    np.testing.assert_array_equal(back, x.reshape(2, 3)[:, :2].ravel())


@pytest.mark.parametrize("names", [("layers", "h"), ("h", "layers"), ("d",), ("layers", "d", "h")])
def test_any_order_comes_back(names):
    x = numbers(4, 6, 5)
    view = View((E, Product((H, D)), L), names)
    got = view.front(x, {})
    assert got.shape[0] == np.prod([{"layers": 5, "h": 2, "d": 3}[n] for n in names])
    np.testing.assert_array_equal(view.back(got, {}), x)


def test_names_along_an_axis():
    e = Sum((Product((H, L)), Product((H, D))))
    assert mentioned(e) == ["h", "layers", "h", "d"]
    assert without(e, "h") == Sum((L, D))
    assert without(D, "h") == D


def test_positions_that_share_entries():
    """Queries and keys of entry 0, values of entry 1, and a leaf that holds these alone."""
    x, slots = numbers(7, 3, 4), Pinned(3, "slots", (0, 0, 1), 2)
    view = View((Pinned(7), slots, E), ("slots",))
    assert view.rest() == (Pinned(7), Pinned(2), E)
    got = view.front(x, {})
    np.testing.assert_array_equal(got[0], x[:, :2])
    np.testing.assert_array_equal(got[1], np.stack([x[:, 2], 0 * x[:, 2]], 1))
    np.testing.assert_array_equal(view.back(got[..., 1:], {"e": 3}), x[..., 1:])
    one = View((Product((Pinned(1, "slots", (1,), 2), E)), Pinned(7)), ("slots",))
    y = numbers(4, 7)
    np.testing.assert_array_equal(one.front(y, {}), np.stack([0 * y, y]))
    np.testing.assert_array_equal(one.back(one.front(y, {}), {}), y)


def test_factors_that_share_entries_beside_heads():
    """In any order, from an axis that is flat, as what is merged by entry comes back."""
    x = np.asarray(numbers(5, 2 * 3 * 3))
    axes = (Pinned(5), Product((H, Pinned(3, "slots", (1, 0, 1), 2), D)))
    for names in (("slots", "h"), ("h", "slots")):
        view = View(axes, names)
        got = view.front(x, {})
        each = x.reshape(5, 2, 3, 3)
        at = got.reshape(2, 2, 5, -1)[(1, 0) if names[0] == "slots" else (0, 1)]
        np.testing.assert_array_equal(at, each[:, 0, [0, 2]].reshape(5, -1))
        np.testing.assert_array_equal(view.back(got, {}), x)
