"""A function whose stacked layers are leaves of their own, one straight line instead of a scan.

Layers of a scan are cut and solved for one by one: each has inputs of its own. The stacked leaves
become lists of leaves, the loops over them come apart, and groups that are batched along the layers
become a group for each. So do layers that are read as slices, `ifjax.reconstruction.slices`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ifjax.graph.resized import resized
from ifjax.jaxprs.arguments import Arguments, path_name, struct
from ifjax.jaxprs.compat import scan_counts
from ifjax.jaxprs.evaluate import bind, evaluate
from ifjax.jaxprs.normal import normalised
from ifjax.jaxprs.program import Program, Step, flatten
from ifjax.jaxprs.traits import traits_of
from ifjax.jaxprs.walk import loop_parts
from ifjax.namespace import namespace
from ifjax.parallel.sharding import unstack
from ifjax.reconstruction.apart import Apart, Parts, by_leaf, copied, unstacked
from ifjax.reconstruction.slices import numbered_slices, sliced
from ifjax.structure import axis as ex
from ifjax.structure.batch_view import mentioned
from ifjax.structure.structure import Group, Leaf, Structure

TURNS = 64  # of a loop over time that comes apart
THROUGH = ("transpose", "convert_element_type", "copy", "sharding_constraint", "name")


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A function without loops over layers, and without stacks that are read slice by slice.

    Attributes:
      apply_fn: ``apply_fn(params, *inputs)`` of the unrolled parameters.
      params: the parameters, stacked leaves as lists.
      structure: of them.
      stages: how it came apart, one after the other.
    """

    apply_fn: Callable[..., Any]
    params: PyTree
    structure: Structure
    stages: tuple[Apart, ...] = ()

    @property
    def copies(self) -> dict[str, tuple[str, ...]]:
        """By name of an original group, the groups that it became."""
        first = self.stages[0].copies.of if self.stages else self.structure.group
        found = {name: (name,) for name in first}
        for of in (stage.copies.of for stage in self.stages):
            found = {k: tuple(copy for name in v for copy in of[name][0]) for k, v in found.items()}
        return found

    @property
    def sources(self) -> list[str]:
        """By leaf of the unrolled parameters, the path of the original one that it is a part of."""
        found = [leaf.path for leaf in self.structure.leaves]
        for i, stage in enumerate(self.stages):
            before = stage.paths if i == 0 else found
            counts = [1 if part is None else part.count for part in stage.parts]
            pairs = zip(before, counts, strict=True)
            found = [path for path, n in pairs for _ in range(n)]
        return found

    def unstacked(self, params: PyTree) -> PyTree:
        """Parameters, full or at the widths of the spec, as the unrolled function takes them."""
        for stage in self.stages:
            params = stage.unstacked(params)
        return params

    def stacked(self, params: PyTree) -> PyTree:
        """Parameters at the widths of the spec as the original function takes them."""
        for stage in reversed(self.stages):
            params = stage.stacked(params)
        return params

    def taken(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Kept neurons of original groups, by group of the unrolled function."""
        for stage in self.stages:
            given = stage.copies.taken(given)
        return {name: np.asarray(index) for name, index in given.items()}

    def gathered(self, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inverse of `taken`."""
        for stage in reversed(self.stages):
            kept = stage.copies.gathered(kept)
        return dict(kept)

    def originals(self, groups: Sequence[Group]) -> set[str]:
        """Names of the original groups that some groups are copies of."""
        wanted = {g.name for g in groups}
        for stage in reversed(self.stages):
            wanted = stage.copies.originals(wanted)
        return wanted


@dataclasses.dataclass
class _Stack:
    """Layers of a value, each of length one along an axis."""

    layers: list[Any]
    axis: int

    def __getitem__(self, turn: int) -> Any:
        """One layer, as a scan over the first axis sees it."""
        return jnp.squeeze(self.layers[turn], self.axis)


def unrolled(
    apply_fn: Callable[..., Any],
    params: PyTree,
    structure: Structure,
    inputs: Sequence[Any],
    static: Mapping[str, Any],
) -> Unrolled:
    """Takes the loops over layers apart.

    Args:
      apply_fn: ``apply_fn(params, *inputs, **static)``.
      params: the full parameters.
      structure: of them, at the widths of a spec.
      inputs: a batch of inputs, for their shapes.
      static: keyword arguments.

    Returns:
      The function of unrolled parameters, for inputs of these shapes; the function itself where no
      loop goes over stacked leaves alone.
    """
    arguments = Arguments.split(inputs, static)
    paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    ordered = tuple(structure.leaf[path] for path in paths)
    now = Unrolled(apply_fn, params, dataclasses.replace(structure, leaves=ordered))
    now = _without_slices(now, arguments, static)
    found = _without_loops(now, arguments, static)
    return now if found is None else _without_slices(_after(now, found), arguments, static)


def _after(now: Unrolled, found: Apart) -> Unrolled:
    """A function that has come apart once more."""
    return Unrolled(found.apply_fn, found.params, found.structure, (*now.stages, found))


def _without_slices(now: Unrolled, arguments: Arguments, static: Mapping[str, Any]) -> Unrolled:
    """A function without stacks that are read slice by slice, but for those inside of loops."""
    while True:
        found = numbered_slices(now.apply_fn, now.params, now.structure, arguments, static)
        if found is None:
            return now
        new = _after(now, sliced(*found, now.params))
        try:
            resized(new.apply_fn, new.structure, new.params, arguments, static)
        except ValueError as error:
            names = ", ".join(g.name for g in now.structure.groups if found[1] in g.along)
            raise ValueError(
                f"{names}: its slices are read one by one, and as a whole too, where they meet; "
                "compress solves for each by itself and cannot here: leave the group out, by "
                "spec(..., exclude=...), or hold its slices in leaves of their own"
            ) from error
        now = new


def _without_loops(now: Unrolled, arguments: Arguments, static: Mapping[str, Any]) -> Apart | None:
    """A function whose loops over layers are a straight line; None where there are none."""
    program, tree = _flattened(now.apply_fn, now.params, arguments, static)
    named = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(now.params)]
    axes = _whole(_stacked_axes(program, named), now.structure)
    loops = _loops(program, named, axes)
    if not loops:
        return None
    parts = {path: _parts(now.structure.leaf[path], axis) for path, axis in axes.items()}
    found = tuple(map(parts.get, named))

    def straight(params: Any, *inputs: Any, **static: Any) -> Any:
        given = Arguments.split(inputs, static)
        stacks: list[Any] = [
            _Stack([jnp.expand_dims(v, axes[path]) for v in x], axes[path]) if path in axes else x
            for path, x in zip(named, by_leaf(params, found), strict=True)
        ]
        known = {**program.constants}
        known |= zip(program.inputs, [*stacks, *given.arrays], strict=True)
        for step in program.steps:
            results = _evaluated(step, [known[n] for n in step.inputs], id(step) in loops)
            known |= zip(step.outputs, results, strict=True)
        return jax.tree.unflatten(tree, [known[n] for n in program.outputs])

    names = (_name(now.structure.leaf[path].axes[axis]) for path, axis in axes.items())
    over = {name for name in names if name is not None}
    new, copies = copied(now.structure, named, parts, over)
    before = jax.tree.structure(now.params)
    return Apart(straight, unstacked(now.params, found), new, copies, before, (*named,), found)


