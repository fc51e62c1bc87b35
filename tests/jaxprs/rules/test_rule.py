"""Equations rebuilt as they are, and with a number that follows the widths."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from ifjax.jaxprs.rules.rule import Resize, rebind, rebuild_number
from ifjax.jaxprs.width_number import Followed, Reading


def resize(note, sizes):
    def unused(*_):
        raise AssertionError

    return Resize([(0,), ()], [(0,)], note, sizes.__getitem__, unused, unused, unused, unused)


def test_a_literal_is_what_it_is_at_the_small_widths():
    (equation,) = jax.make_jaxpr(lambda x: x / 7.0)(jnp.ones(8)).eqns
    values = [np.full(5, 8.0, np.float32), 7.0]
    note = Followed(1, (0,), Reading(1.0, Fraction(0), Fraction(1)))  # n - 1
    (got,) = rebuild_number(resize(note, {0: 5}), equation, values)
    np.testing.assert_allclose(got, 2.0)
    (got,) = rebuild_number(resize(None, {0: 5}), equation, values)
    np.testing.assert_allclose(got, 8 / 7, rtol=1e-6)


def test_an_equation_that_holds_no_width_stays():
    (equation,) = jax.make_jaxpr(jax.lax.tanh)(jnp.ones(8)).eqns
    (got,) = rebind(resize(None, {}), equation, [jnp.ones(5)])
    np.testing.assert_allclose(got, np.tanh(np.ones(5)), rtol=1e-6)
    assert resize(None, {0: 5, 1: 3}).shape((0, 1)) == (5, 3)
