"""A function with biases of its own where its contractions have none: `with_biases`."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array, PyTree

from ifjax.graph.facts.sites import Site, Sites, find_sites
from ifjax.graph.facts.views import views_of
from ifjax.jaxprs import compat
from ifjax.jaxprs.arguments import Arguments, check_order, struct
from ifjax.jaxprs.compat import Values
from ifjax.jaxprs.evaluate import bind, evaluate
from ifjax.jaxprs.program import Program, Step, flatten
from ifjax.jaxprs.traits import contraction_of
from ifjax.jaxprs.walk import loop_parts
from ifjax.promotion import with_promotion
from ifjax.tree import named_leaves

PLAIN = ("jit", "pjit", "closed_call", "core_call")  # calls that are nothing but their equations
REMAT = ("remat", "remat2", "checkpoint")


@with_promotion
def with_biases(
    apply_fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    include: str | Sequence[str] | None = None,
    **static: Any,
) -> tuple[Callable[..., Any], dict[str, Any]]:
    r"""The same function with a bias, zero so far, behind every weight that has none.

    What a solve of `ifjax.compress` leaves over on average, as what neurons that are gone gave,
    goes into a bias or offset behind the weights. Where a function has none there it is lost: this
    adds one, a new leaf of the parameters. The function is then one like any other: trace it,
    compress it, shrink, save and train it.

    A weight has a bias where the path behind it, as far as it is affine, adds a parameter of as
    many entries as the weight has outputs; weights whose results meet at an add have it together.
    A weight that loops go over has one for each turn; its name is that of the leaf that holds the
    kernel, whatever scales it. None get

    * weights inside of branches, ``while`` loops and functions with derivatives of their own;
    * leaves that are read in parts, such as queries, keys and values of one leaf, or stacked layers
      that are read as ``W[i]`` one by one, or that several loops go over differently;
    * leaves whose products differ in shape, and weights of integers.

    Args:
      apply_fn: ``apply_fn(params, *inputs, **static)``, written with any framework.
      params: its parameters.
      *inputs: example inputs; structs do.
      include: globs of the paths of weights; None for all.
      **static: keyword arguments of ``apply_fn``, not traced.

    Returns:
      The function ``apply_biased(biased, *inputs, **static)``, and its parameters: ``{"params":
      params, "biases": {path of the weight: zeros}}``.

    Raises:
      ValueError: where a glob is of no weight that lacks a bias; from ``apply_biased`` for a bias
        of another shape than what its weight gives, or of what is no weight that lacks one.

    Example:
      >>> params = {"w1": jnp.ones((4, 8)), "b1": jnp.ones(8), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"]
      >>> apply_biased, biased = with_biases(apply, params, jnp.ones((1, 4)))
      >>> jax.tree.map(jnp.shape, biased["biases"])
      {'w2': (2,)}
      >>> float(apply_biased(biased, jnp.ones((1, 4)))[0, 0])
      40.0
    """
    check_order("with_biases(apply_fn, params, *inputs)", apply_fn, params)
    level = _traced(apply_fn, params, Arguments.split(inputs, static), static)
    lacking = level.shapes
    if include is not None:
        globs = [include] if isinstance(include, str) else list(include)
        for glob in globs:
            if not any(fnmatch.fnmatchcase(path, glob) for path in lacking):
                every = ", ".join(sorted(lacking)) or "none does"
                raise ValueError(f"{glob!r}: of no weight that lacks a bias; these do: {every}")
        lacking = {
            path: x
            for path, x in lacking.items()
            if any(fnmatch.fnmatchcase(path, glob) for glob in globs)
        }
    biases = {path: jnp.zeros(x.shape, x.dtype) for path, x in lacking.items()}

    @functools.wraps(apply_fn, updated=())
    def apply_biased(params: Mapping[str, Any], *inputs: Any, **static: Any) -> Any:
        arguments = Arguments.split(inputs, static)
        level = _traced(apply_fn, params["params"], arguments, static)
        values = [*jax.tree.leaves(params["params"]), *arguments.arrays]
        own = _checked(level, params["biases"])
        return jax.tree.unflatten(level.tree, _evaluated(level, values, own))

    return apply_biased, {"params": params, "biases": biases}


def _checked(level: _Level, biases: Mapping[str, Any]) -> dict[str, Any]:
    """The biases of weights that the function reads; raises for those of anything else."""
    shapes, program = level.shapes, level.program
    unread = {path for n, path in level.paths.items() if not program.uses[n]}
    own = {path: x for path, x in biases.items() if path not in unread}
    for path, x in own.items():
        if path not in shapes:
            exists = path in level.paths.values()
            which = "has one, or can have none" if exists else "does not exist"
            every = ", ".join(sorted(shapes)) or "none does"
            raise ValueError(
                f"biases/{path}: expected the path of a weight that lacks a bias, got one that "
                f"{which}; these lack one: {every}"
            )
        if jnp.shape(x) != shapes[path].shape:
            expected = f"{shapes[path].shape}, as its weight gives"
            raise ValueError(f"biases/{path}: expected shape {expected}, got {jnp.shape(x)}")
    return own


@dataclasses.dataclass(frozen=True)
class _Bias:
    """A bias that is missing.

    Attributes:
      struct: of the bias, of one turn of the level.
      turns: whether its kernel is another one at every turn of the level.
      over: numbers of the values that loops go over, at this level.
    """

    struct: jax.ShapeDtypeStruct
    turns: bool
    over: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Level:
    """The equations of a function, or of the body of a loop.

    Attributes:
      program: the equations.
      structs: of its inputs.
      paths: of the leaves that its inputs are, by number; of data none.
      sliced: numbers of the inputs that a loop goes over.
      sites: where there may be biases.
      inner: by `id` of a step, what is inside of a loop.
      tree: of the outputs of a whole function.
    """

    program: Program
    structs: tuple[jax.ShapeDtypeStruct, ...]
    paths: Mapping[int, str]
    sliced: frozenset[int]
    sites: Sites
    inner: Mapping[int, _Level]
    tree: Any = None

    @functools.cached_property
    def places(self) -> dict[int, tuple[str, Site]]:
        """By `id` of a contraction that lacks a bias, its path and the site."""
        found = dict[int, tuple[str, Site]]()
        units = (*self.sites.units, *(u for units in self.sites.tied for u in units))
        for unit in sorted(units, key=lambda unit: unit.stop):
            first = unit.sites[0]
            path = self.paths.get(first.leaves[0], "")
            biased = first.step.equation.primitive.name in ("dot_general", "conv_general_dilated")
            dtype = compat.dtype_of(first.step.equation.outvars[0])
            if not (path and biased and jnp.issubdtype(dtype, jnp.inexact)):
                continue
            if not any(_is_shifted(self, site) for site in unit.sites):
                found[id(first.step)] = path, first
        return found

    @functools.cached_property
    def lacking(self) -> dict[str, _Bias | None]:
        """Biases that are missing, by path; None where there would have to be several."""
        found = dict[str, _Bias | None]()

        def note(path: str, bias: _Bias | None) -> None:
            found[path] = bias if found.get(path, bias) == bias else None

        for path, site in self.places.values():
            leaf, dtype = site.leaves[0], compat.dtype_of(site.step.equation.outvars[0])
            turns = leaf in self.sliced
            struct = jax.ShapeDtypeStruct(_outputs(site.step), dtype)
            note(path, _Bias(struct, turns, (leaf,) if turns else ()))
        for step in self.program.steps:
            inside = self.inner[id(step)].lacking if id(step) in self.inner else {}
            for path, bias in inside.items():
                note(path, bias and self._around(step, path, bias))
        return found

    def _around(self, step: Step, path: str, bias: _Bias) -> _Bias | None:
        """What a bias inside of a loop is outside of it."""
        leaves = {n: _leaf(self.program, n) for n in step.inputs}
        made = {n: leaf for n, leaf in leaves.items() if self.paths.get(leaf) == path}
        turns = {leaf in self.sliced for leaf in made.values()}
        shape, over = bias.struct.shape, tuple(n for n in made if bias.turns or any(turns))
        if bias.turns:
            shape = (step.equation.params["length"], *shape)
        if len(turns) != 1:
            return None
        return _Bias(jax.ShapeDtypeStruct(shape, bias.struct.dtype), turns.pop(), over)

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the biases of a whole function."""
        return {path: bias.struct for path, bias in self.lacking.items() if bias is not None}


def _traced(
    apply_fn: Callable[..., Any], params: PyTree, arguments: Arguments, static: Mapping[str, Any]
) -> _Level:
    """The equations of a function."""

    def function(params: Any, *arrays: Any) -> Any:
        return arguments.call(apply_fn, params, arrays, static)

    structs = jax.tree.map(struct, params), *map(struct, arguments.arrays)
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*structs)
    paths = [path for path, _ in named_leaves(params)]
    data = [False] * len(paths) + [True] * len(arguments.arrays)
    named = [*paths, *("" for _ in arguments.arrays)]
    level = _level(closed, data, named, ())
    return dataclasses.replace(level, tree=jax.tree.structure(shape))


