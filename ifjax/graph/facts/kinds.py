"""What a class of neurons is: plain neurons, attention heads, their dimensions, or neither."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

from jax.extend.core import JaxprEqn

from ifjax.graph.facts.origins import NOTHING, Origins
from ifjax.graph.facts.roles import is_depthwise
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.traits import contraction_of, traits_of
from ifjax.jaxprs.walk import Axes, Frame
from ifjax.structure import axis as ex
from ifjax.structure.structure import Kind

SOFT = {"exp", "exp2", "logistic"}
COMPARING = {"mul", "sub"}


@dataclasses.dataclass(frozen=True)
class Products:
    """How classes take part in products of activations with activations (attention).

    Attributes:
      batching: classes that number independent products: attention heads, and the queries that
        share a key head.
      contracted: classes that such a product is summed over: the dimension of queries and keys.
      carried: other classes along a product that heads batch: the dimension of values.
      own: classes that number independent products with parameters, each with several outputs of
        its own, or what a softmax weighs entry by entry (experts).
      itself: classes by which a value is compared with itself: norms and Gram matrices.
    """

    batching: frozenset[int]
    contracted: frozenset[int]
    carried: frozenset[int]
    own: frozenset[int]
    itself: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of a value.

    Attributes:
      origin: the features it is made from, see `Origins`; `NOTHING` of what holds no data.
      scores: classes that number and that are compared by the products of a value with itself that
        it is made of.
      soft: whether these went through an exponential or a sigmoid, as in attention.
      weights: whether it went through an exponential, as in a softmax.
      paired: whether it compares two values entry by entry, by their product or difference.
      rows: classes of the axes of parameters that data looked up, where there are several: of a
        kernel that data chooses, or of an embedding.
      carried: classes along it that the products which it is made of have left as they were.
    """

    origin: int = NOTHING
    scores: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    soft: bool = False
    weights: bool = False
    paired: bool = False
    rows: frozenset[int] = frozenset()
    carried: frozenset[int] = frozenset()


def find_products(
    frame: Frame, store: AxisStore, leaves: Sequence[Axes], inputs: Sequence[Axes]
) -> Products:
    """Looks for contractions of two values that both depend on the inputs.

    A product of a value with itself compares nothing: it is a norm or a Gram matrix, and the class
    that it is summed over one of plain neurons. It is attention where its softmax weighs values.

    Args:
      frame: the frame of the whole function.
      store: its axis store.
      leaves: axes of the parameter leaves, which are the function's first inputs.
      inputs: axes of the other inputs.

    Returns:
      Representatives of the classes involved.
    """
    return _Search(store).run(frame, len(leaves), len(inputs))


