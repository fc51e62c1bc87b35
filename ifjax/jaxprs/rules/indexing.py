"""Indexing: axes taken whole follow, indexed ones are pinned unless the index is static.

A static index that selects every s-th position from some start cuts the axis as a slice does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jax.typing import ArrayLike

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import Atom, Values
from ifjax.jaxprs.positions import looked_up
from ifjax.jaxprs.rules.rearranged import Rearrangement, rearrangement
from ifjax.jaxprs.rules.rule import Resize, Rule
from ifjax.jaxprs.rules.shapes import slice_axis
from ifjax.jaxprs.walk import Axes, Context

PARTLY = "part of the axis is taken, at an index that is not static"
INDEXED = "the axis is indexed"


@dataclasses.dataclass(frozen=True)
class Range:
    """Positions start, start + stride, ... of an axis, as many as ``count``."""

    start: int
    count: int
    stride: int = 1

    def of(self, context: Context, node: int) -> int:
        """The axis that holds these positions of another one."""
        limit = self.start + (self.count - 1) * self.stride + 1
        return slice_axis(context, node, self.start, limit, self.stride)

    def small_start(self, resize: Resize, node: int) -> int:
        """Where the positions begin in the small axis."""
        if self.stride > 1 or self.start == 0:
            return self.start  # what lies between two strides is pinned
        return resize.pieces(node, (self.start,))[0]


@dataclasses.dataclass(frozen=True)
class Rearranged:
    """Noted at a gather that rearranges an axis: which, how, and the axes that it is made with."""

    dim: int
    how: Rearrangement
    made: tuple[int, ...]


def _rearrangement(
    index: np.ndarray | None,
    dims: Sequence[int],
    dim: int,
    shape: Sequence[int],
    counts: Sequence[int],
) -> Rearrangement | None:
    """How a static index rearranges an axis, if it takes single positions of that one alone."""
    if index is None or index.ndim != 2 or [*map(int, dims)] != [dim] or counts[dim] != 1:
        return None
    return rearrangement(index[:, 0].astype(int), shape[dim])


def _static(
    index: np.ndarray | None, dims: Sequence[int], shape: Sequence[int], counts: Sequence[int]
) -> dict[int, Range]:
    """By indexed axis, the positions that a gather or scatter selects; empty where not static.

    Args:
      index: the index array, coordinates last, where its value is known.
      dims: the axis that every coordinate belongs to.
      shape: of the indexed array.
      counts: how many consecutive positions of every axis one index selects.
    """
    if index is None or 0 in index.shape:
        return {}
    dims = [int(d) for d in dims]  # some are numpy integers
    if index.ndim == 1:
        found = {d: Range(int(i), counts[d]) for d, i in zip(dims, index, strict=True)}
    elif index.ndim == 2 and len(dims) == 1 and counts[dims[0]] == 1:
        steps = {int(s) for s in np.diff(index[:, 0].astype(int))} or {1}
        if len(steps) > 1 or min(steps) < 1:
            return {}
        found = {dims[0]: Range(int(index[0, 0]), len(index), steps.pop())}
    else:
        return {}
    inside = all(
        r.count and r.start >= 0 and r.start + (r.count - 1) * r.stride < shape[d]
        for d, r in found.items()
    )
    return found if inside else {}


def _small_index(
    resize: Resize,
    value: ArrayLike,
    node: Sequence[int],
    dims: Sequence[int],
    note: Mapping[int, Range] | Rearranged,
    rows: int,
) -> ArrayLike:
    """The index array of a gather or scatter at the small widths."""
    if not note:
        return value
    dtype = jnp.result_type(value)
    if isinstance(note, Rearranged):
        return note.how.small(resize, node[note.dim], note.made).astype(dtype)[:, None]
    if np.ndim(value) == 1:
        starts = [note[d].small_start(resize, node[d]) for d in dims]
        return np.asarray(starts, dtype)
    (d,) = dims
    start, stride = note[d].small_start(resize, node[d]), note[d].stride
    return (start + stride * np.arange(rows)).astype(dtype)[:, None]


# gather


def gather(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Axes of the operand that are taken whole, and those of the indices, go to the result."""
    operand, indices = operands
    numbers, shape = equation.params["dimension_numbers"], compat.shape_of(equation.invars[0])
    counts = [int(n) for n in equation.params["slice_sizes"]]
    batching = numbers.operand_batching_dims
    context.pin(indices[-1:], "coordinates of an index")
    for d, i in zip(batching, numbers.start_indices_batching_dims, strict=True):
        context.unify(operand[d], indices[i])
    index = None if batching else context.number(equation.invars[1])
    indexed = tuple(map(int, numbers.start_index_map))
    static = _static(index, indexed, shape, counts)
    context.note = static
    rows, window = list(indices[:-1]), []
    for d, node in enumerate(operand):
        if d in batching:
            continue
        collapsed = d in numbers.collapsed_slice_dims
        part = node
        how = None if static else _rearrangement(index, indexed, d, shape, counts)
        if how is not None:
            part, made = how.of(context, node)
            rows, part, context.note = [part], context.store.one, Rearranged(d, how, made)
        elif d in static and (rows or counts[d] != shape[d]):
            part = static[d].of(context, node)
            if rows:
                rows, part = [part], context.store.one
        elif counts[d] != shape[d]:
            chosen = context.position(equation.invars[1])
            if chosen is not None and looked_up(equation) == context.store.size(chosen):
                context.unify(node, chosen)
            else:
                context.pin([node], INDEXED if counts[d] == 1 else PARTLY)
            part = context.pinned([counts[d]], PARTLY)[0]
        if not collapsed:
            window.append(part)
    rank = len(compat.shape_of(equation.outvars[0]))
    offset = [int(i) for i in numbers.offset_dims]
    return [tuple((window if i in offset else rows).pop(0) for i in range(rank))]


