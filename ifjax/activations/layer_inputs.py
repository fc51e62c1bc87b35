"""What the consumers of a group read: the activations of its neurons, from any traced function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import jax
from jax.extend.core import JaxprEqn
from jax.typing import ArrayLike
from jaxtyping import Array, Inexact, PyTree

from ifjax.graph.analysis import analyse
from ifjax.jaxprs.arguments import Arguments
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.compat import Values
from ifjax.jaxprs.evaluate import Seen, bind, evaluate
from ifjax.jaxprs.program import Step, flatten
from ifjax.jaxprs.traits import contraction_of, traits_of
from ifjax.jaxprs.walk import Axes
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.structure import Structure


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
    equation: JaxprEqn

    def rows(self, name: str) -> list[Inexact[Array, "n _"]]:
        """The activations of every neuron of a group, one matrix per occurrence on the axis."""
        return axis_arrays.rows(self.value, self.axis, self.where, name)


def layer_inputs(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    structure: Structure,
    *inputs: PyTree,
    **static: object,
) -> list[Reading]:
    """Evaluates a function and collects what its contractions with weights read.

    Contractions inside of jitted, rematerialised and custom-derivative functions are seen; those
    inside of loops and branches are not.

    Args:
      apply_fn: the function that was traced.
      params: its full parameters.
      structure: of its graph.
      *inputs: arrays; Python values that are not arrays are static.
      **static: keyword arguments, not traced, but for random keys.

    Returns:
      One `Reading` per contraction that consumes a group, in the order of the function.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: (x @ p["w1"]) @ p["w2"]
      >>> structure = ifjax.trace(apply, params, jnp.ones((1, 4))).structure
      >>> found = layer_inputs(apply, params, structure, jnp.ones((3, 4)))
      >>> [(r.groups, r.value.shape) for r in found]
      [(('w1',), (3, 8))]
    """
    arguments = Arguments.split(inputs, static)
    atoms: dict[str, int] = {}

    def leaf_axes(store: AxisStore, path: str, x: jax.ShapeDtypeStruct) -> Axes:
        del x
        return tuple(store.instantiate(e, atoms) for e in structure.leaf[path].axes)

    analysis = analyse(apply_fn, params, arguments, static, leaf_axes)
    analysis.store.number_by(atoms.values())
    owner = {analysis.store.find(node): name for name, node in atoms.items()}
    found: list[Reading] = []
    program = flatten(
        analysis.frame, [False] * len(analysis.leaves) + [True] * len(arguments.arrays)
    )
    mesh_axes = varying(arguments.arrays)
    given = zip(program.inputs, (*jax.tree.leaves(params), *arguments.arrays), strict=True)
    values = {n: vary(x, mesh_axes) for n, x in (*program.constants.items(), *given)}

    def observe(seen: Seen) -> None:
        found.extend(_reading(seen, analysis.store, owner))

    def apply(step: Step, operands: Values) -> Values:
        return [vary(x, mesh_axes) for x in bind(step, operands)]

    evaluate(program, values, observe, apply=apply)
    return found


def varying(tree: PyTree) -> frozenset[str]:
    """The mesh axes of `jax.shard_map` that the values of a tree vary over."""
    found: frozenset[str] = frozenset()
    for x in jax.tree.leaves(tree):
        aval = jax.typeof(x)  # the name of the field depends on the version of jax
        found |= aval.mat.varying if hasattr(aval, "mat") else getattr(aval, "vma", frozenset())
    return found


def vary(x: ArrayLike, axes: frozenset[str]) -> ArrayLike:
    """The value as one of each device's own along these axes of a mesh."""
    missing = tuple(sorted(axes - varying(x))) if axes else ()
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _reading(seen: Seen, store: AxisStore, owner: Mapping[int, str]) -> Iterator[Reading]:
    """The axes that a contraction of an activation with a weight contracts."""
    step, frame = seen.step, seen.step.frame
    if traits_of(step.equation).kind != "contraction" or frame is None:
        return

    def resolve(node: int) -> ex.Expression:
        return store.resolve(node, lambda root: owner.get(root, f"#{root}"))

    factors = step.data[traits_of(step.equation).sources]
    if sum(factors) != 1:
        return
    data = factors.index(True)
    axes = [frame.read(v, store) for v in step.equation.invars]
    contracted = contraction_of(step.equation).contracted
    known = set(owner.values())
    for axis, weight in zip(contracted[data], contracted[1 - data], strict=True):
        names = [n for n in ex.atoms(resolve(axes[1 - data][weight])) if n in known]
        if names:
            where = resolve(axes[data][axis])
            groups = tuple(n for n in dict.fromkeys(names) if n in set(ex.atoms(where)))
            value = cast("Array", seen.operands[data])  # the very object: it may be read twice
            yield Reading(groups, value, axis, where, step.equation)
