"""What a class of neurons is: plain neurons, attention heads, their dimensions, or neither."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from ifjax.graph.facts.roles import is_depthwise
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.interpret import Control, interpret
from ifjax.jaxprs.traits import contraction_of, traits_of
from ifjax.jaxprs.walk import Axes, Frame
from ifjax.structure import axis as ex
from ifjax.structure.structure import Kind


@dataclasses.dataclass(frozen=True)
class Products:
    """How classes take part in products of activations with activations (attention).

    Attributes:
      batching: classes that number independent products: attention heads, and the queries that
        share a key head.
      contracted: classes that such a product is summed over: the dimension of queries and keys.
      carried: other classes along a product that heads batch: the dimension of values.
      own: classes that number independent products with parameters, each with several outputs of
        its own (experts).
    """

    batching: frozenset[int]
    contracted: frozenset[int]
    carried: frozenset[int]
    own: frozenset[int]


def find_products(
    frame: Frame, store: AxisStore, leaves: Sequence[Axes], inputs: Sequence[Axes]
) -> Products:
    """Looks for contractions of two values that both depend on the inputs.

    Args:
      frame: the frame of the whole function.
      store: its axis store.
      leaves: axes of the parameter leaves, which are the function's first inputs.
      inputs: axes of the other inputs.

    Returns:
      Representatives of the classes involved.
    """
    batching, contracted, carried, own = set[int](), set[int](), set[int](), set[int]()

    def classes(axes: Axes, which: Collection[int]) -> set[int]:
        return {root for i in which for root in store.classes(axes[i])}

    def transfer(
        equation: Any, ins: list[Axes], outs: list[Axes], values: list[bool]
    ) -> list[bool]:
        factors = values[:2]
        is_product = traits_of(equation).kind == "contraction" and any(factors)
        if is_product and not control.settling:
            (lhs, rhs), axes = ins[:2], contraction_of(equation)
            shared = classes(lhs, axes.batch[0])
            if all(factors):
                batching.update(shared)
                contracted.update(classes(lhs, axes.contracted[0]))
                if shared:
                    free = classes(lhs, axes.free[0]) | classes(rhs, axes.free[1])
                    # several queries of one key are heads as well: they stay free in both products
                    batching.update(free & carried)
                    carried.update(free)
            elif not is_depthwise(equation, factors.index(False)):
                own.update(shared)
        return [any(values) for _ in outs]

    given = [False] * len(leaves) + [True] * len(inputs)
    control = Control(lambda values, _: any(values))
    interpret(frame, store, given, transfer, lambda _: False, control=control)
    return Products(*map(frozenset, (batching, contracted, carried, own)))


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
    * ``head_dim``: what queries and keys are compared by, or the dimension of a head's values.
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
    if root in products.own or not ("consumer" in roles or both):
        return "free"
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
        return False

    return all(map(check, axes))


def joint_kind(kinds: Collection[Kind]) -> Kind:
    """The kind of what several functions hold: free only where none of them knows better."""
    order: list[Kind] = ["head", "head_dim", "neuron", "free"]
    return min(kinds, key=order.index)
