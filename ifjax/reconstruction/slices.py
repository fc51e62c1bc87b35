"""A function whose stacks that are read slice by slice are leaves of their own.

Layers that a Python loop reads as ``w[0]``, ``w[1]``, ... are cut and solved for one by one: each
has inputs of its own. The stack becomes a list of its slices, and what is computed from it as a
whole is computed for every slice: a slice is the function where the axis that numbers the slices
has a width of one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ifjax.graph.facts.slices import positions
from ifjax.graph.resized import Resized, resized
from ifjax.jaxprs import compat
from ifjax.jaxprs.arguments import Arguments, path_name
from ifjax.jaxprs.evaluate import bind
from ifjax.jaxprs.program import Step, flatten
from ifjax.jaxprs.traits import traits_of
from ifjax.jaxprs.walk import Axes
from ifjax.namespace import namespace
from ifjax.parallel.sharding import unstack
from ifjax.reconstruction.apart import Apart, Parts, by_leaf, copied, unstacked
from ifjax.structure import axis as ex
from ifjax.structure.batch_view import View, mentioned
from ifjax.structure.structure import Structure

# Kinds of primitives that do to every slice what they do to the stack.
SLICE_BY_SLICE = {
    *("elementwise", "same", "layout", "reduction", "search", "move", "join", "ordered", "window")
}
PRODUCTS = ("dot_general", "conv_general_dilated")


class _Stack(list):
    """The slices of a value, each of length one along the axis that numbers them."""


def numbered_slices(
    apply_fn: Callable[..., Any],
    params: PyTree,
    structure: Structure,
    arguments: Arguments,
    static: Mapping[str, Any],
) -> tuple[Resized, str] | None:
    """The walked function, and the name of an axis that numbers slices which are read one by one.

    Args:
      apply_fn: ``apply_fn(params, *inputs, **static)``.
      params: the full parameters.
      structure: of them, at the widths of a spec.
      arguments: the inputs.
      static: keyword arguments.

    Returns:
      None where there is no such axis.
    """
    names = {a for g in structure.groups for a in g.along} - structure.group.keys()
    if not names:
        return None
    walked = resized(apply_fn, structure, params, arguments, static)
    store = walked.analysis.store
    roots = {store.find(walked.named[name]): name for name in names}
    program = flatten(walked.analysis.frame, [True] * len(walked.analysis.frame.jaxpr.invars))
    for step in program.steps:
        for axis in {axis for taken in positions(step.equation, step.note) for axis in taken}:
            root = store.find(_read(walked, step)[0][0][axis])
            if root in roots:
                return walked, roots[root]
    return None


def _read(walked: Resized, step: Step) -> tuple[list[Axes], list[Axes]]:
    """Axes of a step's operands and results."""
    assert step.frame is not None
    read, store = step.frame.read, walked.analysis.store
    ins = [read(v, store) for v in step.equation.invars]
    return ins, [read(v, store) for v in step.equation.outvars]


@dataclasses.dataclass
class _Evaluation:
    """Evaluates a function on stacks that are lists of slices.

    Attributes:
      walked: the function, at full size but for one slice instead of all.
      name: of the axis that numbers the slices.
      root: its representative.
    """

    walked: Resized
    name: str
    root: int

    def expressions(self, axes: Axes) -> tuple[ex.Expression, ...]:
        """What lies along the axes of a value."""
        store = self.walked.analysis.store
        return tuple(store.resolve(node, str, {self.root: self.name}) for node in axes)

    def count(self, axes: Axes) -> int:
        """How often the slices are numbered along an array."""
        return [m for e in self.expressions(axes) for m in mentioned(e)].count(self.name)

    def slices(self, x: Any, axes: Axes, n: int) -> list[Any]:
        """A value for every slice."""
        if isinstance(x, _Stack):
            return x
        if self.count(axes):
            return unstack(View(self.expressions(axes), (self.name,)).front(jnp.asarray(x), {}))
        return [x] * n

    def whole(self, x: Any, axes: Axes) -> Any:
        """The value that slices are slices of."""
        if not isinstance(x, _Stack):
            return x
        return View(self.expressions(axes), (self.name,)).back(jnp.stack(x), {})

    def step(self, step: Step, operands: Sequence[Any]) -> Sequence[Any]:
        """The results of a step, stacks where they are computed slice by slice."""
        stacks = [x for x in operands if isinstance(x, _Stack)]
        if not stacks:
            return bind(step, operands)
        ins, outs = _read(self.walked, step)
        taken = self._taken(step, ins[0]) if isinstance(operands[0], _Stack) else None
        if taken is not None:
            rest = [self.whole(x, a) for x, a in zip(operands[1:], ins[1:], strict=True)]
            return [_slice(step, k, stacks[0][i], rest) for k, i in enumerate(taken)]
        if not self._is_slice_by_slice(step, ins, outs):
            return bind(step, [self.whole(x, a) for x, a in zip(operands, ins, strict=True)])
        n = len(stacks[0])
        rows = zip(*(self.slices(x, a, n) for x, a in zip(operands, ins, strict=True)), strict=True)
        found = [self.walked.rebuild(step, [*row]) for row in rows]
        return [_Stack(column) for column in zip(*found, strict=True)]

    def _taken(self, step: Step, axes: Axes) -> list[int] | None:
        """By result, which slice of the first operand it is a part of."""
        find = self.walked.analysis.store.find
        at = [i for i, node in enumerate(axes) if find(node) == self.root]
        found = positions(step.equation, step.note)
        if len(at) != 1 or len(found) != len(step.outputs):
            return None
        return [p[at[0]] for p in found] if all(at[0] in p for p in found) else None

    def _is_slice_by_slice(self, step: Step, ins: Sequence[Axes], outs: Sequence[Axes]) -> bool:
        """Whether slices of the results are what the step makes of those of its operands."""
        kind, counts = traits_of(step.equation).kind, [self.count(axes) for axes in ins]
        if max(counts) > 1 or any(self.count(axes) != 1 for axes in outs):
            return False
        if kind == "lookup":
            return not any(counts[1:])
        if self._moves_along(step, ins):
            return False
        return kind in SLICE_BY_SLICE or step.equation.primitive.name in PRODUCTS

    def _moves_along(self, step: Step, ins: Sequence[Axes]) -> bool:
        """Whether data moves along the axis that numbers the slices."""
        p, traits, over = step.equation.params, traits_of(step.equation), list[list[int]]()
        if step.equation.primitive.name == "conv_general_dilated":
            numbers = p["dimension_numbers"]
            over = [[*numbers.lhs_spec[2:]], [*numbers.rhs_spec[2:]]]
        elif traits.kind == "window":
            over = [[i for i, n in enumerate(p["window_dimensions"]) if n != 1]] * len(ins)
        elif traits.kind == "ordered":
            moved = p[traits.over]
            over = [[moved] if isinstance(moved, int) else [*moved]] * len(ins)
        pairs = zip(ins, over, strict=False)
        return any(axes and self.count(tuple(axes[i] for i in moved)) for axes, moved in pairs)


