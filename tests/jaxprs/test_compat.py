"""What differs between jax versions, seen through one face."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ifjax.jaxprs import compat

TABLE = np.arange(3.0, dtype=np.float32)


def test_unpacking_gives_constants_with_their_variables():
    closed = jax.make_jaxpr(lambda x: x + jnp.asarray(TABLE))(jnp.zeros(3))
    inner, variables, values = compat.unpack(closed)
    assert len(variables) == len(values)
    assert [v.aval.shape for v in inner.invars] == [(3,)]
    env = dict(zip([*variables, *inner.invars], [*values, jnp.ones(3)], strict=True))
    for equation in inner.eqns:
        read = [v.val if isinstance(v, compat.Literal) else env[v] for v in equation.invars]
        env.update(zip(equation.outvars, compat.bind(equation, read), strict=True))
    np.testing.assert_array_equal(env[inner.outvars[0]], TABLE + 1)


@pytest.mark.parametrize(
    "f",
    [
        jnp.sin,
        lambda x: lax.scan(lambda c, _: (c + x, None), x, None, length=2)[0],
        lambda x: lax.while_loop(lambda c: c.sum() < 50, lambda c: 2 * c, x),
        lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.pure_callback(np.sin, x, x),
        jax.jit(jnp.sin),
        jax.nn.relu,
        jax.checkpoint(jnp.sin),
        lambda x: lax.sort(x),
        lambda x: jnp.stack(jnp.split(x, 3)),
    ],
    ids=[
        "sin",
        "scan",
        "while",
        "cond",
        "pure_callback",
        "jit",
        "custom_jvp",
        "remat",
        "sort",
        "stack",
    ],
)
def test_binding_evaluates_every_kind_of_equation(f):
    x = jnp.array([0.3, 0.1, 0.7])
    inner, variables, values = compat.unpack(jax.make_jaxpr(f)(x))
    env = dict(zip([*variables, *inner.invars], [*values, x], strict=True))
    for equation in inner.eqns:
        read = [v.val if isinstance(v, compat.Literal) else env[v] for v in equation.invars]
        env.update(zip(equation.outvars, compat.bind(equation, read), strict=True))
    np.testing.assert_allclose(env[inner.outvars[0]], f(x), rtol=1e-6)


def test_binding_with_other_parameters():
    closed = jax.make_jaxpr(lambda x: jnp.reshape(x, (2, 3)))(jnp.zeros(6))
    (equation,) = closed.eqns
    assert compat.bind(equation, [jnp.zeros(4)], new_sizes=(2, 2))[0].shape == (2, 2)


def test_source_lines_name_the_users_file():
    (equation,) = jax.make_jaxpr(lambda x: x * x)(jnp.zeros(3)).eqns
    assert "test_compat.py" in compat.source_line(equation)


@pytest.mark.parametrize(
    ("f", "counts"),
    [
        (lambda x: lax.scan(lambda c, _: (c + x, None), x, None, length=2)[0], (1, 1)),
        (lambda x: lax.scan(lambda c, y: ((c[1], c[0]), y), (x, x), x), (0, 2)),
        (lambda x: lax.map(lambda y: jnp.sin(y) * x, x), (1, 0)),
        (lambda x: lax.fori_loop(0, 3, lambda i, c: c + i, x), (0, 2)),
    ],
)
def test_the_operands_of_a_scan(f, counts):
    (scan,) = jax.make_jaxpr(f)(jnp.zeros(3)).eqns
    assert compat.scan_counts(scan) == counts


def test_the_operands_of_differentiated_scans():
    def f(x):
        return lax.scan(lambda c, y: (jnp.sin(c) * x * y, c), x.sum() * x, x)[0].sum()

    equations = jax.make_jaxpr(jax.grad(f))(jnp.ones(3)).eqns
    scans = [e for e in equations if e.primitive.name == "scan"]
    assert len(scans) == 2
    for scan in scans:
        inner = compat.unpack(scan.params["jaxpr"])[0]
        constants, carries = compat.scan_counts(scan)
        shapes = [v.aval.shape for v in inner.invars]
        assert shapes[: constants + carries] == [
            v.aval.shape for v in scan.invars[: constants + carries]
        ]
        assert shapes[constants + carries :] == [
            v.aval.shape[1:] for v in scan.invars[constants + carries :]
        ]
        assert [v.aval.shape for v in inner.outvars[:carries]] == shapes[constants:][:carries]


def test_the_rule_of_a_custom_derivative():
    @jax.custom_jvp
    def f(x, y):
        return x * y

    @f.defjvp
    def f_jvp(primals, tangents):
        (x, y), (s, t) = primals, tangents
        return x * y, 2 * x * t + 3 * y * s

    (equation,) = jax.make_jaxpr(f)(2.0, 5.0).eqns
    jaxpr, consts, out_zeros = compat.jvp_jaxpr(equation, (False, False))
    out = jax.core.eval_jaxpr(jaxpr, consts, 2.0, 5.0, 1.0, 10.0)
    assert out_zeros == [False]
    assert [float(o) for o in out] == [10.0, 55.0]
