"""A walked function whose equations are evaluated at the widths of its groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from ifjax.graph.analysis import FIXED_KEY, Analysis, LeafAxes, analyse
from ifjax.graph.facts.numbers import find_numbers
from ifjax.jaxprs import compat
from ifjax.jaxprs.arguments import Arguments, struct
from ifjax.jaxprs.axis_store import AxisStore, Free
from ifjax.jaxprs.compat import AnyJaxpr, Values
from ifjax.jaxprs.evaluate import evaluate
from ifjax.jaxprs.program import Step, flatten
from ifjax.jaxprs.rules import rule_of
from ifjax.jaxprs.rules.rule import Derive, Resize
from ifjax.jaxprs.walk import Axes, Context, Frame, constant_axes, frames_of, walk
from ifjax.namespace import Shaped
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.structure import Leaf, Structure
from ifjax.tree import path_name


def _axes_of(leaf: Leaf, atoms: dict[str, int], named: dict[str, int]) -> LeafAxes:
    """The axes of a leaf with its groups as atoms, by name the same for all leaves."""

    def axes(store: AxisStore, path: str, x: jax.ShapeDtypeStruct) -> Axes:
        del path

        # a group that is not cut may be split or pinned by another function
        return tuple(
            store.instantiate(e if ex.size(e) == n else ex.Pinned(n), atoms, named=named)
            for e, n in zip(leaf.axes, x.shape, strict=True)
        )

    return axes


def resized(
    apply_fn: Callable[..., PyTree],
    structure: Structure,
    params: PyTree,
    arguments: Arguments,
    static: Mapping[str, object],
) -> Resized:
    """Traces at full size, with the structure's groups as named atoms of the axis store.

    Args:
      apply_fn: ``apply_fn(params, *inputs, **static)``.
      structure: of the function, or of another one of the same parameters.
      params: full or small, for their tree and dtypes.
      arguments: the inputs; state among them at the small widths.
      static: keyword arguments.

    Returns:
      The walked function at the widths of the structure.

    Raises:
      ValueError: where the function couples or pins what the structure cuts.
    """
    full = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(
            structure.leaf[path_name(path)].shape, struct(x).dtype
        ),
        params,
    )
    follows = {s.path: s for s in structure.state if s.path in arguments.paths}

    arrays = [
        _full_state(follows[path], x, structure) if path in follows else x
        for path, x in zip(arguments.paths, arguments.arrays, strict=True)
    ]

    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    small = [structure.shape(path) for path in paths]
    given = [tuple(x.shape) for x in arguments.arrays]

    def walked(keep_callbacks: bool) -> Resized:
        atoms, named = dict[str, int](), dict[str, int]()
        analysis = analyse(
            apply_fn,
            full,
            dataclasses.replace(arguments, arrays=tuple(arrays)),
            static,
            lambda store, path, x: _axes_of(structure.leaf[path], atoms, named)(store, path, x),
            {path: _axes_of(leaf, atoms, named) for path, leaf in follows.items()},
            lambda path: path in structure.carried,
            keep_callbacks,
            lambda store, leaves, arrays, numbers: [(small, given)] if numbers.asks else [],
        )
        return Resized(analysis, structure, atoms, named)

    shrunk = walked(keep_callbacks=True)
    try:
        shrunk.refresh()
    except ValueError:  # a print that looks at single neurons is left out
        shrunk = walked(keep_callbacks=False)
        shrunk.refresh()
    return shrunk


def _full_state(leaf: Leaf, x: Shaped, structure: Structure) -> jax.ShapeDtypeStruct:
    """State at full size, for state at small size; axes without a group may have any size."""
    x = struct(x)
    if len(x.shape) != len(leaf.axes):
        raise ValueError(f"{leaf.path}: expected {len(leaf.axes)} axes, got shape {x.shape}")
    shape = []
    for axis, (e, n) in enumerate(zip(leaf.axes, x.shape, strict=True)):
        held = {*ex.atoms(e)}
        if held and n != ex.size(e, structure.widths):
            raise ValueError(
                f"{leaf.path}, axis {axis}: expected {ex.size(e, structure.widths)} at the widths "
                f"of the spec (spec.small_inputs gives the shapes), got shape {x.shape}"
            )
        shape.append(ex.size(e) if held else n)
    return jax.ShapeDtypeStruct(tuple(shape), x.dtype)


@dataclasses.dataclass
class Resized:
    """A walked function with small widths for some of its classes of axes.

    Attributes:
      analysis: of the function at full size.
      structure: whose widths these are.
      atoms: nodes of the structure's groups, by name.
      named: nodes of its pinned axes that number copies of neurons, by name.
      widths: by class of axes, the width where it is small.
      parts: small sizes of parts of axes, as asked for.
    """

    analysis: Analysis
    structure: Structure
    atoms: dict[str, int]
    named: dict[str, int] = dataclasses.field(default_factory=dict)
    widths: dict[int, int] = dataclasses.field(default_factory=dict)
    parts: dict[tuple[int, ...], list[int]] = dataclasses.field(default_factory=dict)

    def refresh(self) -> None:
        """Looks up the classes of the cut groups; refuses where the walk has changed one."""
        store, owner = self.analysis.store, dict[int, str]()
        store.number_by(self.atoms.values())
        for name, kept in self.structure.widths.items():
            node = self.atoms[name]
            root = store.find(node)
            if not isinstance(store.form(node), Free):
                reasons = "; ".join(store.reasons(node))
                self._refuse(name, f"pins or splits it ({reasons})" if reasons else "splits it")
            if root in owner:
                self._refuse(name, f"ties it to group {owner[root]}")
            owner[root] = name
            self.widths[root] = kept
        for name in self.atoms.keys() - self.structure.widths.keys():
            for root in store.classes(self.atoms[name]):
                if root in owner:
                    self._refuse(owner[root], f"ties it to group {name}, which is not cut")

    def _refuse(self, name: str, why: str) -> NoReturn:
        member = self.structure.group[name].members[0]
        remedy = "trace this function too and make the spec from graph1 & graph2"
        if FIXED_KEY in why:  # tracing it would lose the group that dropout leaves alone
            remedy = (
                "give the key with the call, not inside of the function: apply_small(params, x, "
                'key), or apply_small(params, x, rngs={"dropout": key}) of a linen module'
            )
        raise ValueError(
            f"the spec does not cover this function: it cuts group {name} (leaf {member.path}, "
            f"axis {member.axis}), but the function {why}; {remedy}"
        )

    def constants(self) -> Values:
        """Closed-over values, of calls too."""
        found, stack = [], [self.analysis.frame]
        while stack:
            frame = stack.pop()
            found += frame.constants
            stack += [inner for note in frame.notes.values() for inner in frames_of(note)]
        return found

    def size(self, node: int) -> int:
        """Small size of an axis."""
        return self.analysis.store.size_at(node, self.widths)

    def pieces(self, node: int, bounds: Sequence[int]) -> list[int]:
        """Small sizes of the parts between consecutive bounds of an axis."""
        key = (node, *bounds)
        if key not in self.parts:  # cutting makes nodes: once, not at every call
            self.parts[key] = self._pieces(node, bounds)
        return self.parts[key]

    def _pieces(self, node: int, bounds: Sequence[int]) -> list[int]:
        store = self.analysis.store
        sizes, done = [], 0
        for bound in bounds:
            left = store.size(node)
            if bound == done:
                sizes.append(0)
            elif bound - done == left:
                sizes.append(self.size(node))
                node = store.fresh(0)
            else:
                piece, node = store.cut(node, bound - done)
                sizes.append(self.size(piece))
            done = bound
        return [*sizes, self.size(node)]

    def __call__(self, leaves: Values, arrays: Values) -> PyTree:
        """Evaluates the function on small parameters."""
        outputs = self.evaluate(self.analysis.frame, [*leaves, *arrays])
        return jax.tree.unflatten(self.analysis.out_tree, outputs)

    def evaluate(self, frame: Frame, args: Values) -> Values:
        """Evaluates one frame on small values; its calls stay calls, whose rules evaluate them."""
        program = flatten(frame, [False] * len(args), calls=False)
        values = dict(zip(program.inputs, args, strict=True))
        for var, value in zip(compat.unpack(frame.jaxpr)[1], frame.constants, strict=True):
            number = program.numbers[id(frame), var]
            values[number] = self.constant(value, frame.axes[var])
        results = evaluate(program, values, apply=self.rebuild)
        return [results[n] for n in program.outputs]

    def rebuild(self, step: Step, operands: Values) -> Values:
        """Evaluates one equation on small values."""
        frame, store, equation = step.frame, self.analysis.store, step.equation
        assert frame is not None
        ins = [frame.read(v, store) for v in equation.invars]
        outs = [frame.read(v, store) for v in equation.outvars]
        evaluate = (self.evaluate, self.derive)
        resize = Resize(ins, outs, step.note, self.size, self.pieces, *evaluate, self.kept)
        results = rule_of(equation.primitive.name).rebuild(resize, equation, operands)
        for axes, value in zip(outs, results, strict=True):
            if jnp.shape(value) != resize.shape(axes):
                raise ValueError(
                    f"{equation.primitive.name} at {compat.source_line(equation)}: expected a "
                    f"result of shape {resize.shape(axes)}, got {jnp.shape(value)}; "
                    "this is a defect of ifjax, please report it"
                )
        return results

    def derive(
        self,
        jaxpr: AnyJaxpr,
        constants: Values,
        inputs: Sequence[Axes],
        outputs: Sequence[Axes],
        args: Values,
    ) -> tuple[Values, list[Axes], Derive]:
        """Evaluates the jaxpr of a derivative rule; see `Derive`."""
        store = self.analysis.store.copy()  # what the derivative couples is coupled there alone
        later = dataclasses.replace(
            self, analysis=dataclasses.replace(self.analysis, store=store), widths={}, parts={}
        )
        hoisted = () if compat.unpack(jaxpr)[1] else constants  # to the first inputs, in jax 0.12
        axes = [constant_axes(store, c) for c in hoisted]
        inner = constants[len(hoisted) :]
        frame, results = walk(Context(store, rule_of), jaxpr, [*axes, *inputs], inner)
        for found, known in zip(results, outputs, strict=False):
            for a, b in zip(found, known, strict=True):
                store.unify(a, b)
        find_numbers(frame, store, len(axes) + len(inputs)).note()
        later.refresh()
        values = later.evaluate(frame, [*map(later.constant, hoisted, axes), *args])
        return values, results, later.derive

    def constant(self, value: ArrayLike, axes: Axes) -> ArrayLike:
        """Slices a constant; within a class of neurons all its slices are equal."""
        for axis, node in enumerate(axes):
            small = self.size(node)
            if small != jnp.shape(value)[axis]:
                value = jnp.take(jnp.asarray(value), self.kept(node), axis)
        return value

    def kept(self, node: int) -> np.ndarray:
        """Positions of an axis that are left where every class keeps its first neurons."""
        expression = self.analysis.store.resolve(node, str)
        keep = {name: np.arange(self.size(int(name))) for name in ex.atoms(expression)}
        return np.asarray(axis_arrays.indices(expression, keep))
