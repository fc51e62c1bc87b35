"""Contractions: matrix products and convolutions."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import Values
from ifjax.jaxprs.rules.rule import Resize, Rule, rebuild_number
from ifjax.jaxprs.traits import contraction_of
from ifjax.jaxprs.walk import Axes, Context


def dot_general(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Contracted and batch axes are unified; free axes pass on, lhs first."""
    return [_product(context, equation, operands)]


def ragged_dot(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """As a matrix product, where runs of rows of the lhs meet a kernel each; rows are pinned."""
    lhs, rhs, sizes = operands[:3]
    numbers, axes = equation.params["ragged_dot_dimension_numbers"], contraction_of(equation)
    for more in operands[2:]:
        context.pin(more, "sizes of ragged groups")
    context.pin([lhs[i] for i in numbers.lhs_ragged_dimensions], "ragged axis")
    context.pin([rhs[i] for i in axes.groups], "kernels of ragged groups")
    for i in axes.groups:
        context.unify(sizes[-1], rhs[i])
    per_group = {*numbers.lhs_ragged_dimensions} & {*axes.contracted[0]}
    return [_product(context, equation, operands, sizes[-1:] if per_group else ())]


def _product(context: Context, equation: JaxprEqn, operands: list[Axes], first: Axes = ()) -> Axes:
    """The axes of a product, after some that number several of it."""
    (lhs, rhs), axes = operands[:2], contraction_of(equation)
    for i, j in (*zip(*axes.contracted, strict=True), *zip(*axes.batch, strict=True)):
        context.unify(lhs[i], rhs[j])
    own = (*(lhs[i] for i in axes.batch[0]), *(lhs[i] for i in axes.free[0]))
    out = (*first, *own, *(rhs[i] for i in axes.free[1]))
    context.macs.append((*out, *(lhs[i] for i in axes.contracted[0])))
    return out


def conv(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Feature axes as in a matrix product; spatial axes pass through a window of one, or pin.

    With G feature groups, lhs features = G x in, kernel outputs = G x out, output = G x out.
    With G batch groups, lhs batch = G x n, kernel outputs = G x out, output batch = n.
    """
    lhs, rhs = operands
    p, store = equation.params, context.store
    numbers = p["dimension_numbers"]
    out_shape = compat.shape_of(equation.outvars[0])
    out = [0] * len(out_shape)
    batch = lhs[numbers.lhs_spec[0]]
    features, kernel_in, kernel_out = (
        lhs[numbers.lhs_spec[1]],
        rhs[numbers.rhs_spec[1]],
        rhs[numbers.rhs_spec[0]],
    )
    groups = p["feature_group_count"] * p["batch_group_count"]  # one of them is 1
    group = store.fresh(groups)
    if groups != 1:
        width = store.fresh(store.size(kernel_out) // groups)
        context.unify(kernel_out, store.product([group, width]))
        context.note = group
    if p["batch_group_count"] != 1:
        whole, batch = batch, store.fresh(store.size(batch) // groups)
        context.unify(whole, store.product([group, batch]))
        group = store.one
    context.unify(features, store.product([group, kernel_in]))
    out[numbers.out_spec[0]] = batch
    out[numbers.out_spec[1]] = kernel_out
    spatial = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    for k, (i, j, o) in enumerate(spatial):
        through = (
            store.size(rhs[j]) == 1
            and p["window_strides"][k] == 1
            and p["lhs_dilation"][k] == 1
            and tuple(p["padding"][k]) == (0, 0)
        )
        if through:
            out[o] = lhs[i]
        else:
            text = "spatial axis of a convolution"
            out[o] = context.pinned_instead([lhs[i], rhs[j]], out_shape[o], text)
    kernel = [a for i, a in enumerate(rhs) if i != numbers.rhs_spec[0]]
    context.macs.append((*out, *kernel))
    return [tuple(out)]


def rebuild_conv(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """The number of groups follows the width of the group axis."""
    if resize.note is None:
        return compat.bind(equation, values)
    over_batch = equation.params["batch_group_count"] != 1
    name = "batch_group_count" if over_batch else "feature_group_count"
    return compat.bind(equation, values, **{name: resize.size(resize.note)})


RULES = {
    "dot_general": Rule(dot_general, rebuild_number),
    "ragged_dot_general": Rule(ragged_dot),
    "conv_general_dilated": Rule(conv, rebuild_conv),
}
