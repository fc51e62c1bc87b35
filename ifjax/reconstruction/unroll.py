"""A function whose stacked layers are leaves of their own, one straight line instead of a scan.

Layers of a scan are cut and solved for one by one: each has inputs of its own. The stacked leaves
become lists of leaves, the loops over them come apart, and groups that are batched along the layers
become a group for each.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ifjax.jaxprs.arguments import Arguments, path_name, struct
from ifjax.jaxprs.compat import scan_counts
from ifjax.jaxprs.evaluate import bind, evaluate
from ifjax.jaxprs.normal import normalised
from ifjax.jaxprs.program import Program, Step, flatten
from ifjax.jaxprs.traits import traits_of
from ifjax.jaxprs.walk import loop_parts
from ifjax.structure import axis as ex
from ifjax.structure.batch_view import mentioned
from ifjax.structure.structure import BatchNorm, Group, Leaf, Member, Structure

TURNS = 64  # of a loop over time that comes apart
THROUGH = ("transpose", "convert_element_type", "copy", "sharding_constraint", "name")


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A function without loops over layers.

    Attributes:
      apply_fn: ``apply_fn(params, *inputs)`` of the unrolled parameters.
      params: the parameters, stacked leaves as lists.
      structure: of them.
      axes: by path of an unstacked leaf, the axis of its layers.
      copies: by name of an original group, its groups by layer, and which of its batch axes the
        layers were; of a group that stays one, its own name and None.
    """

    apply_fn: Callable[..., Any]
    params: PyTree
    structure: Structure
    axes: Mapping[str, int]
    copies: Mapping[str, tuple[tuple[str, ...], int | None]]

    def unstacked(self, params: PyTree) -> PyTree:
        """Parameters, at any widths, as the unrolled function takes them."""
        return _unstacked(params, self.axes)

    def stacked(self, params: PyTree) -> PyTree:
        """Parameters as the original function takes them."""

        def stack(path: Any, x: Any) -> Any:
            axis = self.axes.get(path_name(path))
            return x if axis is None else jnp.stack(x, axis)

        return jax.tree_util.tree_map_with_path(
            stack, params, is_leaf=lambda x: isinstance(x, _Layers)
        )

    def taken(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Kept neurons of original groups, by group of the unrolled function."""
        found = {}
        for name, index in given.items():
            names, at = self.copies[name]
            index = np.asarray(index)
            parts = [index] if at is None else np.moveaxis(index, at, 0)
            found |= zip(names, parts, strict=True)
        return found

    def gathered(self, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inverse of `taken`."""
        found = {}
        for name, (names, at) in self.copies.items():
            if names[0] in kept:
                parts = [kept[n] for n in names]
                found[name] = parts[0] if at is None else np.stack(parts, at)
        return found

    def originals(self, groups: Sequence[Group]) -> set[str]:
        """Names of the original groups that some groups are copies of."""
        wanted = {g.name for g in groups}
        return {name for name, (names, _) in self.copies.items() if wanted.intersection(names)}


class _Layers(list):
    """The layers of what was one stacked leaf."""


jax.tree_util.register_pytree_with_keys(
    _Layers,
    lambda x: ([(jax.tree_util.SequenceKey(i), v) for i, v in enumerate(x)], None),
    lambda _, values: _Layers(values),
)


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
    structs = jax.tree.map(struct, params)

    def function(params: Any, *arrays: Any) -> Any:
        return arguments.call(apply_fn, params, arrays, static)

    closed, shape = jax.make_jaxpr(function, return_shape=True)(
        structs, *map(struct, arguments.arrays)
    )
    named = [(path_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(params)]
    data = [False] * len(named) + [True] * len(arguments.arrays)
    program = flatten(normalised(closed), data)
    axes = _stacked_axes(program, [path for path, _ in named])
    axes = _whole(axes, structure)
    loops = _loops(program, [path for path, _ in named], axes)
    if not loops:
        ordered = tuple(structure.leaf[path] for path, _ in named)
        same = dataclasses.replace(structure, leaves=ordered)
        copies = {g.name: ((g.name,), None) for g in structure.groups}
        return Unrolled(apply_fn, params, same, {}, copies)
    tree = jax.tree.structure(shape)

    def straight(params: Any, *inputs: Any, **static: Any) -> Any:
        given = Arguments.split(inputs, static)
        leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, _Layers))
        stacks: list[Any] = [
            _Stack([jnp.expand_dims(v, axes[path]) for v in x], axes[path]) if path in axes else x
            for (path, _), x in zip(named, leaves, strict=True)
        ]
        known = {**program.constants}
        known |= zip(program.inputs, [*stacks, *given.arrays], strict=True)
        for step in program.steps:
            results = _evaluated(step, [known[n] for n in step.inputs], id(step) in loops)
            known |= zip(step.outputs, results, strict=True)
        return jax.tree.unflatten(tree, [known[n] for n in program.outputs])

    return Unrolled(straight, _unstacked(params, axes), *_apart(structure, named, axes))