def _level(jaxpr: Any, data: list[bool], paths: Sequence[str], sliced: Sequence[int]) -> _Level:
    """The equations of a jaxpr, whose inputs are data or made of leaves with these paths."""
    program = flatten(jaxpr, data, calls=lambda e: e.primitive.name in PLAIN)
    sites = find_sites(program)
    structs = tuple(map(compat.struct_of, compat.unpack(jaxpr)[0].invars))
    named = {n: path for n, path in zip(program.inputs, paths, strict=True) if path}
    inner = dict[int, _Level]()
    for step in program.steps:
        name = step.equation.primitive.name
        if name in ("scan", *REMAT):
            around, turning = list(step.data), []
            if name == "scan":
                constants, carries = compat.scan_counts(step.equation)
                around[constants : constants + carries] = [True] * carries
                turning = [*range(constants + carries, len(around))]
            pairs = zip(step.inputs, around, strict=True)
            made = ["" if d else named.get(_leaf(program, n), "") for n, d in pairs]
            inner[id(step)] = _level(step.equation.params["jaxpr"], around, made, turning)
    goes_over = frozenset(program.inputs[i] for i in sliced)
    return _Level(program, structs, named, goes_over, sites, inner)


def _leaf(program: Program, number: int) -> int:
    """The input whose entries are those of a value of parameters, all of them; else -1."""
    views = views_of(program, number, spread=False)
    if isinstance(views, str) or len(views) != 1:
        return -1
    [view] = views
    cut = (program.steps[place].equation.primitive.name == "slice" for place, _ in view.spine)
    return -1 if any(cut) else view.leaf


