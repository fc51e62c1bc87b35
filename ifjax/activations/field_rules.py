"""What every kind of primitive does to random arrays: affine steps exactly, functions on nodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from ifjax.activations.field import Field, Fields
from ifjax.jaxprs import compat
from ifjax.jaxprs.program import Step
from ifjax.jaxprs.traits import contraction_of, traits_of

Operands = Sequence[Any]  # arrays and fields
Rule = Callable[[Fields, JaxprEqn, Operands], list[Any]]


def apply_rule(fields: Fields, step: Step, operands: Operands) -> list[Any]:
    """The results of an equation some of whose operands may be random arrays.

    Args:
      fields: the calculus.
      step: the equation.
      operands: arrays, or `Field`.

    Returns:
      Arrays where all operands are, else fields.

    Raises:
      ValueError: for a primitive that no rule knows, by its name.
    """
    equation = step.equation
    if not any(isinstance(x, Field) for x in operands):
        return compat.bind(equation, operands)
    kind = traits_of(equation).kind
    rule = RULES.get(equation.primitive.name) or KINDS.get(kind)
    if rule is None:
        raise unsupported(equation, "nothing is known of what it makes of Gaussian numbers")
    with jax.enable_x64(True):
        return rule(fields, equation, [_wide(x) for x in operands])


def _wide(x: Any) -> Any:
    """Floating-point arrays in the precision of the calculus."""
    if isinstance(x, Field) or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return x
    return np.asarray(x, np.float64)


def unsupported(equation: JaxprEqn, why: str) -> ValueError:
    """The error for an equation that cannot be followed."""
    line = compat.source_line(equation)
    at = f" at {line}" if line else ""
    return ValueError(
        f"{equation.primitive.name}{at}: {why}; expected affine steps, elementwise functions and "
        "pooling. Calibrate with inputs instead, those of ifjax.synthesize where there are none"
    )


def _shape(equation: JaxprEqn, i: int = 0) -> tuple[int, ...]:
    return compat.shape_of(equation.outvars[i])


def _only(equation: JaxprEqn, operands: Operands) -> Field:
    """The first operand, where it alone is random."""
    if not isinstance(operands[0], Field) or any(isinstance(x, Field) for x in operands[1:]):
        raise unsupported(equation, "more than its first operand depends on the inputs")
    return operands[0]


def _bound(equation: JaxprEqn, **changed: Any) -> Callable[[Any], Any]:
    return lambda x: compat.bind(equation, [x], **changed)[0]


def _same(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Any]:
    return list(operands)


def _converted(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    """Numbers stay numbers, in the precision of the calculus; what is true becomes one."""
    field = _only(equation, operands)
    if field.values is None or jnp.issubdtype(field.values.dtype, jnp.floating):
        return [field]
    values = field.values.astype(np.float64)
    return [Field(field.shape, field.features, field.base, values)]


def _elementwise(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    """Functions of the same Gaussian numbers, on the nodes; sums and products of others."""
    random = [x for x in operands if isinstance(x, Field)]
    least = _least([x.features for x in random], operands, random[0].shape)
    random = [fields.expanded(x, _more(x, least)) for x in random]
    given = iter(random)
    operands = [next(given) if isinstance(x, Field) else x for x in operands]
    if len({id(x.base) for x in random}) == 1:
        first, copies = random[0], frozenset.intersection(*(x.copies for x in random))
        arrays = [
            x.at_nodes().reshape(-1, *first.features)
            if isinstance(x, Field)
            else _narrow(x, first.features)
            for x in operands
        ]
        along = [0 if isinstance(x, Field) else None for x in operands]
        results = jax.vmap(lambda *xs: compat.bind(equation, xs), along)(*arrays)
        return [
            dataclasses.replace(first, values=_numbers(x.reshape(len(x), -1)), copies=copies)
            for x in results
        ]
    match equation.primitive.name, operands:
        case ("add" | "add_any" | "sub") as name, [Field() as a, Field() as b]:
            return [fields.added(a, b, -1 if name == "sub" else 1)]
        case "mul", [Field() as a, Field() as b]:
            return [fields.multiplied(a, b)]
    raise unsupported(equation, "it joins different random numbers")


def _numbers(x: Any) -> np.ndarray:
    """In double precision, but for what is true or false, or counts."""
    array = np.asarray(x)
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _least(
    features: Sequence[tuple[int, ...]], operands: Operands, shape: Sequence[int]
) -> list[bool]:
    """By axis, whether entries differ: along features, and where an array varies."""
    varies = [any(f[i] > 1 for f in features) for i in range(len(shape))]
    for x in operands:
        if isinstance(x, Field) or not jnp.ndim(x):
            continue
        array = np.asarray(x)
        for i, n in enumerate(array.shape):
            if n > 1 and not varies[i]:
                varies[i] = bool((array != array.take([0], i)).any())
    return varies


def _more(field: Field, varies: Sequence[bool]) -> list[int]:
    return [a for a in field.positions if varies[a]]


def _narrow(x: Any, features: Sequence[int]) -> Any:
    """An array with its first entry along the axes of positions."""
    if not np.ndim(x):
        return x
    return x[tuple(slice(0, 1) if m == 1 else slice(None) for m in features)]


def _layout(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    """Axes that come, go or trade places; functions stay functions while their order stays."""
    field, p, shape = _only(equation, operands), equation.params, _shape(equation)
    match equation.primitive.name:
        case "transpose":
            function = _bound(equation)
        case "broadcast_in_dim":
            return [_broadcast(field, shape, p["broadcast_dimensions"])]
        case "reshape" | "squeeze":
            field, to = _regrouped(fields, field, shape)
            function = lambda x: x.reshape(to)  # noqa: E731
        case name:
            raise unsupported(equation, f"{name} of random numbers is not known")
    order = np.arange(field.base.mean.size)
    moved = np.asarray(function(order.reshape(field.features)))
    if moved.size == order.size and (moved.ravel() == order).all():
        return [Field(shape, moved.shape, field.base, field.values)]
    return [fields.linear(field, shape, function)]


def _broadcast(field: Field, shape: Sequence[int], dimensions: Sequence[int]) -> Field:
    """Copies along new axes, which are positions: whether they are features, others tell."""
    features, copies = [1] * len(shape), {j for j, n in enumerate(shape) if n > 1}
    for i, j in enumerate(dimensions):
        features[j] = field.features[i]
        if field.shape[i] == shape[j] and i not in field.copies:
            copies.discard(j)
    return Field(tuple(shape), tuple(features), field.base, field.values, frozenset(copies))


def _regrouped(fields: Fields, field: Field, shape: Sequence[int]) -> tuple[Field, tuple[int, ...]]:
    """A field whose features can be reshaped, and their new shape.

    Axes are taken in the smallest groups of the same size before and after. Positions that meet
    features in such a group become features.
    """
    before, to = field.shape, [1] * len(shape)
    i = j = 0
    while i < len(before) or j < len(shape):
        ends = i, j
        i, j = min(i + 1, len(before)), min(j + 1, len(shape))
        while math.prod(before[ends[0] : i]) != math.prod(shape[ends[1] : j]):
            if math.prod(before[ends[0] : i]) < math.prod(shape[ends[1] : j]):
                i += 1
            else:
                j += 1
        group = range(ends[0], i)
        if all(before[a] == 1 or a in field.positions for a in group):
            continue
        field = fields.expanded(field, group)
        to[ends[1] : j] = shape[ends[1] : j]
    return field, tuple(to)


def _moved(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    """Entries along features; what is cut out of positions, or put around them, are positions."""
    field, p = _only(equation, operands), equation.params
    ones = tuple(1 if i in field.positions else None for i in range(len(field.shape)))
    if equation.primitive.name == "slice":
        pick = lambda x, one: tuple(o or n for n, o in zip(x, one, strict=True))  # noqa: E731
        strides = p["strides"] or (1,) * len(ones)
        start = tuple(0 if o else n for n, o in zip(p["start_indices"], ones, strict=True))
        changed = {
            "start_indices": start,
            "limit_indices": pick(p["limit_indices"], ones),
            "strides": pick(strides, ones),
        }
        return [fields.linear(field, _shape(equation), _bound(equation, **changed))]
    axis = p["axis"]  # of a split
    if axis in field.positions:
        made = [field.features] * len(equation.outvars)
        return [Field(_shape(equation, i), f, field.base, field.values) for i, f in enumerate(made)]
    return [
        fields.linear(field, _shape(equation, i), lambda x, i=i: compat.bind(equation, [x])[i])
        for i in range(len(equation.outvars))
    ]


def _pad(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    """Zeros around features. Around positions they are not seen: most places have none near."""
    field, p = _only(equation, operands), equation.params
    if np.any(operands[1] != 0):
        raise unsupported(equation, "it pads with another number than 0")
    config = tuple(
        (0, 0, 0) if i in field.positions else c for i, c in enumerate(p["padding_config"])
    )

    def function(x: Any) -> Any:
        return jax.lax.pad(x, jnp.zeros((), x.dtype), config)

    return [fields.linear(field, _shape(equation), function)]


def _concatenate(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    axis, shape = equation.params["dimension"], _shape(equation)
    random = [x for x in operands if isinstance(x, Field)]
    if any(axis in x.positions for x in random):
        raise unsupported(equation, "it joins positions")
    varies = [any(x.features[i] > 1 for x in random) for i in range(len(shape))]
    parts = []
    for x in operands:
        if isinstance(x, Field):
            parts.append(fields.expanded(x, _more(x, varies)))
            continue
        features = [n if varies[i] or i == axis else 1 for i, n in enumerate(x.shape)]
        mean = _narrow(x, features).ravel()
        base = fields.alone(mean, np.zeros((mean.size, mean.size)))
        parts.append(Field(tuple(x.shape), tuple(features), base))
    return [fields.joined(parts, shape, axis)]


def _along_features(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    """Steps such as a running sum, whose parameters name an axis of features."""
    field, p = _only(equation, operands), equation.params
    over = p[traits_of(equation).over]
    axes = tuple(over) if isinstance(over, tuple) else (over,)
    if not traits_of(equation).affine:
        raise unsupported(equation, "it is not affine")
    field = fields.expanded(field, axes)
    return [fields.linear(field, _shape(equation), _bound(equation))]


def _sum(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    field, axes = _only(equation, operands), equation.params["axes"]
    k = math.prod(field.shape[a] for a in axes if a in field.positions)
    before = tuple(n for i, n in enumerate(field.shape) if i not in axes)
    found = fields.linear(field, before, lambda x: jnp.sum(x, axes))
    return [fields.summed(found, _shape(equation), k) if k > 1 else found]


def _maximum(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    field, axes = _only(equation, operands), equation.params["axes"]
    if any(field.features[a] > 1 for a in axes):
        raise unsupported(equation, "it looks for the largest of different features")
    kept = tuple(n for i, n in enumerate(field.features) if i not in axes)
    k = math.prod(field.shape[a] for a in axes)
    found = fields.largest(field, field.shape, k)
    return [Field(_shape(equation), kept, found.base, found.values)]


def _window(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    """Pooling over positions; windows at the border are taken to be whole."""
    field, p = _only(equation, operands), equation.params
    windows = p["window_dimensions"]
    if any(n > 1 and i not in field.positions for i, n in enumerate(windows)):
        raise unsupported(equation, "its window moves along features")
    k = math.prod(windows)
    if equation.primitive.name == "reduce_window_max":
        return [fields.largest(field, _shape(equation), k)]
    return [fields.summed(field, _shape(equation), k)]


def _product(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    """A matrix product with parameters."""
    sides = [i for i in (0, 1) if isinstance(operands[i], Field)]
    if len(sides) != 1:
        raise unsupported(equation, "both factors depend on the inputs")
    axes, side = contraction_of(equation), sides[0]
    field = fields.expanded(operands[side], [*axes.contracted[side], *axes.batch[side]])
    other = operands[1 - side]

    def function(x: Any) -> Any:
        return compat.bind(equation, [x, other] if side == 0 else [other, x])[0]

    return [fields.linear(field, _shape(equation), function)]


def _convolution(fields: Fields, equation: JaxprEqn, operands: Operands) -> list[Field]:
    """Taps at positions that correlate; zeros beyond the border are not seen."""
    if not isinstance(operands[0], Field) or isinstance(operands[1], Field):
        raise unsupported(equation, "its kernel depends on the inputs")
    field, (w, centre) = fields.settled(operands[0]), taps(equation, operands[1])
    numbers = equation.params["dimension_numbers"]
    if any(field.features[a] > 1 for a in numbers.lhs_spec[2:]):
        raise unsupported(equation, "a window moves along positions that differ")
    old, r = field.base, fields.correlation
    total = np.sum(w, 0)
    covariance = r * total.T @ old.covariance @ total
    covariance += (1 - r) * np.sum(w.transpose(0, 2, 1) @ old.covariance @ w, 0)
    near = r * total + (1 - r) * w[centre]
    base = fields.base(total.T @ old.mean, covariance, lambda z: near.T @ old.with_other(z))
    shape = _shape(equation)
    features = [1] * len(shape)
    features[numbers.out_spec[1]] = shape[numbers.out_spec[1]]
    return [Field(shape, tuple(features), base)]


def taps(equation: JaxprEqn, kernel: Any) -> tuple[Any, int]:
    """A convolution's kernel as [taps, inputs, outputs], and its middle tap.

    Args:
      equation: the convolution.
      kernel: as it takes it.

    Returns:
      The kernel, with zeros between groups, and the number of its middle tap.

    Raises:
      ValueError: for convolutions of a dilated input, or with groups along the batch.
    """
    p = equation.params
    if p["batch_group_count"] != 1 or any(n != 1 for n in p["lhs_dilation"]):
        raise unsupported(equation, "it is transposed, or grouped along the batch")
    spec, groups = p["dimension_numbers"].rhs_spec, p["feature_group_count"]
    w = np.transpose(kernel, (*spec[2:], spec[1], spec[0]))
    window, (n, m) = w.shape[:-2], w.shape[-2:]
    w = w.reshape(-1, n, m)
    if groups > 1:
        blocks = w.reshape(-1, n, groups, m // groups)
        w = np.einsum("pngm,gh->pgnhm", blocks, np.eye(groups))
        w = w.reshape(-1, groups * n, m)
    centre = np.ravel_multi_index([(k - 1) // 2 for k in window], window) if window else 0
    return w, int(centre)


KINDS: Mapping[str, Rule] = {
    "same": _same,
    "elementwise": _elementwise,
    "layout": _layout,
    "ordered": _along_features,
}

RULES: Mapping[str, Rule] = {
    "convert_element_type": _converted,
    "slice": _moved,
    "split": _moved,
    "pad": _pad,
    "concatenate": _concatenate,
    "reduce_sum": _sum,
    "reduce_max": _maximum,
    "reduce_window_sum": _window,
    "reduce_window_max": _window,
    "dot_general": _product,
    "conv_general_dilated": _convolution,
}
