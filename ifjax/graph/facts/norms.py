"""Finds the batch norms of a function by their algebra, however they were written.

Every value that is affine in the output y of a contraction, channel by channel, is held as
A y + B, where A and B are polynomials in parameter vectors. A batch norm is the form

    A = scale / sqrt(variance + eps),    B = offset - mean A  (+ bias A),

whatever the order in which a framework multiplies it out. It can be folded into the kernel when y
and everything between is used in no other way.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import JaxprEqn, Var
from jax.typing import ArrayLike

from ifjax.jaxprs import compat
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.traits import contraction_of, traits_of
from ifjax.jaxprs.walk import Axes, Frame

# A symbol is (kind, leaf, eps): the leaf itself, or a power of (leaf + eps).
Symbol = tuple[str, int, float]
Monomial = tuple[Symbol, ...]
Polynomial = frozenset[tuple[Monomial, float]]

CONSTANT = -1  # leaf number of closed-over vectors
ONE: Polynomial = frozenset({((), 1.0)})
ZERO: Polynomial = frozenset()


@dataclasses.dataclass(frozen=True)
class Norm:
    """A batch norm, by leaf numbers.

    Attributes:
      kernel: the leaf before it and the axis of that leaf that it normalises; None where it cannot
        be folded.
      bias: the bias between kernel and norm.
      scale: multiplied after normalising.
      offset: added after normalising.
      mean: running mean.
      variance: running variance.
      eps: added to the variance.
      reads: frame and variable of what it normalises, before the bias; None in and after loops.
    """

    kernel: tuple[int, int] | None
    bias: int | None
    scale: int | None
    offset: int | None
    mean: int
    variance: int
    eps: float
    reads: tuple[Frame, Var] | None = None


@dataclasses.dataclass(frozen=True)
class _Affine:
    """slope * base + offset; a base of None is a value of parameters alone."""

    base: int | None
    slope: Polynomial
    offset: Polynomial


@dataclasses.dataclass
class _Base:
    """A value that is not affine in an earlier one."""

    kernel: tuple[int, int] | None
    channel: int | None
    reads: tuple[Frame, Var] | None = None
    seen: set[_Affine] = dataclasses.field(default_factory=set)


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    terms: dict[Monomial, float] = defaultdict(float)
    for m, x in a:
        for n, y in b:
            terms[_reduce((*m, *n))] += x * y
    return frozenset((m, x) for m, x in terms.items() if x)


def _reduce(symbols: tuple[Symbol, ...]) -> Monomial:
    """Sorted symbols, with std * inv cancelled."""
    left = sorted(symbols)
    for kind, leaf, eps in list(left):
        if kind == "std" and ("inv", leaf, eps) in left and (kind, leaf, eps) in left:
            left.remove((kind, leaf, eps))
            left.remove(("inv", leaf, eps))
    return tuple(left)


def _plus(a: Polynomial, b: Polynomial, sign: float = 1.0) -> Polynomial:
    terms: dict[Monomial, float] = defaultdict(float)
    for m, x in a:
        terms[m] += x
    for m, x in b:
        terms[m] += sign * x
    return frozenset((m, x) for m, x in terms.items() if x)


def _single(a: Polynomial) -> tuple[Monomial, float] | None:
    return next(iter(a)) if len(a) == 1 else None


def _shifted_leaf(a: Polynomial) -> tuple[int, float] | None:
    """(leaf, eps) where the polynomial is leaf + eps."""
    terms = dict(a)
    eps = terms.pop((), 0.0)
    if len(terms) == 1:
        ((monomial, x),) = terms.items()
        if x == 1.0 and len(monomial) == 1 and monomial[0][0] == "leaf":
            return monomial[0][1], eps
    return None


def find_norms(
    frame: Frame,
    store: AxisStore,
    leaves: Sequence[Axes],
    inputs: Sequence[Axes],
    inside_loops: bool = True,
) -> list[Norm]:
    """All batch norms with running statistics among the parameters, in order of evaluation.

    Args:
      frame: the frame of the whole function.
      store: its axis store.
      leaves: axes of the parameter leaves, which are the function's first inputs.
      inputs: axes of the other inputs.
      inside_loops: without it loops and branches are not looked into, and what is normalised is
        known for every norm.

    Returns:
      One record per norm; its kernel is None where the norm reads anything but the output of one
      contraction that nothing else uses.

    Raises:
      ValueError: if the statistics of a batch norm are closed over instead of passed.
    """
    forms = _Forms(leaves, frame)
    # a slice of a stacked leaf stands for the leaf: a norm with such vectors is never folded
    control = Control(
        join=lambda values, deciders: forms.opaque(*values, *deciders),
        stack=forms.opaque,
        settle=lambda carries, run: list(map(forms.opaque, carries)),
    )
    symbols = [
        _Affine(None, ZERO, frozenset({((("leaf", i, 0.0),), 1.0)})) for i in range(len(leaves))
    ]
    variables = compat.unpack(frame.jaxpr)[0].invars[len(leaves) :]
    operands = [*symbols, *map(forms.base, variables)]
    seeing = control if inside_loops else None
    for value in interpret(frame, store, operands, forms.transfer, _constant, forms.visit, seeing):
        if value not in symbols:  # statistics that pass through unchanged
            forms.escape(value)
    return _match(forms.bases, forms.uses, store, leaves)


@dataclasses.dataclass
class _Forms:
    """Writes values as affine forms of earlier ones, and notes who reads what.

    Attributes:
      leaves: axes of the parameter leaves.
      here: the frame that is being interpreted.
      bases: values that are affine in no earlier one.
      uses: how often a leaf is read, other than inside forms.
    """

    leaves: Sequence[Axes]
    here: Frame
    bases: list[_Base] = dataclasses.field(default_factory=list)
    uses: dict[int, int] = dataclasses.field(default_factory=lambda: defaultdict(int))

    def base(
        self,
        variable: Var | None = None,
        kernel: tuple[int, int] | None = None,
        channel: int | None = None,
    ) -> _Affine:
        self.bases.append(
            _Base(kernel, channel, None if variable is None else (self.here, variable))
        )
        return _Affine(len(self.bases) - 1, ONE, ZERO)

    def visit(self, frame: Frame, number: int) -> None:
        del number
        self.here = frame

    def escape(self, value: _Affine) -> None:
        if value.base is not None:
            self.bases[value.base].seen.add(value)
        else:
            for leaf in {s[1] for m, _ in value.offset for s in m}:
                self.uses[leaf] += 1

    def transfer(
        self, equation: JaxprEqn, ins: list[Axes], outs: list[Axes], values: list[_Affine]
    ) -> list[_Affine]:
        traits = traits_of(equation)
        if traits.kind == "same":
            return values
        result = _affine(equation, values)
        if result is not None and result.base is not None:
            # a channel-by-channel step keeps the shape of the value it continues
            moving = [v.base is not None for v in values].index(True)
            if compat.shape_of(equation.invars[moving]) != compat.shape_of(equation.outvars[0]):
                result = None
        if result is not None:
            return [result]
        kernel = channel = None
        if traits.kind == "contraction":
            kernel, channel = _kernel(equation, values, ins, self.leaves)
        for i, value in enumerate(values):
            if kernel is not None and i == 1:
                self.uses[kernel[0]] += 1
            else:
                self.escape(value)
        return [self.base(v, kernel, channel) for v in equation.outvars]

    def opaque(self, *values: _Affine) -> _Affine:
        for value in values:
            self.escape(value)
        return self.base()


def _constant(value: ArrayLike) -> _Affine:
    dtype = getattr(value, "dtype", None) or np.result_type(value)
    is_number = jnp.issubdtype(dtype, np.number)
    if is_number and np.ndim(value) == 0 and not isinstance(value, Tracer):
        return _Affine(None, ZERO, frozenset({((), float(np.real(value)))}) - {((), 0.0)})
    return _Affine(None, ZERO, frozenset({((("leaf", CONSTANT, 0.0),), 1.0)}))


def _affine(equation: JaxprEqn, values: list[_Affine]) -> _Affine | None:
    """The result of an elementwise step where it is affine in at most one base."""
    name = equation.primitive.name
    if traits_of(equation).kind == "layout":  # a leaf is known whichever way its axes lie
        return values[0] if name != "transpose" or values[0].base is None else None
    if name in ("rsqrt", "sqrt") and values[0].base is None:
        found = _shifted_leaf(values[0].offset)
        if found is None:
            return None
        kind = "inv" if name == "rsqrt" else "std"
        return _Affine(None, ZERO, frozenset({(((kind, *found),), 1.0)}))
    if len(values) != 2 or name not in ("add", "sub", "mul", "div"):
        return None
    a, b = values
    if a.base is not None and b.base is not None:
        return None
    if name in ("add", "sub"):
        sign = 1.0 if name == "add" else -1.0
        slope = a.slope if b.base is None else frozenset((m, sign * x) for m, x in b.slope)
        number = a.base if b.base is None else b.base
        return _Affine(number, slope, _plus(a.offset, b.offset, sign))
    if name == "div":
        divisor = _single(b.offset) if b.base is None else None
        if divisor is None:
            return None
        monomial, x = divisor
        if any(kind == "leaf" for kind, _, _ in monomial):
            return None
        swap = {"std": "inv", "inv": "std"}
        inverse = frozenset({(tuple((swap[k], i, e) for k, i, e in monomial), 1.0 / x)})
        b = _Affine(None, ZERO, inverse)
    if b.base is not None:
        a, b = b, a
    return _Affine(a.base, _times(a.slope, b.offset), _times(a.offset, b.offset))


def _kernel(
    equation: JaxprEqn, values: list[_Affine], ins: list[Axes], leaves: Sequence[Axes]
) -> tuple[tuple[int, int] | None, int | None]:
    """(leaf, axis) of the kernel and its output axis node, where the second operand is a leaf."""
    if values[0].base is None or values[1].base is not None:
        return None, None
    term = _single(values[1].offset)
    if term is None or term[1] != 1.0 or len(term[0]) != 1 or term[0][0][0] != "leaf":
        return None, None
    leaf = term[0][0][1]
    axes = contraction_of(equation)
    if equation.primitive.name == "conv_general_dilated":
        channel = ins[1][equation.params["dimension_numbers"].rhs_spec[0]]
    elif axes.batch[1] or len(axes.free[1]) != 1:
        return None, None
    else:
        channel = ins[1][axes.free[1][0]]
    if leaf == CONSTANT or channel not in leaves[leaf]:
        return None, None
    return (leaf, leaves[leaf].index(channel)), channel


def _match(
    bases: list[_Base], uses: dict[int, int], store: AxisStore, leaves: Sequence[Axes]
) -> list[Norm]:
    norms: list[Norm] = []
    # a leaf that two forms read is not this norm's alone, be the other form a norm or not
    read: dict[int, int] = defaultdict(int)
    for form in (form for base in bases for form in base.seen):
        for leaf in {s[1] for part in (form.slope, form.offset) for m, _ in part for s in m}:
            read[leaf] += 1
    for base in bases:
        for form in base.seen:
            norm = _batch_norm(form)
            if norm is None:
                continue
            vectors = [norm.scale, norm.offset, norm.mean, norm.variance, norm.bias]
            present = [v for v in vectors if v is not None]
            if CONSTANT in (norm.mean, norm.variance):
                raise ValueError(
                    "the running statistics of a batch norm are constants of the function, so they "
                    "would keep their width: expected them among the leaves of params; pass the "
                    "whole tree, for flax.linen "
                    '{"params": ..., "batch_stats": ...}, as the first argument'
                )
            if CONSTANT in present:
                continue
            foldable = (
                base.kernel is not None
                and base.channel is not None
                and len(base.seen) == 1
                and norm.scale is not None
                and uses[base.kernel[0]] == 1
                and not read[base.kernel[0]]
                and all(not uses[v] and read[v] == 1 for v in present)
                and all(len(leaves[v]) == 1 for v in present)
                and all(
                    store.find(leaves[v][0]) == store.find(base.channel)  # type: ignore[arg-type]
                    for v in present
                )
            )
            kernel = base.kernel if foldable else None
            norms.append(dataclasses.replace(norm, kernel=kernel, reads=base.reads))
    return norms


def _batch_norm(form: _Affine) -> Norm | None:
    slope = _single(form.slope)
    if slope is None or slope[1] != 1.0:
        return None
    roots = [s for s in slope[0] if s[0] == "inv"]
    scales = [s for s in slope[0] if s[0] == "leaf"]
    if len(roots) != 1 or len(scales) > 1 or len(slope[0]) != 1 + len(scales):
        return None
    mean = offset = bias = None
    for monomial, x in form.offset:
        rest = list(monomial)
        for symbol in slope[0]:
            if symbol in rest:
                rest.remove(symbol)
        if len(monomial) == len(slope[0]) + 1 and len(rest) == 1 and rest[0][0] == "leaf":
            if x == -1.0 and mean is None:
                mean = rest[0][1]
                continue
            if x == 1.0 and bias is None:
                bias = rest[0][1]
                continue
        elif len(monomial) == 1 and monomial[0][0] == "leaf" and x == 1.0 and offset is None:
            offset = monomial[0][1]
            continue
        return None
    if mean is None:
        return None
    scale = scales[0][1] if scales else None
    return Norm(None, bias, scale, offset, mean, roots[0][1], roots[0][2])
