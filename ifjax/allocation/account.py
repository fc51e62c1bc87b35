"""What a network weighs at any widths, and how this changes with some of them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from ifjax.structure import axis as ex
from ifjax.structure.structure import Structure, is_integer

UNITS = ("flops", "weights", "neurons")


@dataclasses.dataclass(frozen=True)
class Account:
    """A count that is a sum of products of widths: FLOPs, weights or neurons.

    Attributes:
      terms: the axes whose sizes are multiplied.
      factor: of the sum.

    Example:
      >>> account = Account(((ex.Atom("a", 8), ex.Pinned(4)), (ex.Atom("a", 8), ex.Atom("b", 2))))
      >>> account.total({}), account.total({"a": 4, "b": 1}), account.change({"b": 1}, {"a": 4})
      (48, 20, -20)
    """

    terms: tuple[tuple[ex.Expression, ...], ...]
    factor: int = 1

    @functools.cached_property
    def holding(self) -> dict[str, frozenset[int]]:
        """By group, which terms depend on its width."""
        found: dict[str, set[int]] = defaultdict(set)
        for i, term in enumerate(self.terms):
            for name in {name for e in term for name in ex.atoms(e)}:
                found[name].add(i)
        return {name: frozenset(where) for name, where in found.items()}

    def total(self, widths: Mapping[str, int]) -> int:
        """The count at some widths; groups without one are whole."""
        return self.factor * self._sum(range(len(self.terms)), widths)

    def change(self, widths: Mapping[str, int], new: Mapping[str, int]) -> int:
        """What is added to the count when some widths become others."""
        where = self.terms_of(new)
        after = {**widths, **new}
        return self.factor * (self._sum(where, after) - self._sum(where, widths))

    def terms_of(self, names: Collection[str]) -> frozenset[int]:
        """The terms that depend on the widths of some groups."""
        return frozenset[int]().union(*(self.holding.get(name, ()) for name in names))

    def _sum(self, where: Iterable[int], widths: Mapping[str, int]) -> int:
        return sum(math.prod(ex.size(e, widths) for e in self.terms[i]) for i in where)


def account_of(structure: Structure, of: str, names: Collection[str]) -> Account:
    """The account that a budget is a share of.

    Args:
      structure: of the network.
      of: ``"flops"`` or ``"weights"`` of the whole network, or ``"neurons"`` of some groups.
      names: of these groups.

    Returns:
      The account; its totals are those of `Structure.flops` and `Structure.weights`.

    Raises:
      ValueError: for another unit.
    """
    if of == "flops":
        return Account(structure.products, 2)
    if of == "weights":
        skip = {n for norm in structure.norms for n in (norm.mean, norm.variance)}
        skip |= {
            m.path for g in structure.groups for m in g.members if m.role in ("mean", "variance")
        }
        leaves = (x for x in structure.leaves if x.path not in skip and not is_integer(x.dtype))
        return Account(tuple(x.axes for x in leaves))
    if of == "neurons":
        groups = {g.name: g for g in structure.groups}
        terms = []
        for name in names:
            group = groups[name]
            pairs = zip(group.along, group.batch, strict=True)
            batch = [ex.Atom(a, k) if a in groups else ex.Pinned(k) for a, k in pairs]
            terms.append((ex.Atom(name, group.size), *batch))
        return Account(tuple(terms))
    raise ValueError(f"of must be one of {', '.join(UNITS)}; got {of!r}")