def rebuild_gather(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Takes slices of the small sizes, at the small positions of a static index."""
    numbers, counts = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    (operand, _), (out,) = resize.inputs, resize.outputs
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [d for d in range(len(operand)) if d not in dropped]
    sizes = list(counts)
    for d, i in zip(kept, sorted(numbers.offset_dims), strict=True):
        sizes[d] = resize.size(out[int(i)])
    rows = [i for i in range(len(out)) if i not in numbers.offset_dims]
    count = resize.size(out[rows[0]]) if rows else 1
    dims = tuple(map(int, numbers.start_index_map))
    index = _small_index(resize, values[1], operand, dims, resize.note, count)
    return compat.bind(equation, [values[0], index], slice_sizes=tuple(sizes))


# scatter


def scatter(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Axes of the operand that are written whole are shared with the updates.

    Where a static index writes every position at most once, the updates lie along these positions.
    """
    operand, indices, updates = operands
    numbers = equation.params["dimension_numbers"]
    shape, new = (compat.shape_of(equation.invars[i]) for i in (0, 2))
    batching, inserted = numbers.operand_batching_dims, numbers.inserted_window_dims
    context.pin(indices[-1:], "coordinates of an index")
    kept = [d for d in range(len(shape)) if d not in (*batching, *inserted)]
    window = dict(zip(kept, sorted(map(int, numbers.update_window_dims)), strict=True))
    counts = [new[window[d]] if d in window else 1 for d in range(len(shape))]
    index = None if batching else context.number(equation.invars[1])
    indexed = tuple(map(int, numbers.scatter_dims_to_operand_dims))
    static = _static(index, indexed, shape, counts)
    context.note = static
    how = None
    if not static and len(indexed) == 1:
        how = _rearrangement(index, indexed, indexed[0], shape, counts)
    once = index is not None and len(np.unique(index)) == index.size
    rows = [i for i in range(len(new)) if i not in window.values()]
    for d, i in zip(batching, numbers.scatter_indices_batching_dims, strict=True):
        context.unify(operand[d], indices[i])
    if how is not None and once:
        (d,) = indexed
        part, made = how.of(context, operand[d])
        context.unify(part, updates[rows[0]])
        context.note = Rearranged(d, how, made)
    for k, i in enumerate(rows):
        if context.note:
            continue
        context.unify(indices[k], updates[i])
        if k not in numbers.scatter_indices_batching_dims:
            context.pin([updates[i]], "scattered along this axis")
    for d, node in enumerate(operand):
        if d in batching or (isinstance(context.note, Rearranged) and d == context.note.dim):
            continue
        if d in static and (rows or counts[d] != shape[d]):
            part = static[d].of(context, node)
            if rows:
                context.unify(part, updates[rows[0]])
            elif d in window:
                context.unify(part, updates[window[d]])
        elif counts[d] == shape[d]:
            if d in window:
                context.unify(node, updates[window[d]])
        else:
            context.pin([node, *([updates[window[d]]] if d in window else [])], INDEXED)
    return [operand]


def rebuild_scatter(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Writes at the small positions of a static index."""
    numbers = equation.params["dimension_numbers"]
    operand, _, updates = resize.inputs
    rows = [a for i, a in enumerate(updates) if i not in numbers.update_window_dims]
    count = resize.size(rows[0]) if rows else 1
    dims = tuple(map(int, numbers.scatter_dims_to_operand_dims))
    index = _small_index(resize, values[1], operand, dims, resize.note, count)
    return compat.bind(equation, [values[0], index, values[2]])


# slices at a position


def _starts(
    context: Context, atoms: Sequence[Atom], shape: Sequence[int], sizes: Sequence[int]
) -> list[Range | None]:
    """By axis, the positions that a slice takes, where they are known; starts are clamped."""
    found: list[Range | None] = []
    for atom, n, size in zip(atoms, shape, sizes, strict=True):
        start = context.number(atom)
        if start is None or not size:
            found.append(None)
        else:
            found.append(Range(min(max(int(start), 0), n - size), size))
    return found


def dynamic_slice(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Axes taken whole follow; of the others a part is cut off where the start is static."""
    operand, shape = operands[0], compat.shape_of(equation.invars[0])
    sizes = [int(n) for n in equation.params["slice_sizes"]]
    context.note = _starts(context, equation.invars[1:], shape, sizes)
    out = []
    for node, n, size, taken in zip(operand, shape, sizes, context.note, strict=True):
        if size == n:
            out.append(node)
        elif taken is not None:
            out.append(taken.of(context, node))
        else:
            out.append(context.pinned_instead([node], size, PARTLY))
    return [tuple(out)]


def _small_starts(
    resize: Resize, equation: JaxprEqn, first: int, values: Values
) -> list[ArrayLike]:
    starts = []
    for k, (node, taken) in enumerate(zip(resize.inputs[0], resize.note, strict=True)):
        start = values[first + k]
        if taken is not None:
            dtype = compat.dtype_of(equation.invars[first + k])
            start = np.asarray(taken.small_start(resize, node), dtype)
        starts.append(start)
    return starts


def rebuild_dynamic_slice(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Takes the small sizes from the small starts."""
    starts = _small_starts(resize, equation, 1, values)
    sizes = resize.shape(resize.outputs[0])
    return compat.bind(equation, [values[0], *starts], slice_sizes=sizes)


def dynamic_update_slice(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Axes written whole are shared with the update; a part is where the start is static."""
    operand, update = operands[:2]
    shape, sizes = (compat.shape_of(equation.invars[i]) for i in (0, 1))
    context.note = _starts(context, equation.invars[2:], shape, sizes)
    axes = zip(operand, update, shape, sizes, context.note, strict=True)
    for node, new, n, size, taken in axes:
        if size == n:
            context.unify(node, new)
        elif taken is not None:
            context.unify(taken.of(context, node), new)
        else:
            context.pin([node, new], PARTLY)
    return [operand]


def rebuild_update_slice(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Writes at the small starts."""
    return compat.bind(equation, [*values[:2], *_small_starts(resize, equation, 2, values)])


SCATTER = "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max"

RULES = {
    "gather": Rule(gather, rebuild_gather),
    **dict.fromkeys(SCATTER.split(), Rule(scatter, rebuild_scatter)),
    "dynamic_slice": Rule(dynamic_slice, rebuild_dynamic_slice),
    "dynamic_update_slice": Rule(dynamic_update_slice, rebuild_update_slice),
}
