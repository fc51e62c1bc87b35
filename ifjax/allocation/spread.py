"""Spreads a budget over ties so that their summed effect is least: numbers alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ifjax.allocation.account import Account
from ifjax.allocation.curve import Curve
from ifjax.allocation.ties import Tie

_ROUNDS = 200  # of exchanges between two ties
_TINY = 1e-12


@dataclasses.dataclass
class _Allocation:
    """Rungs of all ties, and what they come to.

    Attributes:
      ties: the ties.
      curves: of each.
      account: what the budget is of.
      rungs: of each, at present.
      count: of the account, at present.
    """

    ties: Sequence[Tie]
    curves: Sequence[Curve]
    account: Account
    rungs: list[int]
    count: int = 0
    widths: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for tie, rung in zip(self.ties, self.rungs, strict=True):
            self.widths |= tie.widths(rung)
        self.count = self.account.total(self.widths)

    def change(self, i: int, rung: int) -> int:
        """What a tie at another rung adds to the count."""
        return self.account.change(self.widths, self.ties[i].widths(rung))

    def cost(self, i: int, rung: int) -> float:
        """What a tie at another rung adds to the effect."""
        return self.curves[i].at(rung) - self.curves[i].at(self.rungs[i])

    def move(self, i: int, rung: int) -> None:
        """Sets a tie to another rung."""
        self.count += self.change(i, rung)
        self.rungs[i] = rung
        self.widths |= self.ties[i].widths(rung)

    def highest(self, i: int, low: int, high: int, most: int) -> int | None:
        """The highest rung from low to high with which the count is not above a number."""
        if self.count + self.change(i, low) > most:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if self.count + self.change(i, middle) <= most:
                low = middle
            else:
                high = middle - 1
        return low


def spread(
    ties: Sequence[Tie], curves: Mapping[str, Curve], account: Account, most: int
) -> list[int]:
    """The rungs with the least summed effect whose count is not above a number.

    From the most neurons on, tie after tie goes down to the measured width that costs least effect
    for what it takes off the count, which is evaluated as it is: of two layers in a row the second
    takes less off once the first is cut. The last step goes no further than it has to. Then pairs
    of ties exchange, as long as this lowers the effect, and what is left over is given back.

    Args:
      ties: what is cut by one number each.
      curves: of the effect, by tie.
      account: of the count.
      most: the count that is allowed.

    Returns:
      A rung for every tie.

    Raises:
      ValueError: where the floors forbid it.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> from ifjax.allocation.account import account_of
      >>> from ifjax.allocation.ties import ties_of
      >>> params = {"a": jnp.ones((4, 9)), "b": jnp.ones((9, 9)), "c": jnp.ones((9, 4))}
      >>> apply = lambda p, x: x @ p["a"] @ p["b"] @ p["c"]
      >>> graph = ifjax.trace(apply, params, jnp.ones((1, 4)))
      >>> ties = ties_of(graph.groups, False, 1, 9, 1)
      >>> curves = {"a": Curve((0, 8), (1.0, 0.0)), "b": Curve((0, 4, 8), (1.0, 0.1, 0.0))}
      >>> rungs = spread(ties, curves, account_of(graph.structure, "weights", ()), 110)
      >>> {name: m for t, i in zip(ties, rungs) for name, m in t.widths(i).items()}
      {'a': 9, 'b': 5}
    """
    now = _Allocation(ties, [curves[t.name] for t in ties], account, [t.top for t in ties])
    _descend(now, most)
    for _ in range(_ROUNDS):
        if not _exchange(now, most):
            break
    while _give_back(now, most):
        pass
    return now.rungs


def least(ties: Sequence[Tie], account: Account) -> int:
    """The count with every tie at its lowest rung."""
    return account.total({name: m for tie in ties for name, m in tie.widths(0).items()})


def _descend(now: _Allocation, most: int) -> None:
    """Takes the best step down until the count is not above a number."""
    holds = [now.account.terms_of([g.name for g in t.groups]) for t in now.ties]
    steps: dict[int, tuple[float, int] | None] = {}
    while now.count > most:
        for i in range(len(now.ties)):
            if i not in steps:
                steps[i] = _best_step(now, i)
        known = {i: step for i, step in steps.items() if step is not None}
        if not known:
            raise ValueError("the ties' lowest widths are above the budget")
        i = min(known, key=lambda i: known[i])
        rung = known[i][1]
        now.move(i, now.highest(i, rung, now.rungs[i] - 1, most) or rung)
        steps = {j: s for j, s in steps.items() if j != i and not holds[i] & holds[j]}


def _best_step(now: _Allocation, i: int) -> tuple[float, int] | None:
    """The effect for what is taken off the count, and the rung, of the best step down."""
    found = []
    for rung in now.curves[i].rungs:
        if rung < now.rungs[i]:
            saved = -now.change(i, rung)
            found.append((now.cost(i, rung) / saved if saved > 0 else float("inf"), rung))
    return min(found, default=None)


def _neighbours(now: _Allocation, i: int) -> list[int]:
    """The rungs that a tie may go to in an exchange: next ones and measured ones."""
    rung = now.rungs[i]
    places = now.curves[i].rungs
    above, below = [r for r in places if r > rung], [r for r in places if r < rung]
    near = {rung - 1, rung + 1, *above[:2], *below[-2:]}
    return [r for r in sorted(near) if 0 <= r <= now.ties[i].top and r != rung]


def _exchange(now: _Allocation, most: int) -> bool:
    """Moves one tie, and another as far as the budget asks or allows, where the effect falls."""
    best: tuple[float, tuple[tuple[int, int], ...]] = (-_TINY, ())
    down = [_slope(now, i, -1) for i in range(len(now.ties))]
    up = [_slope(now, i, 1) for i in range(len(now.ties))]
    for i in range(len(now.ties)):
        old = now.rungs[i]
        for rung in _neighbours(now, i):
            cost, change = now.cost(i, rung), now.change(i, rung)
            if now.count + change <= most and cost < best[0]:
                best = (cost, ((i, rung),))
            # the other gains or costs about its slope times the change: far off is not tried
            others = [
                j
                for j in range(len(now.ties))
                if j != i and (down[j] * change < -2 * cost if change > 0 else
                               -2 * up[j] * change > cost)
            ]  # fmt: skip
            now.move(i, rung)
            for j in others:
                other = now.highest(j, 0, now.ties[j].top, most)
                if other is not None and cost + now.cost(j, other) < best[0]:
                    best = (cost + now.cost(j, other), ((i, rung), (j, other)))
            now.move(i, old)
    for i, rung in best[1]:
        now.move(i, rung)
    return bool(best[1])


def _slope(now: _Allocation, i: int, step: int) -> float:
    """How the effect changes for the count with the next rung, up or down."""
    rung = now.rungs[i] + step
    if not 0 <= rung <= now.ties[i].top:
        return 0.0 if step > 0 else float("inf")
    change = abs(now.change(i, rung))
    return abs(now.cost(i, rung)) / change if change else float("inf")


def _give_back(now: _Allocation, most: int) -> bool:
    """Raises the tie that gains most, where the budget leaves room."""
    found = []
    for i, tie in enumerate(now.ties):
        if now.rungs[i] < tie.top:
            rung = now.rungs[i] + 1
            more = now.change(i, rung)
            if now.count + more <= most:
                found.append((now.cost(i, rung) / max(more, 1), i, rung))
    if found:
        _, i, rung = min(found)
        now.move(i, rung)
    return bool(found)
