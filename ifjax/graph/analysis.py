"""From a function and the shapes of its arguments to the axes of all its values."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import JaxprEqn
from jaxtyping import Array, PyTree

from ifjax.graph.facts.numbers import Numbers, find_numbers
from ifjax.graph.twin import Elsewhere, traced_at
from ifjax.jaxprs import compat
from ifjax.jaxprs.arguments import Arguments, is_key, struct
from ifjax.jaxprs.axis_store import AxisStore, Free
from ifjax.jaxprs.compat import AnyJaxpr
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.normal import normalised
from ifjax.jaxprs.rules import rule_of
from ifjax.jaxprs.walk import Axes, Context, Frame, Reason, walk
from ifjax.jaxprs.width_number import Followed
from ifjax.namespace import Shaped
from ifjax.structure import axis as ex
from ifjax.tree import named_leaves

FIXED_KEY = "random_bits: the random key is not an input (pass it as one, or as a keyword argument)"
Named = tuple[str, Shaped]  # path, and what lies there
LeafAxes = Callable[[AxisStore, str, jax.ShapeDtypeStruct], Axes]


@dataclasses.dataclass
class Analysis:
    """A walked function.

    Attributes:
      frame: axes of every variable.
      store: the axis store.
      leaves: axes of the parameter leaves, in the order of the tree.
      inputs: axes of the arrays among the inputs.
      out_tree: structure of the output.
      outputs: axes of the outputs.
      macs: axes whose sizes multiply to the work of each contraction.
      numbers: numbers that come from widths.
      draws: whose keys random numbers are drawn with: a ``"constant"`` one, a ``"leaf"``.
      chosen: classes of which single entries are chosen by value (experts that tokens go to).
    """

    frame: Frame
    store: AxisStore
    leaves: list[Axes]
    inputs: list[Axes]
    out_tree: Any
    outputs: list[Axes]
    macs: list[Axes]
    numbers: Numbers
    draws: frozenset[str] = frozenset()
    chosen: frozenset[int] = frozenset()

    @property
    def followed(self) -> list[Followed]:
        """The numbers that follow the widths."""
        return [followed for _, _, followed in self.numbers.followed]


def analyse(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    arguments: Arguments,
    static: Mapping[str, object],
    leaf_axes: LeafAxes,
    state_axes: Mapping[str, LeafAxes] = MappingProxyType({}),
    carried: Callable[[str], bool] = lambda path: False,
    keep_callbacks: bool = False,
    elsewhere: Elsewhere | None = None,
) -> Analysis:
    """Traces ``apply_fn`` at full size and walks its jaxpr.

    Args:
      apply_fn: ``apply_fn(params, *inputs, **static)``.
      params: tree of arrays or structs.
      arguments: the inputs.
      static: keyword arguments.
      leaf_axes: gives the axis nodes of a leaf.
      state_axes: gives those of the inputs that are state, by path ``inputs/...``.
      carried: whether an output, of path ``outputs/...``, is state.
      keep_callbacks: prints and other callbacks on the side are walked like the rest.
      elsewhere: other widths to trace the function at, where that tells about its numbers.

    Returns:
      The analysis, with inputs and outputs pinned, outputs that mirror a leaf tied to it, and state
      among the outputs to the state among the inputs that it replaces.
    """
    params = jax.tree.map(struct, params)

    def function(params: PyTree, *arrays: Array) -> PyTree:
        return arguments.call(apply_fn, params, arrays, static)

    structs = [struct(a) for a in arguments.arrays]
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(params, *structs)
    live = normalised(closed, keep_callbacks)
    store = AxisStore()
    named = named_leaves(params)
    leaves = [leaf_axes(store, path, x) for path, x in named]
    fixed: LeafAxes = lambda store, path, x: tuple(  # noqa: E731
        store.pinned(n, "an axis of the function's inputs") for n in x.shape
    )
    pairs = list(zip(arguments.paths, structs, strict=True))
    inputs = [state_axes.get(path, fixed)(store, path, x) for path, x in pairs]
    context = Context(store, rule_of)
    frame, outputs = walk(context, live, [*leaves, *inputs])
    _tie_unread(store, closed, frame, [*leaves, *inputs], len(leaves))
    keys = [is_key(x) for _, x in named]
    draws = _pin_fixed_randomness(frame, store, keys, len(inputs))
    tied = mirrored_objects(out_shape, params) | mirrors(out_shape, named)
    read = _read_inputs(frame.jaxpr)
    state = _carried_outputs(out_shape, carried)
    for i, j in _successors(state, [(p, x) for p, x in pairs if p in state_axes]):
        known = inputs[arguments.paths.index(j)]
        for a, b in zip(outputs[i], known, strict=True):
            store.unify(a, b)
    for i, axes in enumerate(outputs):
        if i in state:
            continue
        leaf = tied.get(i)
        if leaf is not None and leaf not in read:  # overwritten, not updated
            for a, b in zip(axes, leaves[leaf], strict=True):
                store.unify(a, b)
        elif leaf is None or [*map(store.find, axes)] != [*map(store.find, leaves[leaf])]:
            for a in axes:
                store.pin(a, "an axis of the function's outputs")
    numbers = find_numbers(frame, store, len(leaves) + len(inputs))
    alternatives = () if elsewhere is None else elsewhere(store, leaves, inputs, numbers)
    twins = traced_at(function, params, structs, alternatives, frame, keep_callbacks)
    if twins:
        numbers = find_numbers(frame, store, len(leaves) + len(inputs), twins)
    tree = jax.tree.structure(out_shape)
    numbers.note()
    known = (context.macs, numbers, draws, store.classes_of(context.chosen))
    return Analysis(frame, store, leaves, inputs, tree, outputs, *known)


def _tie_unread(
    store: AxisStore, closed: AnyJaxpr, frame: Frame, axes: Sequence[Axes], leaves: int
) -> None:
    """Leaves that only dead equations read follow the neurons that they meet there.

    The dead equations say so in a store of their own, where what else they tie or pin is forgotten.
    """
    everything = compat.unpack(closed)[0]
    unread = sorted(i for i in _read_inputs(everything) - _read_inputs(frame.jaxpr) if i < leaves)
    if not unread:
        return
    known = store.classes_of(n for i, a in enumerate(axes) if i not in unread for n in a)
    other = store.copy()
    walk(Context(other, rule_of), closed, axes)
    live = {str(other.find(root)): root for root in known if isinstance(other.form(root), Free)}
    for node in (node for i in unread for node in axes[i]):
        met = other.resolve(node, str)
        if not isinstance(met, ex.Pinned) and {*ex.atoms(met)} <= live.keys():
            store.unify(node, store.instantiate(met, live))


def _carried_outputs(out_shape: PyTree, carried: Callable[[str], bool]) -> dict[int, Named]:
    """Path and struct of the outputs that are state, by number."""
    named = [(f"outputs/{path}", x) for path, x in named_leaves(out_shape)]
    return {i: (path, x) for i, (path, x) in enumerate(named) if carried(path)}


def _successors(outputs: Mapping[int, Named], inputs: Sequence[Named]) -> list[tuple[int, str]]:
    """Which state among the outputs replaces which among the inputs.

    Of the same shape and dtype, the one whose path has the longest end in common; the first of
    several.
    """
    free, found = list(inputs), []
    for i, (path, x) in outputs.items():
        fit = [(p, s) for p, s in free if (s.shape, s.dtype) == (x.shape, x.dtype)]
        if fit:
            best = max(fit, key=lambda pair: _common_end(path, pair[0]))
            free.remove(best)
            found.append((i, best[0]))
    return found


def _common_end(a: str, b: str) -> int:
    pairs = zip(reversed(a.split("/")), reversed(b.split("/")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _pin_fixed_randomness(
    frame: Frame, store: AxisStore, keys: Sequence[bool], inputs: int
) -> frozenset[str]:
    """Pins draws whose key nobody gives: a fixed projection is a constant, another at every index.

    Draws from a key that is an input or a leaf (dropout) have no neuron of their own and follow the
    widths; so do those from a key that an outer function traces. Returns whose keys are drawn with.
    """
    drawn, nobody, traced = set[str](), frozenset[str](), frozenset({"traced"})

    def transfer(
        equation: JaxprEqn, ins: list[Axes], outs: list[Axes], values: list[frozenset[str]]
    ) -> list[frozenset[str]]:
        del ins
        sources = nobody.union(*values)
        if equation.primitive.name == "random_bits":
            drawn.update(sources or {"constant"})
            for node in () if sources else outs[0]:
                store.pin(node, Reason(FIXED_KEY, (equation,)))
        return [sources for _ in outs]

    given = [frozenset({"leaf"} if is_one else ()) for is_one in keys]
    given += [frozenset({"input"}) for _ in range(inputs)]
    control = Control(lambda values, _: nobody.union(*values) if all(values) else nobody)
    constant = lambda x: traced if isinstance(x, Tracer) else nobody  # noqa: E731
    interpret(frame, store, given, transfer, constant, control=control)
    return frozenset(drawn)


def mirrors(out_shape: PyTree, leaves: Sequence[Named]) -> dict[int, int]:
    """Outputs that are updated leaves, by the end of their path and their shape and dtype.

    An output mirrors a leaf where its path ends in the leaf's whole path, or in at least the last
    two keys that remain of it without the collection (``batch_stats``). Positions in tuples and
    lists name nothing: paths of numbers alone do not count.
    """
    index: dict[tuple[str, ...], int] = {}
    for i, (path, _) in enumerate(leaves):
        keys = tuple(path.split("/"))
        if all(not key or key.isdigit() for key in keys):
            continue
        index[keys] = i
        if len(keys) > 2:
            index.setdefault(keys[1:], i)
    found = {}
    for i, (path, x) in enumerate(named_leaves(out_shape)):
        keys = tuple(path.split("/"))
        for start in range(len(keys)):
            leaf = index.get(keys[start:])
            if leaf is not None:
                if leaves[leaf][1].shape == x.shape and leaves[leaf][1].dtype == x.dtype:
                    found[i] = leaf
                break
    return found


def mirrored_objects(out_shape: PyTree, params: PyTree) -> dict[int, int]:
    """Outputs that are updated leaves of an object without names, such as the `State` of equinox.

    An object of a class of its own mirrors the only one of the same class, structure and shapes.
    """
    found, known = dict[int, int](), _objects(params)
    for described, numbers in _objects(out_shape).items():
        if len(numbers) == 1 == len(known.get(described, ())):
            found.update(zip(numbers[0], known[described][0], strict=True))
    return found


def _objects(tree: PyTree) -> dict[Hashable, list[range]]:
    """The numbers of the leaves of every node that is no plain container, by its structure."""
    found: dict[Hashable, list[range]] = {}

    def visit(node: PyTree, first: int) -> None:
        leaves, structure = jax.tree.flatten(node)
        if not leaves or jax.tree_util.all_leaves([node]):
            return
        if type(node) not in (tuple, list, dict):
            described = (structure, tuple((x.shape, str(x.dtype)) for x in leaves))
            found.setdefault(described, []).append(range(first, first + len(leaves)))
        for child in jax.tree.leaves(node, is_leaf=lambda x: x is not node):
            visit(child, first)
            first += len(jax.tree.leaves(child))

    visit(tree, 0)
    return found


def _read_inputs(jaxpr: AnyJaxpr) -> set[int]:
    """Numbers of the inputs that an equation or an output reads."""
    variables = [v for equation in jaxpr.eqns for v in equation.invars]
    seen = {id(v) for v in (*variables, *jaxpr.outvars)}
    return {i for i, v in enumerate(jaxpr.invars) if id(v) in seen}
