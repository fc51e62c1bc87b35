"""Every rule: which axes are free, that permuting them commutes, and the smaller width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.random import threefry2x32_p

from ifjax.jaxprs.rules import RULES, calls, control, random
from ifjax.jaxprs.traits import LATER
from tests.graph.laws import array
from tests.jaxprs.rules.commuting import commute

X = array(4, 6)
Y = array(4, 6, seed=1)
POSITIVE = abs(X)
UNIT = X / 2
INTEGERS = (X * 10).astype(np.int64)
KEY = jax.random.key_data(jax.random.key(0))
SPD = array(4, 3, 3) @ array(4, 3, 3).swapaxes(1, 2) + 3 * np.eye(3)
SIGNS = np.where(X > 0, 1.0, -1.0)


def every(names, make, *args):
    """A case for every function of `jax.lax` of these names."""
    return {name.removesuffix("_p"): make(getattr(lax, name), *args) for name in names.split()}


def case(f, *args, signature, **options):
    return f, args, signature, options


def unary(f, x=X):
    return case(f, x, signature="ab > ab")


def binary(f, x=X, y=Y):
    return case(f, x, y, signature="ab ab > ab")


def whole(f, *args):
    sides = " ".join(["ab"] * len(args))
    return case(f, *args, signature=f"{sides} > ab", integers=True)


def cumulative(f):
    return case(lambda x: f(x, 1, reverse=True), X, signature="a. > a.")


def window(x, low, high, size, reduce=lax.add, start=0.0):
    return lax.reduce_window(x, start, reduce, (1, size), (1, 1), ((0, 0), (low, high)))


def pooled(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID")


def conv(x, k, **options):
    numbers = ("NWC", "WIO", "NWC")
    options = {"window_strides": (1,), "padding": "SAME"} | options
    return lax.conv_general_dilated(x, k, dimension_numbers=numbers, **options)


ELEMENTWISE = {
    **every("abs neg sign floor ceil round", unary),
    **every("exp exp2 expm1 cbrt logistic square", unary),
    **every("sin cos tan sinh cosh tanh asinh atan", unary),
    **every("erf erfc bessel_i0e bessel_i1e is_finite", unary),
    **every("asin acos atanh erf_inv", unary, UNIT),
    **every("log log1p sqrt rsqrt", unary, POSITIVE),
    **every("lgamma digamma", unary, POSITIVE),
    "acosh": unary(lax.acosh, POSITIVE + 1),
    **every("add sub mul div rem max min", binary),
    **every("atan2 nextafter complex", binary),
    **every("eq ne lt le gt ge", binary),
    **every("pow igamma igammac", binary, POSITIVE, abs(Y)),
    "igamma_grad_a": binary(lax.igamma_grad_a, POSITIVE, abs(Y)),
    "zeta": binary(lax.zeta, POSITIVE + 1, abs(Y)),
    "polygamma": binary(lax.polygamma, np.ones_like(X), abs(Y)),
    "regularized_incomplete_beta": case(
        lambda a, b, x: lax.betainc(a, b, x),
        *(POSITIVE, abs(Y), POSITIVE / 2),
        signature="ab ab ab > ab",
    ),
    **every("eq_to_p le_to_p lt_to_p", lambda primitive: binary(primitive.bind)),
    "integer_pow": unary(lambda x: x**3),
    "clamp": case(lax.clamp, -POSITIVE, X, abs(Y) / 2, signature="ab ab ab > ab"),
    "select_n": case(lambda x, y, z: lax.select_n(x > 0, y, z), X, Y, X, signature="ab ab ab > ab"),
    "reduce_precision": unary(lambda x: lax.reduce_precision(x, 8, 7)),
    "convert_element_type": unary(lambda x: x.astype(jnp.float32)),
    "copy": unary(jnp.copy),
    "stop_gradient": unary(lambda x: lax.stop_gradient(x) * 1),
    "real": binary(lambda x, y: lax.real(lax.complex(x, y))),
    "imag": binary(lambda x, y: lax.imag(lax.complex(x, y))),
    "conj": binary(lambda x, y: lax.conj(lax.complex(x, y))),
    "not": whole(lax.bitwise_not, INTEGERS),
    "and": whole(lax.bitwise_and, INTEGERS, 3 - INTEGERS),
    "or": whole(lax.bitwise_or, INTEGERS, 3 - INTEGERS),
    "xor": whole(lax.bitwise_xor, INTEGERS, 3 - INTEGERS),
    "population_count": whole(lax.population_count, INTEGERS),
    "clz": whole(lax.clz, INTEGERS),
    "mulhi": whole(lax.mulhi, INTEGERS, 3 - INTEGERS),
    "shift_left": whole(lax.shift_left, INTEGERS, abs(INTEGERS) % 5),
    "shift_right_logical": whole(lax.shift_right_logical, INTEGERS, abs(INTEGERS) % 5),
    "shift_right_arithmetic": whole(lax.shift_right_arithmetic, INTEGERS, abs(INTEGERS) % 5),
    "add_any": unary(lambda x: jax.vjp(lambda x: (x, 2 * x), x)[1]((x, x))[0]),
    "bitcast_convert_type": unary(lambda x: lax.bitcast_convert_type(x, np.int64)),
    "optimization_barrier": case(
        lambda x, y: lax.optimization_barrier((x, y)), X, Y.T, signature="ab cd > ab cd"
    ),
    "name": unary(lambda x: checkpoint_name(x, "x")),
    "device_put": unary(lambda x: jax.device_put(x, jax.devices()[0])),
    "sharding_constraint": unary(
        lambda x: lax.with_sharding_constraint(
            x, jax.sharding.SingleDeviceSharding(jax.devices()[0])
        )
    ),
}

# Cut positions are zero: sums do not see them; the largest of positive numbers does not either
REDUCTIONS = {
    "reduce_sum": case(lambda x: x.sum(1), X, signature="ab > a"),
    "reduce_max": case(lambda x: x.max(0), POSITIVE, signature="ab > b"),
    "reduce_min": case(lambda x: x.min(0), -POSITIVE, signature="ab > b"),
    "reduce_prod": case(lambda x: x.prod(1), X, signature="ab > a", cut=False),
    "reduce_and": case(lambda x: (x > 9).all(1), X, signature="ab > a"),
    "reduce_or": case(lambda x: (x > 0.3).any(1), X, signature="ab > a"),
    "reduce_xor": case(
        lambda x: lax.reduce(x > 0.3, False, lax.bitwise_xor, (1,)), X, signature="ab > a"
    ),
    "reduce": case(
        lambda x: lax.reduce(x, 0.0, lambda a, b: a + 2 * b, (0,)), X, signature=".a > a"
    ),
}

ORDERED = {
    "argmax": case(lambda x: lax.argmax(x, 1, np.int32), X, signature="a. > a"),
    "argmin": case(lambda x: lax.argmin(x, 0, np.int32), X, signature=".a > a"),
    **every("cumsum cumprod cummax cummin cumlogsumexp", cumulative),
    "rev": case(lambda x: lax.rev(x, (0,)), X, signature="ab > a~b"),
    "sort": case(lambda x, y: lax.sort((x, y), 0), X, Y, signature=".a .a > .a .a"),
    "top_k": case(lambda x: lax.top_k(x, 2), X, signature="a. > a. a."),
    "approx_top_k": case(
        lambda x: lax.approx_max_k(x, 2, reduction_dimension=0), X, signature=".a > .a .a"
    ),
    "fft": case(lambda x: lax.fft(x, "RFFT", (6,)), X, signature="a. > a."),
    "reduce_window_sum": case(lambda x: window(x, 0, 0, 2), X, signature="a. > a."),
    "reduce_window_max": case(
        lambda x: window(x, 1, 0, 2, lax.max, -np.inf), X, signature="a. > a."
    ),
    "reduce_window_min": case(
        lambda x: window(x, 0, 0, 1, lax.min, np.inf), X, signature="ab > ab"
    ),
    "reduce_window": case(
        lambda x, y: lax.reduce_window(
            (x, y),
            (0.0, 0.0),
            lambda a, b: (a[0] + b[0], a[1] - b[1]),
            *((1, 2), (1, 1), "VALID"),
        ),
        *(X, Y),
        signature="a. a. > a. a.",
    ),
    "select_and_scatter_add": case(
        lambda x, y: jax.vjp(pooled, x)[1](y[:, :3])[0], X, Y, signature="a. a(.+b) > a."
    ),
    "select_and_gather_add": case(
        lambda x, y: jax.jvp(pooled, (x,), (y,))[1], X, Y, signature="a. a. > a."
    ),
}

SHAPES = {
    "broadcast_in_dim": case(
        lambda x: lax.broadcast_in_dim(x, (4, 2, 6), (0, 2)), X, signature="ab > acb"
    ),
    "reshape": case(lambda x: x.reshape(4, 2, 3), X, signature="a(b*c) > abc"),
    "transpose": case(lambda x: x.T, X, signature="ab > ba"),
    "squeeze": case(lambda x: lax.squeeze(x, (1,)), array(4, 1, 6), signature="a1b > ab"),
    "slice": case(lambda x: x[:, 1:3], X, signature="a(1+b+c) > ab"),
    "pad": case(lambda x: jnp.pad(x, ((0, 0), (2, 0))), X, signature="ab > a(c+b)"),
    "concatenate": case(lambda x, y: jnp.concatenate([x, y], 1), X, Y, signature="ab ac > a(b+c)"),
    "split": case(lambda x: lax.split(x, (2, 4), 1), X, signature="a(b+c) > ab ac"),
    "iota": case(lambda x: x * lax.broadcasted_iota(float, (4, 6), 1), X, signature="a. > a."),
    "stack": case(lambda x, y: jnp.stack([x, y], 1), X, Y, signature="ab ab > a.b"),
    "tile": case(lambda x: jnp.tile(x, (1, 3)), X, signature="ab > a(c*b)"),
    "unstack": case(lambda x: jnp.unstack(x, axis=1), array(4, 2), signature="a. > a a"),
}

LINEAR = {
    "dot_general": case(
        lambda x, y: lax.dot_general(
            x, y, (((2,), (1,)), ((0,), (0,))), preferred_element_type=np.float64
        ),
        *(array(3, 4, 5), array(3, 5, 2)),
        signature="abc acd > abd",
    ),
    "ragged_dot_general": case(
        lambda x, k, n: lax.ragged_dot(x, k, n),
        *(array(5, 3), array(2, 3, 4), np.array([2, 3], np.int32)),
        signature=".a .ab . > .b",
    ),
    "conv_general_dilated": case(conv, array(2, 5, 4), array(3, 4, 2), signature="a.b .bc > a.c"),
    "conv_general_dilated grouped": case(
        lambda x, k: conv(x, k, feature_group_count=2, rhs_dilation=(2,)),
        *(array(2, 5, 6), array(3, 3, 4)),
        signature="a.(b*c) .c(b*d) > a.(b*d)",
    ),
    "conv_general_dilated depthwise": case(
        lambda x, k: conv(x, k, feature_group_count=4),
        *(array(2, 5, 4), array(3, 1, 4)),
        signature="a.b .1b > a.b",
    ),
    "conv_general_dilated in groups of the batch": case(
        lambda x, k: conv(x, k, batch_group_count=2),
        *(array(6, 5, 3), array(3, 3, 8)),
        signature="(a*b).c .c(a*d) > b.(a*d)",
    ),
    "conv_general_dilated transposed": case(
        lambda x, k: lax.conv_transpose(
            x, k, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        ),
        *(array(2, 5, 4), array(3, 4, 2)),
        signature="a.b .bc > a.c",
    ),
}

MATRICES = {
    "cholesky": case(lax.linalg.cholesky, SPD, signature="a.. > a.."),
    "lu": case(lambda x: lax.linalg.lu(x)[0], SPD, signature="a.. > a..", cut=False),
    "lu_pivots_to_permutation": case(
        lambda x: lax.linalg.lu_pivots_to_permutation(x, 3),
        np.full((4, 2), 2, np.int32),
        signature="a. > a.",
        integers=True,
        cut=False,
    ),
    "qr": case(lambda x: lax.linalg.qr(x, full_matrices=False)[1], SPD, signature="a.. > a.."),
    "eigh": case(lambda x: lax.linalg.eigh(x)[1], SPD, signature="a.. > a."),
    "eig": case(lambda x: abs(lax.linalg.eig(x)[0]), SPD, signature="a.. > a."),
    "cholesky_update": case(
        lambda x, v: lax.linalg.cholesky_update(x, v), SPD[0], SPD[0, 0], signature=".. . > .."
    ),
    "hessenberg": case(lambda x: lax.linalg.hessenberg(x)[0], SPD, signature="a.. > a.."),
    "schur": case(lambda x: lax.linalg.schur(x)[0], SPD, signature="a.. > a.."),
    "tridiagonal": case(lambda x: lax.linalg.tridiagonal(x)[1], SPD, signature="a.. > a."),
    "householder_product": case(
        lax.linalg.householder_product, SPD, array(4, 3), signature="a.. a. > a.."
    ),
    "symmetric_product": case(
        lambda x, y: lax.linalg.symmetric_product(x, y), SPD, SPD, signature="a.. a.. > a.."
    ),
    "svd": case(lambda x: lax.linalg.svd(x, compute_uv=False), SPD, signature="a.. > a."),
    "triangular_solve": case(
        lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True, unit_diagonal=True),
        *(SPD, array(4, 3, 2)),
        signature="a.. a.b > a.b",
    ),
    "tridiagonal_solve": case(
        lambda m, b: lax.linalg.tridiagonal_solve(m[:, 0], m[:, 1] + 3, m[:, 2], b),
        *(SPD, array(4, 3, 2)),
        signature="a.. a.. > a..",
        cut=False,
    ),
}

RANDOM = {
    "threefry2x32": case(
        lambda k, x: threefry2x32_p.bind(k, k, x, x),
        *(np.uint32(INTEGERS % 100), np.uint32(INTEGERS % 7)),
        signature="ab ab > ab ab",
        integers=True,
    ),
}

INDEXING = {
    "gather": case(
        lambda x, i: x.at[i].get(mode="fill", fill_value=7.0),
        *(X, np.array([[2, 0, 9]])),
        signature=".a 1. > 1.a",
    ),
    "scatter": case(
        lambda x, i, y: x.at[i].set(y),
        *(X, np.array([2, 0]), array(2, 6)),
        signature=".a . .a > .a",
    ),
    **{
        f"scatter-{n}": case(
            lambda x, i, y, n=n: getattr(x.at[i], n)(y),
            *(X, np.array([2, 0, 2]), array(3, 6)),
            signature=".a . .a > .a",
        )
        for n in ("add", "mul", "min", "max")
    },
    "scatter-sub": case(
        lambda x, i, y: x.at[i].subtract(y),
        *(X, np.array([2, 0, 2]), array(3, 6)),
        signature=".a . .a > .a",
    ),
    "dynamic_slice": case(
        lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 6)), X, np.int64(1), signature=".a - > .a"
    ),
    "dynamic_update_slice": case(
        lambda x, y, i: lax.dynamic_update_slice(x, y, (i, 0)),
        *(X, array(2, 6), np.int64(1)),
        signature=".a .a - > .a",
    ),
}

if hasattr(lax, "polynomial"):  # jax 0.12
    ELEMENTWISE["polynomial"] = binary(lambda x, y: lax.polynomial(x, [y, x, y]))
    ELEMENTWISE["one_minus_square"] = unary(lax.one_minus_square)
    ELEMENTWISE["log2"] = unary(jnp.log2, POSITIVE)

CASES = ELEMENTWISE | REDUCTIONS | ORDERED | SHAPES | LINEAR | MATRICES | RANDOM | INDEXING


@pytest.mark.parametrize("name", CASES)
def test_permuting_and_cutting_a_free_axis_commute(name):
    f, args, signature, options = CASES[name]
    walked = commute(f, *args, signature=signature, **options)
    primitive = name.split()[0]
    assert primitive in walked.primitives()


def test_every_rule_has_a_case():
    """But for what is walked into, keys (which pin all), and primitives of later versions."""
    seen_inside = {*calls.RULES, *control.RULES}
    keys = {*random.RULES}
    later = {*LATER} if not hasattr(lax, "polynomial") else set()
    covered = {name.split()[0] for name in CASES}
    assert {*RULES} - seen_inside - keys - later == covered
