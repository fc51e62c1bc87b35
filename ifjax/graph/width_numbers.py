"""What becomes of the numbers that come from widths, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from ifjax.graph.facts.belonging import Candidate, Kept
from ifjax.graph.facts.numbers import Numbers
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.walk import Axes, Reason
from ifjax.jaxprs.width_number import HALF, QUARTER, Reading, is_common
from ifjax.structure import axis as ex
from ifjax.structure.structure import Structure

SCALES = {-HALF, -QUARTER, -2 * HALF}  # what products of queries and keys are multiplied by
FEW = 8  # numbers up to here, and one over them, are met for other reasons than a root


@dataclasses.dataclass(frozen=True)
class WidthNumber:
    """A number that comes from the width of a group.

    Attributes:
      text: the number, its place, what it comes from and what becomes of it.
      groups: names of the groups.
      follows: whether it is another in the shrunk function.
      unclear: whether it cannot be told what it should become: not so for attention's scale, and
        for what is known to be written as a number.
    """

    text: str
    groups: tuple[str, ...]
    follows: bool
    unclear: bool

    def __str__(self) -> str:
        """The text."""
        return self.text


def renamed(number: WidthNumber, before: Structure, after: Structure) -> WidthNumber:
    """A number with the groups that its own have become in a finer structure of the same leaves."""
    at = {(m.path, m.axis) for name in number.groups for m in before.group[name].members}
    known = [name for name in number.groups if name in after.group]
    if len(known) < len(number.groups):
        held = (g for g in after.groups if any((m.path, m.axis) in at for m in g.members))
        known = [g.name for g in held]
    return dataclasses.replace(number, groups=tuple(known))


def width_numbers(
    numbers: Numbers,
    store: AxisStore,
    names: Mapping[int, str],
    contracted: Collection[int],
) -> tuple[WidthNumber, ...]:
    """The numbers that are more than the count of a mean, once per line of the source.

    Args:
      numbers: of the function.
      store: its axis store.
      names: names of the groups, by representative of their class.
      contracted: classes that a product of two activations is summed over.
    """
    found = [*_followed(numbers, store, names), *_kept(numbers.kept, store, names, contracted)]
    return tuple({number.text: number for number in found}.values())


def _followed(
    numbers: Numbers, store: AxisStore, names: Mapping[int, str]
) -> Iterator[WidthNumber]:
    for frame, i, followed in numbers.followed:
        groups = _groups(followed.over, store, names)
        if followed.is_count or not groups:
            continue
        equation, n = frame.jaxpr.eqns[i], followed.width(store)
        number = followed.reading.at(n) * (-1 if followed.negative else 1)
        where = Reason(f"{equation.primitive.name} by {number:g}", (equation,))
        text = f"{where}: follows as {_origin(followed.reading, n, groups)}"
        yield WidthNumber(text, groups, follows=True, unclear=False)


def _kept(
    kept: Sequence[Kept], store: AxisStore, names: Mapping[int, str], contracted: Collection[int]
) -> Iterator[WidthNumber]:
    for number in kept:

        def scales(c: Candidate, number: Kept = number) -> bool:
            compared = c.of == "two values" or store.classes_of(c.over) <= {*contracted}
            if c.of is None and number.changed is False and is_common(abs(number.number)):
                return False  # gelu's half
            power = number.sign * c.reading.power
            return power in SCALES and not c.reading.less and compared

        def rank(c: Candidate) -> tuple[bool, ...]:
            return (not scales(c), c.of is None, c.reading.part != 1, len(c.over) > 1)

        named = [c for c in number.candidates if _groups(c.over, store, names)]
        best = min(named, key=rank, default=None)
        if best is None:
            if number.changed:
                near = _groups(number.near, store, names) or tuple(dict.fromkeys(names.values()))
                text = f"{number.where}: stays, and changes with the width of {' or '.join(near)}"
                yield WidthNumber(text, near, follows=False, unclear=True)
            continue
        attention = scales(best)
        told = _tells(number.number, best.reading, number.changed)
        if not (number.changed or attention or told):
            continue
        n = math.prod(map(store.size, best.over))
        groups = _groups(best.over, store, names)
        why = "stays, for it scales products of queries and keys" if attention else "stays"
        text = f"{number.where}: {why}: {_origin(best.reading, n, groups)}"
        unclear = not attention and number.changed is not False
        yield WidthNumber(text, groups, follows=False, unclear=unclear)


def _tells(number: float, reading: Reading, changed: bool | None) -> bool:
    """Whether a number's value alone says that it comes from a width.

    One that is known not to change is told only where it is a width, or one over it.
    """
    whole = next((x for x in (abs(number), 1 / abs(number)) if x.is_integer()), None)
    is_width = abs(reading.power) == 1 and not reading.less
    if is_common(abs(number)) or whole == 4 or (changed is False and not is_width):
        return False
    return is_width or not (whole and whole <= FEW)


def _origin(reading: Reading, n: int, groups: tuple[str, ...]) -> str:
    made = reading.text(n)
    return (
        f"{made}, the width of {' and '.join(groups)}"
        if made == str(n)
        else (f"{made}, {n} the width of {' and '.join(groups)}")
    )


def _groups(over: Axes, store: AxisStore, names: Mapping[int, str]) -> tuple[str, ...]:
    roots = [root for node in over for root in store.classes(node)]
    return tuple(dict.fromkeys(names[root] for root in roots if root in names))


def group_names(
    store: AxisStore, leaves: Sequence[Axes], axes: Sequence[tuple[ex.Expression, ...]]
) -> dict[int, str]:
    """Names of the groups by representative, given the leaves' axes as nodes and as expressions."""
    found: dict[int, str] = {}

    def visit(own: ex.Expression, frozen: ex.Expression) -> None:
        match ex.unordered(own), ex.unordered(frozen):
            case ex.Atom(root, _), ex.Atom(name, _):
                found[int(root)] = name
            case (ex.Product(a), ex.Product(b)) | (ex.Sum(a), ex.Sum(b)):
                for x, y in zip(a, b, strict=False):
                    visit(x, y)

    for nodes, expressions in zip(leaves, axes, strict=True):
        for node, frozen in zip(nodes, expressions, strict=True):
            visit(store.resolve(node, str), frozen)
    return found
