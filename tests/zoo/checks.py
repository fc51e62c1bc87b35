"""Everything that must hold for a model and every group of it, in float64."""

from __future__ import annotations

import dataclasses
import math
import re
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ifjax
from ifjax.graph.analysis import mirrors
from ifjax.jaxprs.arguments import Arguments, path_name
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.tree import leaves_by_path, with_leaves
from tests.graph.laws import independent, kept, shuffled, zeroed
from tests.zoo.model import Model

POWER = 1e-3  # what cutting must at least change, relative alike
BOUNDARY = ("an axis of the function's inputs", "an axis of the function's outputs")


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found of one model.

    Attributes:
      groups: how many.
      free: those that are cut only when named.
      permutation: largest relative change of the output under a permutation of any group; None
        with a state, which `verify` permutes instead.
      exact: groups that zeroing was compared with.
      unverified: members, of several in their group, whose permutation alone does not move the
        output.
      weights: number of parameters.
      prunable: share of them along whose axes a group lies that is known to be neurons or heads.
      pinned: axes that cannot be cut, by reason, the function's own inputs and outputs left out.
      failures: what does not hold.
    """

    groups: int
    free: tuple[str, ...]
    permutation: float | None
    exact: int
    unverified: tuple[str, ...]
    weights: int
    prunable: float
    pinned: dict[str, list[str]]
    failures: tuple[str, ...]


def generic(params: Any) -> Any:
    """Float64 values in general position: kernels scaled by fan-in, vectors positive."""
    rng = np.random.default_rng(0)

    def draw(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
        size = rng.uniform(0.5, 1.5, x.shape)
        if sum(n > 1 for n in x.shape) < 2:
            return jnp.asarray(size)
        fan = math.prod(x.shape[:-1])
        return jnp.asarray(size * rng.choice([-1.0, 1.0], x.shape) / math.sqrt(fan))

    return jax.tree.map(draw, params)


def check(model: Model) -> Report:
    """Traces a model and tries every law on it.

    * A permutation of any group leaves the output unchanged, also one of its own for every entry of
      its batch; what mirrors the parameters (batch statistics) is permuted alike.
    * Every member moves the output if permuted alone, but for the silent ones.
    * `take` and `shrink` equal zeroing on the exact groups; and the function itself at the small
      parameters, where it reads its widths off them.
    * The small function gives the same for the rows of a larger batch.
    """
    with jax.enable_x64(True):
        subject = _Subject(model)
        graph = subject.graph
        permutation = None if model.state else subject.permute()
        unverified = subject.verify()
        try:
            subject.cut()
        except ValueError as error:
            subject.failures.append(f"shrink: {error}")
        known = {g.name: 0 for g in graph.groups if g.kind != "free"}
        total, left = graph.structure.weights({}), graph.structure.weights(known)
        return Report(
            groups=len(graph.groups),
            free=tuple(g.name for g in graph.groups if g.kind == "free"),
            permutation=permutation,
            exact=sum(g.exact for g in graph.groups),
            unverified=unverified,
            weights=total,
            prunable=1 - left / total,
            pinned=_reasons(graph),
            failures=tuple(subject.failures),
        )


class _Subject:
    """A model, its graph, its parameters in general position, and what was found wrong."""

    def __init__(self, model: Model) -> None:
        self.model, self.failures = model, list[str]()
        self.f, params, self.inputs = model.build(2)
        self.params = generic(params)
        self.run = jax.jit(self.f)
        self.graph = ifjax.trace(self.f, self.params, *self.inputs, state=model.state)
        self.full = self.output(self.params)
        named = [(path_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(self.params)]
        shapes = jax.eval_shape(self.f, self.params, *self.inputs)
        self.mirrored = {i: named[leaf][0] for i, leaf in mirrors(shapes, named).items()}
        carried = self.graph.structure.carried
        outputs = enumerate(jax.tree_util.tree_leaves_with_path(shapes))
        self.following = {*self.mirrored}
        self.following |= {i for i, (p, _) in outputs if f"outputs/{path_name(p)}" in carried}
        if not np.isfinite(_size(self.full)):
            self.failures.append("the output is not finite")

    def output(self, params: Any) -> list[Any]:
        return jax.tree.leaves(self.run(params, *self.inputs))

    def compare(self, what: str, got: list[Any], want: list[Any]) -> None:
        change = _distance(got, want, skip=self.following)
        if not change < self.model.tolerance:
            self.failures.append(f"{what} differs by {change:.2g}")

    def permute(self) -> float:
        """The largest change under a permutation of any group."""
        worst = 0.0
        for group in self.graph.groups:
            for order in [shuffled(group.size)] + ([independent(group)] if group.batch else []):
                turned = self.output(ifjax.take(self.params, self.graph, {group.name: order}))
                change = _distance(turned, self._turned(group.name, order))
                worst = max(worst, change)
                if not change < self.model.tolerance:
                    self.failures.append(
                        f"{group.name}: a permutation moves the output by {change:.2g}"
                    )
        return worst

    def _turned(self, name: str, order: np.ndarray) -> list[Any]:
        """The outputs, with those that mirror parameters permuted as these are."""
        statistics = {path: self.full[i] for i, path in self.mirrored.items()}
        tree = with_leaves(self.params, leaves_by_path(self.params) | statistics)
        turned = leaves_by_path(ifjax.take(tree, self.graph, {name: order}))
        return [
            turned[self.mirrored[i]] if i in self.mirrored else x for i, x in enumerate(self.full)
        ]

    def verify(self) -> tuple[str, ...]:
        """Members, of several in their group, that do not move the output alone."""
        result = self.graph.verify(self.f, self.params, *self.inputs, throw=False)
        if not result.ok:
            wrong = {n: c for n, c in result.changes.items() if not c <= result.limit}
            self.failures.append(f"verify: {wrong}")
        alone = {g.name for g in self.graph.groups if len(g.members) == 1}  # all of the group
        unverified = tuple(m for m in result.unverified if m.rsplit(": ", 1)[0] not in alone)
        for member in unverified:
            if not any(fnmatchcase(member, glob) for glob in self.model.silent):
                self.failures.append(f"no power: {member}")
        return unverified

    def cut(self) -> None:
        """Cuts all exact groups, then all groups, and compares."""
        graph, model, small_output = self.graph, self.model, list[Any]()
        names, exact = [g.name for g in graph.groups], [g.name for g in graph.groups if g.exact]
        if exact:
            shrunk, small, selection = self._shrunk(exact)
            small_output = jax.tree.leaves(shrunk(small, *_chosen(graph, self.inputs, selection)))
            zero = zeroed(self.params, graph, selection)
            given = _chosen(graph, self.inputs, selection, zero=True)
            want = jax.tree.leaves(self.run(zero, *given))
            self.compare("shrinking the exact groups, from zeroing,", small_output, want)
            if not _distance(want, self.full, skip=self.following) > POWER:
                self.failures.append("zeroing half of the neurons does not move the output")
        if not names:
            return
        shrunk, small, selection = self._shrunk(names)
        given = _chosen(graph, self.inputs, selection)
        if names != exact:
            small_output = jax.tree.leaves(shrunk(small, *given))
        if not np.isfinite(_size(small_output)):
            self.failures.append("the small function is not finite")
        if model.reads_widths:
            direct = jax.tree.leaves(jax.jit(self.f)(small, *given))
            self.compare("shrink, from the function at small parameters,", small_output, direct)
        larger = jax.tree.leaves(shrunk(small, *_chosen(graph, model.build(3)[2], selection)))
        if model.rows:
            self.compare("a larger batch", _first_rows(larger, small_output), small_output)

    def _shrunk(self, names: list[str]) -> tuple[Any, Any, dict[str, np.ndarray]]:
        """The function with half of some groups' neurons, its parameters, and which neurons."""
        selection = {n: kept(self.graph.structure.group[n].size) for n in names}
        spec = self.graph.spec(keep={n: len(k) for n, k in selection.items()})
        small = ifjax.take(self.params, self.graph, selection)
        return jax.jit(ifjax.shrink(self.f, spec)), small, selection