def _flattened(
    apply_fn: Callable[..., Any], params: PyTree, arguments: Arguments, static: Mapping[str, Any]
) -> tuple[Program, Any]:
    """A function's equations, and the tree of its outputs."""

    def function(params: Any, *arrays: Any) -> Any:
        return arguments.call(apply_fn, params, arrays, static)

    closed, shape = jax.make_jaxpr(function, return_shape=True)(
        jax.tree.map(struct, params), *map(struct, arguments.arrays)
    )
    data = [False] * len(jax.tree.leaves(params)) + [True] * len(arguments.arrays)
    return flatten(normalised(closed), data), jax.tree.structure(shape)


def _evaluated(step: Step, operands: Sequence[Any], is_loop: bool) -> Sequence[Any]:
    """The results of a step, on every layer where its operand is a stack."""
    if is_loop:
        return _turns(step, operands)
    stack = operands[0] if operands else None
    if not isinstance(stack, _Stack):
        return bind(step, operands)
    axis = stack.axis
    if step.equation.primitive.name == "transpose":
        axis = step.equation.params["permutation"].index(axis)
    return [_Stack([bind(step, [x])[0] for x in stack.layers], axis)]


def _turns(step: Step, operands: Sequence[Any]) -> Sequence[Any]:
    """A scan, turn after turn."""
    p, counts = step.equation.params, scan_counts(step.equation)
    _, constants, carries, stacked = loop_parts((0, *counts), operands)
    body = flatten(p["jaxpr"], [True] * len(operands))
    rows: list[list[Any]] = []
    for turn in reversed(range(p["length"])) if p["reverse"] else range(p["length"]):
        slices = [
            x[turn] if isinstance(x, _Stack) else jax.lax.index_in_dim(x, turn, keepdims=False)
            for x in stacked
        ]
        values = dict(zip(body.inputs, [*constants, *carries, *slices], strict=True))
        found = evaluate(body, values)
        results = [found[n] for n in body.outputs]
        carries, outputs = results[: counts[1]], results[counts[1] :]
        rows.append(outputs)
    ordered = rows[::-1] if p["reverse"] else rows
    return [*carries, *(jnp.stack(row) for row in zip(*ordered, strict=True))]


