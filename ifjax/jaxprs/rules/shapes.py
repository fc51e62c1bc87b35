"""Primitives that move, merge, split, cut or join axes."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import Values
from ifjax.jaxprs.rules.rule import Resize, Rule
from ifjax.jaxprs.walk import Axes, Context


def broadcast_in_dim(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Broadcast axes are fresh."""
    shape = equation.params["shape"]
    out = list(context.fresh(shape))
    for i, d in enumerate(equation.params["broadcast_dimensions"]):
        if context.store.size(operands[0][i]) == shape[d]:
            out[d] = operands[0][i]
    return [tuple(out)]


def rebuild_shape(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Broadcasts, or counts, to the small shape."""
    return compat.bind(equation, values, shape=resize.shape(resize.outputs[0]))


def reshape(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Minimal blocks of equal product: one to one passes on, else product = product."""
    store = context.store
    new = equation.params["new_sizes"]
    if 0 in new:
        return context.opaque(operands, "reshape of an empty array")
    order = equation.params.get("dimensions")  # a transposition before, by vmapped convolutions
    axes = operands[0] if order is None else [operands[0][i] for i in order]
    out = [store.one] * len(new)
    before = [a for a in axes if store.size(a) != 1]
    after = [i for i, n in enumerate(new) if n != 1]
    while before:
        left, right = [before.pop(0)], [after.pop(0)]
        m, n = store.size(left[0]), new[right[0]]
        while m != n:
            if m < n:
                left.append(before.pop(0))
                m *= store.size(left[-1])
            else:
                right.append(after.pop(0))
                n *= new[right[-1]]
        if len(right) == 1:
            out[right[0]] = store.product(left)
            continue
        for i in right:
            out[i] = store.fresh(new[i])
        context.unify(store.product(left), store.product([out[i] for i in right]))
    return [tuple(out)]


def rebuild_reshape(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Reshapes to the small shape."""
    return compat.bind(equation, values, new_sizes=resize.shape(resize.outputs[0]))


def transpose(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Axes change places."""
    del context
    return [tuple(operands[0][i] for i in equation.params["permutation"])]


def squeeze(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Axes of size 1 go."""
    del context
    gone = equation.params["dimensions"]
    return [tuple(a for i, a in enumerate(operands[0]) if i not in gone)]


def slice_(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Contiguous slices cut the axis; a stride splits off and pins the axis it runs over."""
    p = equation.params
    strides = p["strides"] or (1,) * len(operands[0])
    out = []
    bounds = zip(operands[0], p["start_indices"], p["limit_indices"], strides, strict=True)
    for node, start, limit, stride in bounds:
        out.append(slice_axis(context, node, int(start), int(limit), int(stride)))
    return [tuple(out)]


def slice_axis(context: Context, node: int, start: int, limit: int, stride: int) -> int:
    """The axis that holds every ``stride``-th position from ``start`` up to ``limit``."""
    store = context.store
    n = store.size(node)
    size = max(0, -(-(limit - start) // stride))
    if size == n:
        return node
    if size == 0:
        return store.fresh(0)
    if stride == 1:
        if limit < n:
            node, _ = store.cut(node, limit)
        return store.cut(node, start)[1] if start else node
    if not store.is_pinned(node) and n % stride == 0 and start < stride and size == n // stride:
        rows = store.fresh(size)
        columns = context.pinned([stride], "strided slice")[0]
        context.unify(node, store.product([rows, columns]))
        return rows
    return context.pinned_instead([node], size, "strided slice")


def rebuild_slice(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Start and limit move with the parts before and inside the slice."""
    p = equation.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    starts, limits = [], []
    bounds = zip(resize.inputs[0], p["start_indices"], p["limit_indices"], strides, strict=True)
    for k, (node, start, limit, stride) in enumerate(bounds):
        if start >= limit:
            starts.append(0)
            limits.append(0)
        elif stride == 1:
            before, inside, _ = resize.pieces(node, (start, limit))
            starts.append(before)
            limits.append(before + inside)
        else:
            size = resize.size(resize.outputs[0][k])
            starts.append(start)
            limits.append(start + (size - 1) * stride + 1)
    return compat.bind(equation, values, start_indices=tuple(starts), limit_indices=tuple(limits))


def pad(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """The padding is a free segment on either side (zero-padded shortcuts of CIFAR ResNets)."""
    store = context.store
    out, parts = [], []
    shape = compat.shape_of(equation.outvars[0])
    config = equation.params["padding_config"]
    for node, (low, high, interior), n in zip(operands[0], config, shape, strict=True):
        if low < 0 or high < 0 or interior:
            out.append(context.pinned_instead([node], n, "negative or interior padding"))
            parts.append(None)
        else:
            sides = (store.fresh(int(low)), store.fresh(int(high)))
            out.append(store.sum([sides[0], node, sides[1]]))
            parts.append(sides)
    context.note = parts
    return [tuple(out)]


def rebuild_pad(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Pads by the small sizes of the free segments."""
    config = []
    for sides, entry in zip(resize.note, equation.params["padding_config"], strict=True):
        if sides is None:
            config.append(entry)
        else:
            config.append((resize.size(sides[0]), resize.size(sides[1]), 0))
    return compat.bind(equation, values, padding_config=tuple(config))


def concatenate(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """The joined axis is the sum of the operands' axes; the others are shared."""
    dim = equation.params["dimension"]
    out = list(operands[0])
    for axes in operands[1:]:
        for i, (a, b) in enumerate(zip(out, axes, strict=True)):
            if i != dim:
                context.unify(a, b)
    out[dim] = context.store.sum([axes[dim] for axes in operands])
    return [tuple(out)]


def split(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Consecutive parts of one axis."""
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    rest = operands[0][axis]
    results = []
    for n in sizes:
        if n == 0 or n == context.store.size(rest):
            part, rest = (rest, rest) if n else (context.store.fresh(0), rest)
        else:
            part, rest = context.store.cut(rest, int(n))
        results.append((*operands[0][:axis], part, *operands[0][axis + 1 :]))
    return results


def rebuild_split(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """The parts' small sizes."""
    axis = equation.params["axis"]
    return compat.bind(equation, values, sizes=tuple(resize.size(o[axis]) for o in resize.outputs))


def iota(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """The counted axis is pinned unless it is compared with what was chosen along an axis."""
    del operands
    shape, dim = equation.params["shape"], equation.params["dimension"]
    out = context.fresh(shape)
    context.place(equation.outvars[0], out[dim], "counted with iota", counted=True)
    return [out]


def stack(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Only the new axis is pinned."""
    context.unify_arrays(operands)
    axis = equation.params.get("axis", 0)
    new = context.pinned([len(operands)], "stacked")[0]
    return [(*operands[0][:axis], new, *operands[0][axis:])]


def tile(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Every axis is repeated as a whole: repetitions x axis."""
    context.note = context.fresh(equation.params["reps"])
    pairs = zip(context.note, operands[0], strict=True)
    return [tuple(context.store.product(pair) for pair in pairs)]


def rebuild_tile(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """As many repetitions as the repeated class has left."""
    return compat.bind(equation, values, reps=resize.shape(resize.note))


def unstack(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Only the unstacked axis is pinned."""
    axis = equation.params.get("axis", 0)
    context.pin([operands[0][axis]], "unstacked")
    rest = (*operands[0][:axis], *operands[0][axis + 1 :])
    return [rest for _ in equation.outvars]


def bitcast(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Passes on where the element width stays; an axis of words is pinned otherwise."""
    if len(compat.shape_of(equation.outvars[0])) == len(operands[0]):
        return [operands[0]]
    return context.opaque(operands, "element width changes")


RULES = {
    "broadcast_in_dim": Rule(broadcast_in_dim, rebuild_shape),
    "reshape": Rule(reshape, rebuild_reshape),
    "transpose": Rule(transpose),
    "squeeze": Rule(squeeze),
    "slice": Rule(slice_, rebuild_slice),
    "pad": Rule(pad, rebuild_pad),
    "concatenate": Rule(concatenate),
    "split": Rule(split, rebuild_split),
    "iota": Rule(iota, rebuild_shape),
    "stack": Rule(stack),
    "tile": Rule(tile, rebuild_tile),
    "unstack": Rule(unstack),
    "bitcast_convert_type": Rule(bitcast),
}
