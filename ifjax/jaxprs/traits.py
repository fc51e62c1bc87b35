"""What every primitive is, said once: a call, a contraction, elementwise, a move of data, ...

Whoever asks what an equation does to numbers reads it here; how axes flow through it is said by its
rule. Every primitive that has a rule has a row.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from jax.extend.core import JaxprEqn

from ifjax.jaxprs import compat

Kind = Literal[
    "call",  # evaluates a jaxpr whose inputs are the operands, one by one
    "control",  # loops and branches
    "contraction",  # sums of products of the first two operands
    "elementwise",  # entries of the results are made of the entries at the same place
    "same",  # every result is its operand, entry by entry
    "layout",  # all entries of the operand, every one at its place along every axis
    "move",  # entries of the operand, elsewhere, some of them or several times
    "lookup",  # entries of the first operand, at positions that the others give
    "join",  # the operands side by side
    "write",  # the first operand with another one written into it
    "reduction",  # over params["axes"], in any order
    "search",  # the position along params["axes"] of what is looked for
    "ordered",  # the order along params[over] matters
    "window",  # a window moves along axes
    "made",  # made from nothing: counted or drawn
    "collective",  # entries of equal position on several devices meet
    "callback",  # a look on the side
    "other",
]


class Traits(NamedTuple):
    """What a primitive is.

    Attributes:
      kind: the one word for it.
      body: of a call, the parameter that holds its jaxpr.
      sources: the operands that the results are made of; others say where or which.
      zero: where entries of the results are zero: where ``"any"`` of the sources is, where
        ``"all"`` of them are, or where the source of the same number is (``"each"``); None where
        zeros become something else.
      affine: the operands in each of which it is affine while the others stay.
      adds: whether a parameter among several sources shifts or replaces values, not scales them.
      power: whether it is a power of every entry, as norms sum them.
      over: the parameter that names the axes along which the order matters.
    """

    kind: Kind
    body: str = ""
    sources: slice = slice(None)
    zero: Literal["any", "all", "each"] | None = None
    affine: tuple[int, ...] = ()
    adds: bool = False
    power: bool = False
    over: str = ""

    @property
    def scales(self) -> bool:
        """Whether each entry of a factor scales the entry at the same place of the other."""
        return self.kind == "elementwise" and bool(self.affine) and not self.adds


def _rows(names: str, traits: Traits) -> dict[str, Traits]:
    return dict.fromkeys(names.split(), traits)


FIRST, FACTORS = slice(0, 1), slice(0, 2)
UNKNOWN = Traits("other")

CALLS = {
    **_rows("jit pjit remat remat2 checkpoint", Traits("call", "jaxpr")),
    **_rows("closed_call core_call custom_jvp_call custom_vjp_call", Traits("call", "call_jaxpr")),
    **_rows("scan while cond", Traits("control")),
    "shard_map": UNKNOWN,  # takes shards of its operands
    **_rows("debug_callback debug_print io_callback", Traits("callback")),
}

CONTRACTIONS = _rows(
    "dot_general ragged_dot_general conv_general_dilated",
    Traits("contraction", sources=FACTORS, zero="any", affine=(0, 1)),
)

ELEMENTWISE = {
    # f(0) = 0
    **_rows(
        "sign floor ceil round sqrt cbrt sin tan asin atan sinh tanh asinh atanh erf erf_inv "
        "expm1 log1p real imag conj complex max min",
        Traits("elementwise", zero="all"),
    ),
    **_rows("add add_any sub", Traits("elementwise", zero="all", affine=(0, 1), adds=True)),
    "neg": Traits("elementwise", zero="all", affine=(0,)),
    "mul": Traits("elementwise", zero="any", affine=(0, 1)),
    "select_n": Traits("elementwise", sources=slice(1, None), zero="all", adds=True),
    # f(0, y) = 0
    "div": Traits("elementwise", sources=FIRST, zero="all", affine=(0,)),
    "rem": Traits("elementwise", sources=FIRST, zero="all"),
    **_rows("abs square integer_pow", Traits("elementwise", zero="all", power=True)),
    # the rest
    **_rows(
        "nextafter clamp pow rsqrt exp exp2 log logistic cos acos atan2 cosh acosh erfc lgamma "
        "digamma polygamma igamma igammac igamma_grad_a zeta bessel_i0e bessel_i1e "
        "regularized_incomplete_beta mulhi and or xor not eq ne lt le gt ge eq_to le_to lt_to "
        "is_finite population_count clz shift_left shift_right_arithmetic shift_right_logical "
        "threefry2x32",
        Traits("elementwise"),
    ),
}

# of jax 0.12 and newer
LATER = _rows("one_minus_square polynomial log2", Traits("elementwise"))

MOVES = {
    **_rows(
        "convert_element_type reduce_precision copy stop_gradient optimization_barrier device_put "
        "sharding_constraint name pvary pcast",
        Traits("same", zero="each", affine=(0,)),
    ),
    **_rows(
        "broadcast_in_dim reshape squeeze transpose", Traits("layout", zero="all", affine=(0,))
    ),
    **_rows("slice split unstack tile", Traits("move", zero="all", affine=(0,))),
    **_rows("gather dynamic_slice", Traits("lookup", sources=FIRST, zero="all", affine=(0,))),
    **_rows("concatenate stack", Traits("join", zero="all", adds=True)),
    "pad": Traits("join", zero="all"),
    "dynamic_update_slice": Traits("write", sources=FACTORS, zero="all", adds=True),
    **_rows(
        "scatter scatter-add scatter-sub",
        Traits("write", sources=slice(0, 3, 2), zero="all", adds=True),
    ),
    **_rows("scatter-min scatter-max", Traits("write", sources=slice(0, 3, 2), zero="all")),
    "scatter-mul": Traits("write", sources=FIRST, zero="all"),
    "bitcast_convert_type": Traits("other", zero="all"),
}

OVER_AXES = {
    "reduce_sum": Traits("reduction", zero="all", affine=(0,)),
    **_rows(
        "reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor",
        Traits("reduction", zero="all"),
    ),
    **_rows("argmax argmin", Traits("search")),
    "rev": Traits("ordered", zero="all", affine=(0,), over="dimensions"),
    "cumsum": Traits("ordered", zero="all", affine=(0,), over="axis"),
    **_rows("cumprod cummax cummin", Traits("ordered", zero="all", over="axis")),
    "cumlogsumexp": Traits("ordered", over="axis"),
    "sort": Traits("ordered", zero="each", over="dimension"),
    "top_k": Traits("ordered", over="axis"),  # values and positions
    "approx_top_k": Traits("ordered", over="reduction_dimension"),
    **_rows("reduce_window_sum reduce_window_max reduce_window_min", Traits("window", zero="all")),
    **_rows("reduce_window select_and_scatter_add select_and_gather_add", Traits("window")),
    **_rows("reduce fft", UNKNOWN),
}

MADE = {
    **_rows("iota random_bits", Traits("made")),
    **_rows(
        "random_seed random_wrap random_unwrap random_fold_in random_split random_clone "
        "random_gamma rng_bit_generator rng_uniform",
        UNKNOWN,
    ),
}

MATRICES = _rows(
    "cholesky cholesky_update eig eigh hessenberg lu qr schur svd tridiagonal householder_product "
    "symmetric_product tridiagonal_solve lu_pivots_to_permutation triangular_solve",
    UNKNOWN,
)

COLLECTIVES = _rows("psum psum_invariant pmax pmin ppermute", Traits("collective", zero="each"))

TRAITS: dict[str, Traits] = {
    **CALLS,
    **CONTRACTIONS,
    **ELEMENTWISE,
    **LATER,
    **MOVES,
    **OVER_AXES,
    **MADE,
    **MATRICES,
    **COLLECTIVES,
}


def traits_of(equation: JaxprEqn) -> Traits:
    """What the primitive of an equation is; of one without a row nothing is known."""
    return TRAITS.get(equation.primitive.name, UNKNOWN)


Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Contraction:
    """The axes of both factors of a contraction, by what becomes of them.

    Attributes:
      contracted: summed over, in pairs.
      batch: in pairs too: one product per entry.
      free: the rest, windows of a convolution included.
      groups: of a ragged product, the axes of the second factor that number its kernels.
    """

    contracted: Pair
    batch: Pair
    free: Pair
    groups: tuple[int, ...] = ()


def contraction_of(equation: JaxprEqn) -> Contraction:
    """Reads a matrix product, ragged product or convolution.

    Args:
      equation: of kind ``"contraction"``.

    Returns:
      The axes of its first two operands.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> product = jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 4))).eqns[0]
      >>> contraction_of(product)
      Contraction(contracted=((1,), (0,)), batch=((), ()), free=((0,), (1,)), groups=())
    """
    name, p, groups = equation.primitive.name, equation.params, ()
    if name == "conv_general_dilated":
        numbers = p["dimension_numbers"]
        contracted, batch = ((numbers.lhs_spec[1],), (numbers.rhs_spec[1],)), ((), ())
    elif name == "ragged_dot_general":
        numbers = p["ragged_dot_dimension_numbers"]
        contracted, batch = numbers.dot_dimension_numbers
        groups = tuple(numbers.rhs_group_dimensions)
    else:
        contracted, batch = p["dimension_numbers"]
    (c0, c1), (b0, b1) = (tuple(map(tuple, pair)) for pair in (contracted, batch))
    f0, f1 = (
        tuple(i for i in range(len(compat.shape_of(v))) if i not in joined)
        for v, joined in zip(equation.invars, ((*c0, *b0), (*c1, *b1, *groups)), strict=False)
    )
    return Contraction((c0, c1), (b0, b1), (f0, f1), groups)
