"""Normal forms: rows times kernel are what the contraction gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ifjax.activations.moments import (
    added,
    kernel,
    moments,
    normal_form,
    results,
    rows,
    unresults,
    weight,
)

CONVOLUTIONS = {
    "plain": ((3, 3, 4, 6), {}),
    "strided": ((3, 3, 4, 6), {"window_strides": (2, 1)}),
    "dilated": ((3, 2, 4, 6), {"rhs_dilation": (2, 1), "padding": [(2, 1), (0, 0)]}),
    "transposed": ((3, 3, 4, 6), {"lhs_dilation": (2, 2), "padding": [(1, 1), (1, 1)]}),
    "grouped": ((3, 3, 2, 6), {"feature_group_count": 2}),
    "depthwise": ((3, 3, 1, 8), {"feature_group_count": 4}),
}
DOTS = {
    "plain": ("nk,ko->no", (5, 3), (3, 4)),
    "kernel first": ("ok,nk->on", (4, 3), (5, 3)),
    "two contracted": ("bthd,hdc->btc", (2, 3, 4, 5), (4, 5, 6)),
    "experts": ("nek,eko->neo", (5, 2, 3), (2, 3, 4)),
    "axes elsewhere": ("kbn,okb->bno", (3, 2, 5), (4, 3, 2)),
}


def check(equation, operands, side, groups=1):
    form = normal_form(equation, side, groups)
    x, w = operands[side], operands[1 - side]
    y = equation.primitive.bind(*operands, **equation.params)
    read, k = rows(form, x, tuple(w.shape)), kernel(form, w)
    got = jnp.einsum("bnk,bko->bno", read, k)
    np.testing.assert_allclose(got, results(form, y), rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(weight(form, k, w.shape), w)
    np.testing.assert_array_equal(unresults(form, results(form, y), y.shape), y)
    found = added(None, moments((form,), (tuple(w.shape),), (x,), results(form, y)))
    twice = added(found, moments((form,), (tuple(w.shape),), (x,), results(form, y)))
    wide, target = np.asarray(read, np.float64), np.asarray(results(form, y), np.float64)
    np.testing.assert_allclose(
        found.gram, np.einsum("bnk,bnl->bkl", wide, wide), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        twice.cross, 2 * np.einsum("bnk,bno->bko", wide, target), rtol=1e-4, atol=1e-4
    )
    assert twice.count == 2 * read.shape[1]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    shape, options = CONVOLUTIONS[name]
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 4))
    w = jax.random.normal(jax.random.key(1), shape)
    function = lambda x, w: lax.conv_general_dilated(  # noqa: E731
        x, w, dimension_numbers=numbers, **options
    )
    [equation] = jax.make_jaxpr(function)(x, w).eqns
    check(equation, (x, w), 0, options.get("feature_group_count", 1))


@pytest.mark.parametrize("name", DOTS)
def test_products(name):
    text, *shapes = DOTS[name]
    operands = [jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes)]
    jaxpr = jax.make_jaxpr(lambda a, b: jnp.einsum(text, a, b))(*operands)
    [equation] = [e for e in _equations(jaxpr) if e.primitive.name == "dot_general"]
    shapes_of = [tuple(v.aval.shape) for v in equation.invars]
    side = 1 if name == "kernel first" else 0
    swapped = shapes_of != [x.shape for x in operands]
    check(equation, operands[::-1] if swapped else operands, 1 - side if swapped else side)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "eqns"):
                yield from _equations(value)