class _Search:
    """One walk through a function's equations."""

    def __init__(self, store: AxisStore) -> None:
        self.store, self.origins = store, Origins()
        self.control = Control(self._join, settle=self._settle)
        self.batching, self.contracted = set[int](), set[int]()
        self.carried, self.own, self.itself = set[int](), set[int](), set[int]()

    def run(self, frame: Frame, leaves: int, inputs: int) -> Products:
        values = [_Value() for _ in range(leaves)] + [self._new() for _ in range(inputs)]
        interpret(
            *(frame, self.store, values, self._transfer, lambda _: _Value()), control=self.control
        )
        found = (self.batching, self.contracted, self.carried, self.own, self.itself)
        return Products(*map(frozenset, found))

    def _new(self) -> _Value:
        return _Value(self.origins.new())

    def _join(self, values: Sequence[_Value], _: Sequence[_Value]) -> _Value:
        if len({*values}) == 1:
            return values[0]
        carried = frozenset[int]().union(*(v.carried for v in values))
        new = self._new() if any(v.origin for v in values) else _Value()
        return dataclasses.replace(new, carried=carried)

    def _settle(
        self, carries: list[_Value], run: Callable[[list[_Value]], list[_Value]]
    ) -> list[_Value]:
        """Carries that hold data before some step, each of its own origin."""
        self.control.settling += 1
        data, before = [bool(c.origin) for c in carries], None
        while data != before:
            before = data
            after = run([self._new() if d else _Value() for d in data])
            data = [d or bool(c.origin) for d, c in zip(data, after, strict=True)]
        self.control.settling -= 1
        return [self._new() if d else _Value() for d in data]

    def _classes(self, axes: Axes, which: Collection[int] | None = None) -> frozenset[int]:
        return self.store.classes_of(axes if which is None else [axes[i] for i in which])

    def _transfer(
        self, equation: JaxprEqn, ins: list[Axes], outs: list[Axes], values: list[_Value]
    ) -> list[_Value]:
        found = self._results(equation, ins, outs, values)
        held = frozenset[int]().union(*(v.carried for v in values))
        if not held and not any(x.carried for x in found):
            return found
        return [
            dataclasses.replace(x, carried=(held | x.carried) & self._classes(axes))
            for x, axes in zip(found, outs, strict=True)
        ]

    def _results(
        self, equation: JaxprEqn, ins: list[Axes], outs: list[Axes], values: list[_Value]
    ) -> list[_Value]:
        kind = traits_of(equation).kind
        if kind == "contraction":
            values = self._without_kernels(equation, ins, values)
        origins = self.origins.of(equation, [v.origin for v in values])
        if kind == "contraction" and any(v.origin for v in values[:2]):
            scores, carried = self._product(equation, ins, values)
            return [_Value(origins[0], scores, carried=carried)]
        if kind == "lookup":
            table = values[0].rows if values[0].origin else self._classes(ins[0])
            rows = table if self._number(outs[0], table) > 1 else frozenset[int]()
            return [_Value(o, rows=rows if o else frozenset()) for o in origins]
        if kind not in ("elementwise", "same", "layout", "reduction"):
            return [_Value(o) for o in origins]
        name, results = equation.primitive.name, []
        data = [v.origin for v in values if v.origin and not v.rows]
        tables = [v.rows for v in values if v.origin]
        same = kind != "reduction" and all(tables)
        rows = frozenset[int]().union(*tables) if same else frozenset[int]()
        paired = any(v.paired for v in values) or (
            name in COMPARING and len(data) == 2 and not self.origins.is_statistic(*data)
        )
        for origin, axes in zip(origins, outs, strict=True):
            here = self._classes(axes)
            every = [v.scores for v in values]
            if paired and name == "reduce_sum":  # a product that is summed by hand
                every.append((here, self._classes(ins[0]) - here))
            # a layer that is divided by its own norm is no score
            every = [s for s in every if not s[1] & here]
            scores = tuple(frozenset().union(*(s[i] for s in every)) for i in (0, 1))
            soft = name in SOFT or any(v.soft for v in values)
            weights = name == "exp" or any(v.weights for v in values)
            compares = paired and kind != "reduction"
            found = (scores[0], scores[1])
            results.append(_Value(origin, found, bool(scores[1]) and soft, weights, compares, rows))
        return results

    def _number(self, axes: Axes, classes: Collection[int]) -> int:
        """How many axes hold some of the classes."""
        return sum(not self._classes((node,)).isdisjoint(classes) for node in axes)

    def _without_kernels(
        self, equation: JaxprEqn, ins: list[Axes], values: list[_Value]
    ) -> list[_Value]:
        """Operands of a contraction; looked-up rows count as parameters where they are kernels.

        Those are summed over one axis of the parameters and have another as outputs, as experts
        that are gathered by index. Rows of an embedding are compared, or weighed, as a whole.
        """
        axes, found = contraction_of(equation), list(values)
        for i, value in enumerate(values[:2]):
            parts = (axes.contracted[i], axes.free[i])
            summed, free = (tuple(ins[i][k] for k in part) for part in parts)
            if self._number(summed, value.rows) and self._number(free, value.rows):
                found[i] = _Value()
        return found

    def _product(
        self, equation: JaxprEqn, ins: list[Axes], values: list[_Value]
    ) -> tuple[tuple[frozenset[int], frozenset[int]], frozenset[int]]:
        """Notes a contraction; returns what it compares a value with itself by, and carries."""
        (lhs, rhs), axes, factors = ins[:2], contraction_of(equation), values[:2]
        shared, inner = self._classes(lhs, axes.batch[0]), self._classes(lhs, axes.contracted[0])
        nothing = (frozenset[int](), frozenset[int]()), frozenset[int]()
        if self.control.settling:
            return nothing
        if not all(v.origin for v in factors):
            operand = [bool(v.origin) for v in factors].index(False)
            if not is_depthwise(equation, operand):
                self.own.update(shared)
            return nothing
        if factors[0].origin == factors[1].origin:
            self.itself |= inner
            return (shared, inner), frozenset()
        for value in factors:
            if value.soft:  # it weighs other values
                self.batching |= value.scores[0]
                self.contracted |= value.scores[1]
        if not axes.contracted[0]:  # entry by entry: gates, or a softmax over experts
            self.own |= shared if any(v.weights for v in factors) else frozenset()
            return nothing
        self.contracted |= inner
        self.batching |= shared
        if not shared:
            return nothing
        free = self._classes(lhs, axes.free[0]) | self._classes(rhs, axes.free[1])
        # several queries of one key are heads as well: they stay free in both products
        self.batching |= free & factors[0].carried.union(factors[1].carried)
        self.carried |= free
        return nothing[0], free