def _is_shifted(level: _Level, site: Site) -> bool:
    """Whether a leaf with an entry for every output is added on a site's path."""
    program = level.program
    for place, k in site.path:
        step = program.steps[place]
        if step.equation.primitive.name not in ("add", "add_any") or step.data[1 - k]:
            continue
        found = views_of(program, step.inputs[1 - k], spread=True)
        if not isinstance(found, str):
            leaves = (level.structs[program.inputs.index(view.leaf)] for view in found)
            if sum(x.size for x in leaves) == math.prod(_outputs(site.step)):
                return True
    return False


def _outputs(step: Step) -> tuple[int, ...]:
    """The shape of a bias: products side by side, and what the weight gives for each."""
    return tuple(_size(step.equation, axis) for axis in _weight_axes(step))


def _weight_axes(step: Step) -> list[int]:
    """The axes of a contraction's result that a bias has too."""
    equation = step.equation
    if equation.primitive.name == "conv_general_dilated":
        return [equation.params["dimension_numbers"].out_spec[1]]
    axes, side = contraction_of(equation), step.data[:2].index(True)
    batch, first = len(axes.batch[0]), len(axes.free[0])
    whole = batch + first + len(axes.free[1])
    own = range(batch + first, whole) if side == 0 else range(batch, batch + first)
    return [*range(batch), *own]


def _size(equation: JaxprEqn, axis: int) -> int:
    return compat.shape_of(equation.outvars[0])[axis]


def _evaluated(level: _Level, values: Values, biases: Mapping[str, Any]) -> list[Any]:
    """The outputs of a level, with biases by the path of the weight."""

    def apply(step: Step, operands: Values) -> Values:
        if id(step) in level.places:
            path, _ = level.places[id(step)]
            results = bind(step, operands)
            return _shifted(step, results, biases[path]) if path in biases else results
        if id(step) not in level.inner:
            return bind(step, operands)
        inner = level.inner[id(step)]
        own = {path: biases[path] for path in inner.lacking if path in biases}
        if not own:
            return bind(step, operands)
        if step.equation.primitive.name == "scan":
            return _turns(step, operands, inner, own)
        p = step.equation.params
        again = jax.checkpoint(
            functools.partial(_evaluated, inner), prevent_cse=p["prevent_cse"], policy=p["policy"]
        )
        return again(list(operands), own)

    program = level.program
    known = evaluate(program, dict(zip(program.inputs, values, strict=True)), apply=apply)
    return [known[n] for n in program.outputs]


def _shifted(step: Step, results: Values, bias: Any) -> Values:
    """The results of a contraction, with a bias."""
    y, axes = jnp.asarray(results[0]), _weight_axes(step)
    shape = [n if axis in axes else 1 for axis, n in enumerate(y.shape)]
    return [y + jnp.reshape(bias, shape).astype(y.dtype)]


def _turns(step: Step, operands: Values, inner: _Level, biases: Mapping[str, Any]) -> list[Any]:
    """A scan, over biases too."""
    p = step.equation.params
    counts = compat.scan_counts(step.equation)
    parts: list[Any] = loop_parts((0, *counts), operands)
    _, constants, carries, stacked = parts
    turning = {path for path, bias in inner.lacking.items() if bias is not None and bias.turns}
    sliced = {path: x for path, x in biases.items() if path in turning}
    fixed = {path: x for path, x in biases.items() if path not in sliced}

    def turn(carries: list[Array], slices: tuple[list[Array], dict[str, Array]]) -> Any:
        xs, own = slices
        found = _evaluated(inner, [*constants, *carries, *xs], {**fixed, **own})
        return found[: counts[1]], found[counts[1] :]

    last, rows = jax.lax.scan(
        turn,
        carries,
        (stacked, sliced),
        p["length"],
        reverse=p["reverse"],
        unroll=p["unroll"],
    )
    return [*last, *rows]