def _chosen(
    graph: Any, inputs: tuple[Any, ...], selection: dict[str, Any], zero: bool = False
) -> tuple[Any, ...]:
    """The inputs with what is state cut to a selection, or zero outside of it."""
    arguments, state = Arguments.split(inputs), {s.path: s.axes for s in graph.structure.state}
    arrays = []
    for path, x in zip(arguments.paths, arguments.arrays, strict=True):
        for axis, e in enumerate(state.get(path, ())):
            if not any(n in selection for n in ex.atoms(e)):
                continue
            index = np.asarray(axis_arrays.indices(e, selection))
            if zero:
                keep = np.zeros(x.shape[axis])
                keep[index] = 1
                x = x * keep.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
            else:
                x = jnp.take(x, index, axis)
        arrays.append(x)
    return tuple(arguments.join(arrays))


def _distance(a: list[Any], b: list[Any], skip: Any = ()) -> float:
    """Largest difference of two outputs, relative to the largest entry; NaN counts as infinite."""
    worst = 0.0
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        if i not in skip and not jnp.issubdtype(x.dtype, jax.dtypes.extended):
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            change = np.abs(x - y).max(initial=0) / max(1.0, np.abs(y).max(initial=0))
            worst = max(worst, float(np.nan_to_num(change, nan=np.inf)))
    return worst


def _size(values: list[Any]) -> float:
    return _distance(values, [np.zeros(x.shape) for x in values])


def _first_rows(larger: list[Any], like: list[Any]) -> list[Any]:
    return [x[tuple(slice(n) for n in y.shape)] for x, y in zip(larger, like, strict=True)]


def _reasons(graph: Any) -> dict[str, list[str]]:
    """Axes by why they are pinned, without the source lines."""
    found: dict[str, list[str]] = {}
    for p in graph.pinned:
        reason = re.sub(r" at \S+:\d+:?\d*( \(.*\))?", "", p.reason)
        if p.size > 1 and reason not in BOUNDARY:
            found.setdefault(reason, []).append(f"{p.path}[{p.axis}]")
    return found