def kind_of(
    root: int,
    roles: Collection[str],
    both: bool,
    products: Products,
    inexact: Collection[int],
    axes: Sequence[ex.Expression],
) -> Kind:
    """The kind of a class.

    * ``head``: numbers attention heads.
    * ``head_dim``: what queries and keys are compared by, or the dimension of a head's values;
      what is compared with itself and read by nothing else.
    * ``neuron``: something produces it and something consumes it.
    * ``free``: neither; or experts, each with weights of its own; or the channels within one group
      of a group norm, of which all groups must have as many.

    Args:
      root: representative of the class.
      roles: roles of the leaf axes that hold it.
      both: whether one leaf axis both produces and consumes it.
      products: the function's products of activations.
      inexact: classes that a reduction sees.
      axes: the leaf axes that hold it, with representatives as names.
    """
    if "producer" not in roles:
        return "free"
    if root in products.batching:
        return "head"
    if root in products.contracted - products.own:
        return "head_dim"
    if root in products.own:
        return "free"
    if not ("consumer" in roles or both):
        return "head_dim" if root in products.itself else "free"
    if root in products.carried:
        return "head_dim"
    return "free" if root in inexact and _is_within(str(root), axes, inexact) else "neuron"


def _is_within(name: str, axes: Sequence[ex.Expression], inexact: Collection[int]) -> bool:
    """Whether every axis holds the class as the inner factor of a class that is exact."""

    def check(e: ex.Expression) -> bool:
        match e:
            case ex.Product(parts):
                last = parts[-1]
                outer = {a for p in parts[:-1] for a in ex.atoms(p)}
                return (
                    isinstance(last, ex.Atom)
                    and last.name == name
                    and any(int(a) not in inexact for a in outer)
                )
            case ex.Sum(parts):
                return all(check(p) for p in parts if name in {*ex.atoms(p)})
            case ex.Ordered(inside, _):
                return check(inside)
        return False

    return all(map(check, axes))


def joint_kind(kinds: Collection[Kind]) -> Kind:
    """The kind of what several functions hold: free only where none of them knows better."""
    order: list[Kind] = ["integer", "head", "head_dim", "neuron", "free"]
    return min(kinds, key=order.index)