def _stacked_axes(program: Program, paths: Sequence[str]) -> dict[str, int]:
    """The leaves that scans alone read, as what they go over, and the axis of the turns."""
    users: dict[int, list[tuple[Step, int]]] = defaultdict(list)
    for step in program.steps:
        for k, n in enumerate(step.inputs):
            users[n].append((step, k))
    found = {}
    for number, path in zip(program.inputs, paths, strict=False):
        ends = _ends(program, users, number, None)
        if ends and None not in ends and len(ends) == 1:
            [axis] = ends
            assert axis is not None
            found[path] = axis
    return found


def _ends(
    program: Program,
    users: Mapping[int, list[tuple[Step, int]]],
    number: int,
    order: tuple[int, ...] | None,
) -> set[int | None]:
    """The axes of the leaf that scans go over; None among them for another use."""
    found: set[int | None] = set()
    for step, k in users.get(number, ()):
        name = step.equation.primitive.name
        if name == "scan":
            constants, carries = scan_counts(step.equation)
            stacked = k >= constants + carries and step.equation.params["length"] > 1
            found.add((0 if order is None else order[0]) if stacked else None)
        elif name in THROUGH and len(step.inputs) == 1:
            rank = len(step.equation.invars[0].aval.shape)  # type: ignore[attr-defined]
            before = order or tuple(range(rank))
            after = before
            if name == "transpose":
                after = tuple(before[i] for i in step.equation.params["permutation"])
            found |= _ends(program, users, step.outputs[0], after)
        else:
            found.add(None)
    if number in program.outputs:
        found.add(None)
    return found


def _whole(axes: Mapping[str, int], structure: Structure) -> dict[str, int]:
    """The axes of layers that every leaf with neurons along them agrees on."""
    names = {path: _name(structure.leaf[path].axes[axis]) for path, axis in axes.items()}
    bad = set()
    for leaf in structure.leaves:
        for axis, e in enumerate(leaf.axes):
            for name in mentioned(e):
                if names.get(leaf.path) != name or axes[leaf.path] != axis:
                    bad.add(name)
    cut = structure.widths
    return {
        path: axis
        for path, axis in axes.items()
        if names[path] is None or (names[path] not in bad and names[path] not in cut)
    }


def _name(e: ex.Expression) -> str | None:
    match e:
        case ex.Pinned(_, name):
            return name
        case ex.Atom(name, _):
            return name
    return None


def _loops(program: Program, paths: Sequence[str], axes: Mapping[str, int]) -> set[int]:
    """The scans that go over unstacked leaves, and those over time that are not too long."""
    stacks = {n for n, path in zip(program.inputs, paths, strict=False) if path in axes}
    loops = set()
    for step in program.steps:
        name = step.equation.primitive.name
        if name == "scan":
            counts = (0, *scan_counts(step.equation))
            if stacks.intersection(loop_parts(counts, step.inputs)[3]) or _is_short(step):
                loops.add(id(step))
        elif name in THROUGH and step.inputs[0] in stacks:
            stacks.add(step.outputs[0])
    return loops


def _is_short(step: Step) -> bool:
    """Whether a scan on data has few turns, in which it contracts activations with parameters."""
    p = step.equation.params
    if p["length"] > TURNS or not any(step.data):
        return False
    carried = scan_counts(step.equation)
    data = list(step.data)
    data[carried[0] : sum(carried)] = [True] * carried[1]
    body = flatten(p["jaxpr"], data)
    return any(
        traits_of(s.equation).kind == "contraction" and sum(s.data[:2]) == 1 for s in body.steps
    )


def _parts(leaf: Leaf, axis: int) -> Parts:
    """A stacked leaf as its layers, without the axis that numbers them."""
    rest = tuple(e for k, e in enumerate(leaf.axes) if k != axis)
    places = tuple(k - int(axis < k) for k in range(len(leaf.axes)))
    split = functools.partial(unstack, axis=axis)
    join = lambda layers: namespace(*layers).stack(layers, axis)  # noqa: E731
    return Parts(ex.size(leaf.axes[axis]), rest, places, split, join)