def _unstacked(params: PyTree, axes: Mapping[str, int]) -> PyTree:
    """Parameters with lists of layers in the places of stacked leaves."""

    def unstack(path: Any, x: Any) -> Any:
        axis = axes.get(path_name(path))
        if axis is None:
            return x
        return _Layers(jnp.take(x, i, axis) for i in range(x.shape[axis]))

    return jax.tree_util.tree_map_with_path(unstack, params)


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


def _apart(
    structure: Structure, named: Sequence[tuple[str, Any]], axes: Mapping[str, int]
) -> tuple[Structure, Mapping[str, int], Mapping[str, tuple[tuple[str, ...], int | None]]]:
    """The structure of the unrolled parameters."""
    layers = {path: ex.size(structure.leaf[path].axes[axis]) for path, axis in axes.items()}
    over = {_name(structure.leaf[path].axes[axis]) for path, axis in axes.items()} - {None}
    copies: dict[str, tuple[tuple[str, ...], int | None]] = {}
    groups: list[Group] = []

    def members(group: Group, turn: int | None) -> tuple[Member, ...]:
        found = []
        for m in group.members:
            turns = [turn] if turn is not None else range(layers.get(m.path, 1))
            for i in turns if m.path in axes else (None,):
                path = m.path if i is None else f"{m.path}/{i}"
                axis = m.axis - int(m.path in axes and axes[m.path] < m.axis)
                found.append(dataclasses.replace(m, path=path, axis=axis))
        return tuple(found)

    for group in structure.groups:
        at = next((j for j, name in enumerate(group.along) if name in over), None)
        if at is None:
            copies[group.name] = ((group.name,), None)
            groups.append(dataclasses.replace(group, members=members(group, None)))
            continue
        names = tuple(f"{group.name}[{i}]" for i in range(group.batch[at]))
        copies[group.name] = (names, at)
        rest = {
            "batch": (*group.batch[:at], *group.batch[at + 1 :]),
            "along": (*group.along[:at], *group.along[at + 1 :]),
        }
        for i, name in enumerate(names):
            new = dataclasses.replace(group, name=name, members=members(group, i), **rest)
            groups.append(new)
    leaves: list[Leaf] = []
    for path, _ in named:
        leaf, axis = structure.leaf[path], axes.get(path)
        if axis is None:
            leaves.append(leaf)
            continue
        for i in range(layers[path]):
            renamed = {n: names[i] for n, (names, at) in copies.items() if at is not None}
            kept = [ex.rename(e, renamed) for k, e in enumerate(leaf.axes) if k != axis]
            shape = (*leaf.shape[:axis], *leaf.shape[axis + 1 :])
            leaves.append(Leaf(f"{path}/{i}", shape, leaf.dtype, tuple(kept)))
    renamed = {g.name: tuple(n for a in g.along for n in _along(a, copies, g.name)) for g in groups}
    groups = [dataclasses.replace(g, along=renamed[g.name]) for g in groups]
    norms = tuple(n for norm in structure.norms for n in _norms(norm, axes, layers))
    new = dataclasses.replace(
        structure, leaves=tuple(leaves), groups=tuple(groups), norms=norms, products=()
    )
    return new, axes, copies


def _along(
    name: str, copies: Mapping[str, tuple[tuple[str, ...], int | None]], group: str
) -> tuple[str, ...]:
    """The name of a batch axis that is a group: of the same layer, where it has been copied."""
    names, at = copies.get(name, ((name,), None))
    if at is None:
        return names
    turn = int(group[group.rindex("[") + 1 : -1])
    return (names[turn],)


def _norms(norm: BatchNorm, axes: Mapping[str, int], layers: Mapping[str, int]) -> list[BatchNorm]:
    if norm.kernel not in axes:
        return [norm]
    found = []
    for i in range(layers[norm.kernel]):
        paths = {
            f.name: f"{value}/{i}" if value in axes else value
            for f in dataclasses.fields(norm)
            if isinstance(value := getattr(norm, f.name), str)
        }
        axis = norm.axis - int(axes[norm.kernel] < norm.axis)
        found.append(dataclasses.replace(norm, **paths, axis=axis))
    return found
