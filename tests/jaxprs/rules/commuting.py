"""The law of one rule: permuting a free axis commutes with the function, and so does cutting it."""

from __future__ import annotations

import itertools
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ifjax.graph.analysis import Analysis
from ifjax.graph.facts.numbers import Numbers
from ifjax.graph.resized import Resized
from ifjax.jaxprs import compat
from ifjax.jaxprs.arguments import struct
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.rules import rule_of
from ifjax.jaxprs.walk import Axes, Context, frames_of, walk
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.structure import Structure
from tests.graph.laws import kept, shuffled

TOLERANCE = 1e-9


class Walked:
    """A function of arrays, walked with all axes of its arguments free."""

    def __init__(self, f: Any, *args: Any, integers: bool = False) -> None:
        self.args = [jnp.asarray(a) for a in args]
        self.function = jax.jit(lambda *args: jax.tree.leaves(f(*args)))
        closed = jax.make_jaxpr(lambda *args: jax.tree.leaves(f(*args)))(*map(struct, self.args))
        self.store = AxisStore()
        self.inputs: list[Axes] = [tuple(map(self.store.fresh, a.shape)) for a in self.args]
        for a, axes in zip(self.args, self.inputs, strict=True):
            if not (integers or jnp.issubdtype(a.dtype, jnp.inexact)):
                for node in axes:
                    self.store.pin(node, "an index")
        context = Context(self.store, rule_of)
        self.frame, self.outputs = walk(context, closed, self.inputs)
        numbers = Numbers([], [], frozenset(), frozenset())
        self.analysis = Analysis(
            self.frame, self.store, [], self.inputs, None, self.outputs, [], numbers
        )

    def primitives(self) -> set[str]:
        """Names of all primitives that were walked through."""
        found, stack = set(), [self.frame]
        while stack:
            frame = stack.pop()
            found |= {e.primitive.name for e in compat.unpack(frame.jaxpr)[0].eqns}
            stack += [inner for note in frame.notes.values() for inner in frames_of(note)]
        return found

    def classes(self) -> dict[str, int]:
        """Sizes of the free classes on any argument."""
        nodes = [node for axes in self.inputs for node in axes]
        roots = [root for node in nodes for root in self.store.classes(node)]
        return {str(root): self.store.size(root) for root in roots}

    def expressions(self, arrays: list[Axes]) -> list[list[ex.Expression]]:
        return [[self.store.resolve(node, str) for node in axes] for axes in arrays]

    def signature(self) -> str:
        """Axes as text: a letter per class, a dot where pinned, products, sums, ~ if reordered."""
        names: dict[str, str] = {}
        letters = iter(string.ascii_letters)

        def text(e: ex.Expression) -> str:
            match e:
                case ex.Pinned(n):
                    return "1" if n == 1 else "."
                case ex.Atom(name, _):
                    if name not in names:
                        names[name] = next(letters)
                    return names[name]
                case ex.Product(parts):
                    return "(" + "*".join(map(text, parts)) + ")"
                case ex.Sum(parts):
                    return "(" + "+".join(map(text, parts)) + ")"
                case ex.Ordered(inside, _):
                    return text(inside) + "~"
            raise AssertionError

        def side(arrays: list[Axes]) -> str:
            return " ".join("".join(map(text, axes)) or "-" for axes in self.expressions(arrays))

        return f"{side(self.inputs)} > {side(self.outputs)}"

    def indexed(self, arrays: Any, axes: list[Axes], selections: Any) -> list[Any]:
        """Arrays with positions of their classes selected."""
        result = []
        for x, along in zip(map(np.asarray, arrays), self.expressions(axes), strict=True):
            for i, e in enumerate(along):
                x = np.take(x, np.asarray(axis_arrays.indices(e, selections)), i)
            result.append(x)
        return result

    def zeroed(self, selections: Any) -> list[Any]:
        """Arguments with zeros in the positions that are not selected."""
        result = []
        for x, along in zip(map(np.asarray, self.args), self.expressions(self.inputs), strict=True):
            for i, e in enumerate(along):
                mask = np.zeros(x.shape[i], bool)
                mask[np.asarray(axis_arrays.indices(e, selections))] = True
                shape = [-1 if k == i else 1 for k in range(x.ndim)]
                x = np.where(mask.reshape(shape), x, np.zeros((), x.dtype))
            result.append(x)
        return result

    def small(self, choices: list[Any]) -> list[list[Any]]:
        """The function rebuilt at the widths of some selections, of the selected arguments.

        In one program: to compile several takes longer.
        """
        none = Structure((), (), (), ())
        widths = [{int(name): len(k) for name, k in one.items()} for one in choices]
        shrunk = [Resized(self.analysis, none, atoms={}, widths=one) for one in widths]
        given = [self.indexed(self.args, self.inputs, one) for one in choices]
        pairs = lambda all: zip(shrunk, all, strict=True)  # noqa: E731
        return jax.jit(lambda all: [s.evaluate(self.frame, x) for s, x in pairs(all)])(given)


def agree(a: list[Any], b: list[Any]) -> bool:
    """Whether all arrays are equal, but for rounding."""
    for x, y in itertools.zip_longest(map(np.asarray, a), map(np.asarray, b)):
        if x.shape != y.shape or not np.allclose(x, y, TOLERANCE, TOLERANCE, equal_nan=True):
            return False
    return True


def commute(
    f: Any,
    *args: Any,
    signature: str | None = None,
    cut: bool = True,
    integers: bool = False,
) -> Walked:
    """Asserts the laws of a rule for every free class of the arguments of a function.

    * ``signature`` says which axes are free, and where they are in the results.
    * Permuting a class in the arguments permutes it in the results.
    * The function rebuilt at a smaller width gives what it gives for arguments in which the other
      positions are zero (``cut``). All classes are cut, one by one and at once.
    """
    with jax.enable_x64(True):
        walked = Walked(f, *args, integers=integers)
        if signature is not None:
            assert walked.signature() == signature
        classes = walked.classes()
        full = walked.function(*walked.args)
        for name, n in classes.items():
            order = {name: shuffled(n)}
            got = walked.function(*walked.indexed(walked.args, walked.inputs, order))
            assert agree(got, walked.indexed(full, walked.outputs, order)), (name, n)
        choices = [{name: kept(n)} for name, n in classes.items()]
        choices += [{name: kept(n) for name, n in classes.items()}] * (len(classes) > 1)
        for selection, small in zip(choices, choices and walked.small(choices), strict=True):
            want = walked.function(*walked.zeroed(selection))
            want = walked.indexed(want, walked.outputs, selection)
            assert [x.shape for x in small] == [x.shape for x in want]
            if cut:
                assert agree(small, want), selection
    return walked
