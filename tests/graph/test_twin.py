"""The same function at other widths."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Literal

from ifjax.graph.analysis import analyse
from ifjax.graph.twin import doubled, paired, traced_at
from ifjax.jaxprs import compat
from ifjax.jaxprs.arguments import Arguments

PARAMS = {"w": jnp.ones((3, 8))}
X = jnp.ones((2, 3))


def mean(p, x):
    h = x @ p["w"]
    return jnp.sum(h, -1) / p["w"].shape[1]


def fixed(p, x):
    if p["w"].shape[1] != 8:
        raise ValueError("expected eight")
    return mean(p, x)


def analysed(function):
    fresh = lambda store, path, x: tuple(store.fresh(n) for n in x.shape)  # noqa: E731
    return analyse(function, PARAMS, Arguments.split((X,)), {}, fresh)


def literals(jaxpr):
    return [float(v.val) for e in jaxpr.eqns for v in e.invars if isinstance(v, Literal)]


def test_free_axes_are_twice_as_long_and_pinned_ones_stay():
    found = analysed(mean)
    shapes = list(doubled(found.store, found.leaves, found.inputs, found.numbers))
    assert shapes[0] == ([(3, 16)], [(2, 3)])


@pytest.mark.parametrize(("function", "count"), [(mean, 1), (fixed, 0)])
def test_what_stands_in_the_place_of_a_number(function, count):
    found = analysed(function)
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (PARAMS, [X]))
    other = [([(3, 16)], [(2, 3)])]
    twins = traced_at(function, *structs, other, found.frame, False)
    assert len(twins) == count
    for twin in twins:
        assert literals(found.frame.jaxpr) == [8.0]
        assert literals(twin[id(found.frame)]) == [16.0]


def test_calls_that_are_made_of_other_equations_are_left_out():
    found = analysed(lambda p, x: jax.jit(mean)(p, x) + 1)
    same = jax.make_jaxpr(lambda p, x: jax.jit(mean)(p, x) + 1)(PARAMS, X)
    assert len(paired(found.frame, same)) == 2
    other = jax.make_jaxpr(lambda p, x: jax.jit(lambda p, x: jnp.sum(x @ p["w"], -1))(p, x) + 1)
    assert len(paired(found.frame, other(PARAMS, X))) == 1
    assert compat.unpack(same)[0].eqns[0].primitive.name in ("jit", "pjit")