def _slice(step: Step, result: int, x: Any, rest: Sequence[Any]) -> Any:
    """What a step that reads one slice of a stack makes of it."""
    shape = compat.shape_of(step.equation.outvars[result])
    if x.size == math.prod(shape):
        return x.reshape(shape)
    taken = positions(step.equation, step.note)[result]
    single = {k: 0 if x.shape[k] == 1 else i for k, i in taken.items()}
    ends = [(single[k], single[k] + 1) if k in single else (0, n) for k, n in enumerate(x.shape)]
    if math.prod(end - begin for begin, end in ends) == math.prod(shape):
        return jax.lax.slice(x, *zip(*ends, strict=True)).reshape(shape)
    stack = jnp.broadcast_to(x, compat.shape_of(step.equation.invars[0]))
    return bind(step, [stack, *rest])[result]


def sliced(walked: Resized, name: str, params: PyTree) -> Apart:
    """Makes leaves of the slices that an axis numbers.

    Args:
      walked: the function of the full parameters.
      name: of the axis, see `numbered_slices`.
      params: the full parameters.

    Returns:
      The function of lists of slices, for inputs of the same shapes.
    """
    structure, analysis = walked.structure, walked.analysis
    paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    root = analysis.store.find(walked.named[name])
    one = dataclasses.replace(walked, widths={root: 1}, parts={})
    evaluation = _Evaluation(one, name, root)
    count = analysis.store.size(root)
    parts = {
        leaf.path: _parts(leaf.axes, name, count, structure.widths)
        for leaf in structure.leaves
        if any(e.size > 1 for e in ex.numbering(leaf.axes, name))
    }
    found = tuple(map(parts.get, paths))
    program = flatten(analysis.frame, [False] * len(paths) + [True] * len(analysis.inputs))

    def straight(params: Any, *inputs: Any, **static: Any) -> Any:
        arrays = Arguments.split(inputs, static).arrays
        leaves = by_leaf(params, found)
        stacks = [_Stack(x) if isinstance(x, list) else x for x in leaves]
        known: dict[int, Any] = {**program.constants}
        known |= zip(program.inputs, [*stacks, *arrays], strict=True)
        for step in program.steps:
            results = evaluation.step(step, [known[n] for n in step.inputs])
            known |= zip(step.outputs, results, strict=True)
        outputs = zip(program.outputs, analysis.outputs, strict=True)
        whole = [evaluation.whole(known[n], axes) for n, axes in outputs]
        return jax.tree.unflatten(analysis.out_tree, whole)

    tree = jax.tree.structure(params)
    new, copies = copied(structure, paths, parts, {name})
    return Apart(straight, unstacked(params, found), new, copies, tree, (*paths,), found)


def _parts(
    axes: Sequence[ex.Expression], name: str, count: int, widths: Mapping[str, int]
) -> Parts:
    """A stack as its slices, each of length one along the axis that numbers them."""
    entries = next(ex.numbering(axes, name)).entries
    view = View(tuple(ex.shared(e, name, (), 0) for e in axes), (name,))

    def split(x: Any) -> list[Any]:
        is_full = tuple(x.shape) == tuple(map(ex.size, view.axes))
        return unstack(view.front(x, {} if is_full else widths))

    def join(slices: Sequence[Any]) -> Any:
        return view.back(namespace(*slices).stack(slices), widths)

    return Parts(count, view.rest(), tuple(range(len(view.axes))), split, join, entries)
