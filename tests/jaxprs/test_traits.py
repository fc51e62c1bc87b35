"""Every row of the table against the primitive itself."""

from __future__ import annotations

import functools
import gc
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive, primitives

from ifjax.jaxprs import compat
from ifjax.jaxprs.evaluate import evaluate
from ifjax.jaxprs.program import flatten
from ifjax.jaxprs.rules import RULES
from ifjax.jaxprs.traits import LATER, TRAITS, UNKNOWN, contraction_of, traits_of
from tests.graph.laws import array
from tests.jaxprs.rules.test_rules import CASES

FILL = defaultdict(float, gather=7.0)  # what the case reads outside of the array


def test_every_rule_has_a_row():
    assert TRAITS.keys() == RULES.keys()


def test_every_row_is_a_primitive_of_some_version():
    known = {getattr(primitives, n).name for n in dir(primitives) if n.endswith("_p")}
    known |= {p.name for p in gc.get_objects() if isinstance(p, Primitive)}  # not all are exported
    other_versions = "jit pjit remat checkpoint closed_call core_call debug_callback pcast"
    assert TRAITS.keys() - known - LATER.keys() <= {*other_versions.split()}


def test_of_a_primitive_without_a_row_nothing_is_known():
    (equation,) = jax.make_jaxpr(lambda x: jax.pure_callback(np.sin, x, x))(1.0).eqns
    assert traits_of(equation) is UNKNOWN


@functools.cache
def applied(name):
    """The equations of a case that apply its primitive, with their operands and results."""
    f, args, _, _ = CASES[name]
    with jax.enable_x64(True):
        program = flatten(jax.make_jaxpr(f)(*args), [True] * len(args))
        seen = []
        values = zip(program.inputs, map(jnp.asarray, args), strict=True)
        evaluate(program, dict(values), seen.append)
    found = [s for s in seen if s.step.equation.primitive.name == name.split()[0]]
    return [(s.step.equation, [*map(jnp.asarray, s.operands)], s.results) for s in found]


def cases(keep):
    return [name for name in CASES if keep(TRAITS[name.split()[0]])]


def put(values, changed):
    return [changed.get(i, x) for i, x in enumerate(values)]


@pytest.mark.parametrize("name", cases(lambda t: t.zero is not None))
def test_zeros_stay_zeros(name):
    with jax.enable_x64(True):
        for equation, operands, _ in applied(name):
            traits = traits_of(equation)
            sources = [*range(len(operands))[traits.sources]]
            sets = [sources] if traits.zero == "all" else [[i] for i in sources]
            for chosen in sets:
                zeros = {i: jnp.zeros_like(operands[i]) for i in chosen}
                results = compat.bind(equation, put(operands, zeros))
                for result in [results[chosen[0]]] if traits.zero == "each" else results:
                    assert {*np.ravel(result)} <= {0.0, FILL[name]}


@pytest.mark.parametrize("name", cases(lambda t: bool(t.affine)))
def test_affine_in_one_operand_while_the_others_stay(name):
    with jax.enable_x64(True):
        for equation, operands, results in applied(name):
            tolerance = 0.02 if name == "reduce_precision" else 1e-3  # it rounds
            for i in traits_of(equation).affine:
                x = operands[i]
                if not jnp.issubdtype(x.dtype, jnp.floating):
                    continue
                y = jnp.asarray(array(*x.shape, seed=7), x.dtype)
                zero, there, beyond = (
                    compat.bind(equation, put(operands, {i: v}))
                    for v in (jnp.zeros_like(x), y, x + y)
                )
                for f0, fx, fy, fz in zip(zero, results, there, beyond, strict=True):
                    if jnp.issubdtype(fx.dtype, jnp.floating):
                        np.testing.assert_allclose(fz - f0, fx + fy - 2 * f0, atol=tolerance)


@pytest.mark.parametrize("name", cases(lambda t: t.kind == "same"))
def test_the_same_array_comes_out(name):
    for _, operands, results in applied(name):
        for x, y in zip(operands, results, strict=True):
            np.testing.assert_allclose(np.asarray(y, x.dtype), x, rtol=1e-2)


@pytest.mark.parametrize("name", cases(lambda t: t.kind in ("layout", "move", "lookup", "join")))
def test_moves_make_no_new_entries(name):
    for equation, operands, results in applied(name):
        known = {*np.concatenate([np.ravel(x) for x in operands[traits_of(equation).sources]])}
        for result in results:
            assert {*np.ravel(result)} <= known | {FILL[name]}


def test_the_axes_of_a_contraction():
    def of(f, *args):
        (equation,) = jax.make_jaxpr(f)(*args).eqns
        found = contraction_of(equation)
        return found.contracted, found.batch, found.free, found.groups

    x, w = array(5, 2, 3), array(2, 4, 3)
    product = lambda x, w: lax.dot_general(x, w, (((2,), (2,)), ((1,), (0,))))  # noqa: E731
    assert of(product, x, w) == (((2,), (2,)), ((1,), (0,)), ((0,), (1,)), ())
    sizes = np.array([2, 3], np.int32)
    ragged = of(lax.ragged_dot, array(5, 3), array(2, 3, 4), sizes)
    assert ragged == (((1,), (1,)), ((), ()), ((0,), (2,)), (0,))
    conv = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert of(conv, array(1, 4, 4, 3), array(2, 2, 3, 5)) == (
        ((3,), (2,)),
        ((), ()),
        ((0, 1, 2), (0, 1, 3)),
        (),
    )
