"""What the consumers of a group read: the activations of its neurons, from any traced function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float, PyTree

from ifjax.graph.analysis import analyse
from ifjax.jaxprs import compat
from ifjax.jaxprs.arguments import Arguments
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.walk import Axes, Frame
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.structure import Plan

LINEAR = ("dot_general", "conv_general_dilated")
# Calls whose operands are those of their jaxpr, one by one.
CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call"),
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """One axis along which a contraction with a weight reads an activation.

    Attributes:
      groups: names of the groups whose neurons the weight's contracted axis holds.
      value: the activation.
      axis: the axis that is contracted.
      where: what lies along it.
      equation: the contraction.
    """

    groups: tuple[str, ...]
    value: Array
    axis: int
    where: ex.Expression
    equation: Any

    def rows(self, name: str) -> list[Float[Array, "n _"]]:
        """The activations of every neuron of a group, one matrix per occurrence on the axis."""
        return axis_arrays.rows(self.value, self.axis, self.where, name)


def readings(
    apply_fn: Callable[..., Any], params: PyTree, plan: Plan, *inputs: Any, **static: Any
) -> list[Reading]:
    """Evaluates a function and collects what its contractions with weights read.

    Contractions inside of jitted, rematerialised and custom-derivative functions are seen; those
    inside of loops and branches are not.

    Args:
      apply_fn: the function that was traced.
      params: its full parameters.
      plan: of its graph.
      *inputs: arrays; Python values that are not arrays are static.
      **static: keyword arguments, not traced.

    Returns:
      One `Reading` per contraction that consumes a group, in the order of the function.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: (x @ p["w1"]) @ p["w2"]
      >>> plan = ifjax.trace(apply, params, jnp.ones((1, 4))).plan
      >>> [(r.groups, r.value.shape) for r in readings(apply, params, plan, jnp.ones((3, 4)))]
      [(('w1',), (3, 8))]
    """
    arguments = Arguments.split(inputs)
    atoms: dict[str, int] = {}

    def leaf_axes(store: AxisStore, path: str, x: Any) -> Axes:
        del x

        def atom(a: ex.Atom) -> int:
            if a.name not in atoms:
                atoms[a.name] = store.fresh(a.size)
            return atoms[a.name]

        return tuple(store.instantiate(e, atom) for e in plan.leaf[path].axes)

    analysis = analyse(apply_fn, params, arguments, static, leaf_axes)
    owner = {analysis.store.find(node): name for name, node in atoms.items()}
    found: list[Reading] = []
    mesh_axes = varying(arguments.arrays)
    values = [(vary(x, mesh_axes), False) for x in jax.tree.leaves(params)]
    values += [(vary(x, mesh_axes), True) for x in arguments.arrays]
    _evaluate(analysis.frame, analysis.store, values, owner, found, mesh_axes)
    return found


def varying(tree: PyTree) -> frozenset[str]:
    """The mesh axes of `jax.shard_map` that the values of a tree vary over."""
    found: frozenset[str] = frozenset()
    for x in jax.tree.leaves(tree):
        aval = jax.typeof(x)  # the name of the field depends on the version of jax
        found |= aval.mat.varying if hasattr(aval, "mat") else getattr(aval, "vma", frozenset())
    return found


def vary(x: Any, axes: frozenset[str]) -> Any:
    """The value as one of each device's own along these axes of a mesh."""
    missing = tuple(sorted(axes - varying(x))) if axes else ()
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _evaluate(
    frame: Frame,
    store: AxisStore,
    inputs: Sequence[tuple[Any, bool]],
    owner: Mapping[int, str],
    found: list[Reading],
    mesh_axes: frozenset[str],
) -> list[tuple[Any, bool]]:
    """Evaluates a walked jaxpr on pairs of a value and whether it depends on the inputs."""
    inner, constvars, _ = compat.unpack(frame.jaxpr)
    env = dict(zip(inner.invars, inputs, strict=True))
    constants = ((vary(c, mesh_axes), False) for c in frame.constants)
    env.update(zip(constvars, constants, strict=True))

    def read(atom: Any) -> tuple[Any, bool]:
        if isinstance(atom, compat.Literal):
            return vary(atom.val, mesh_axes), False
        return env[atom]

    for i, equation in enumerate(inner.eqns):
        operands = [read(v) for v in equation.invars]
        name, note = equation.primitive.name, frame.notes.get(i)
        if name in CALLS and isinstance(note, Frame):
            results = _evaluate(note, store, operands, owner, found, mesh_axes)
        else:
            if name in LINEAR:
                axes = [frame.read(v, store) for v in equation.invars]
                found += _reading(equation, axes, operands, store, owner)
            data = any(dependent for _, dependent in operands)
            out = compat.bind(equation, [value for value, _ in operands])
            results = [(vary(x, mesh_axes), data) for x in out]
        env.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in inner.outvars]


def _reading(
    equation: Any,
    axes: Sequence[Axes],
    operands: Sequence[tuple[Any, bool]],
    store: AxisStore,
    owner: Mapping[int, str],
) -> Iterator[Reading]:
    """The axes that a contraction of an activation with a weight contracts."""

    def resolve(node: int) -> ex.Expression:
        return store.resolve(node, lambda root: owner.get(root, f"#{root}"))

    dependent = [data for _, data in operands]
    if sum(dependent) != 1:
        return
    data = dependent.index(True)
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        contracted = numbers[0]
    else:
        contracted = ((numbers.lhs_spec[1],), (numbers.rhs_spec[1],))
    known = set(owner.values())
    for axis, weight in zip(contracted[data], contracted[1 - data], strict=True):
        names = [n for n in ex.atoms(resolve(axes[1 - data][weight])) if n in known]
        if names:
            where = resolve(axes[data][axis])
            groups = tuple(n for n in dict.fromkeys(names) if n in set(ex.atoms(where)))
            yield Reading(groups, operands[data][0], axis, where, equation)
