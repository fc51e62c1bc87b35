"""Which values are made from the same features: the two sides of h . h, and of (h / |h|) . h."""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.core import JaxprEqn

from ifjax.jaxprs.compat import AnyJaxpr
from ifjax.jaxprs.traits import traits_of

SHAPING = {"expand_dims", "real", "conj"}
NOTHING = 0  # constants and parameters: they scale and shift features, and are none


class Origins:
    """Numbers values by the features that they are made from.

    Two values have one number where they are the same features up to their shape, maps of every
    entry by itself, scales, shifts, and statistics of their own: h, tanh(h), h * scale and
    layer_norm(h). Parameters and constants are `NOTHING`.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], int] = {}
        self._reduced: dict[int, int] = {}

    def new(self) -> int:
        """A value that is like no other."""
        return self._number(("new", len(self._known)))

    def of(self, equation: JaxprEqn, operands: Sequence[int]) -> list[int]:
        """The numbers of an equation's results, given those of its operands."""
        name = equation.primitive.name
        if not any(operands):
            return [NOTHING] * len(equation.outvars)
        kind = traits_of(equation).kind
        if kind == "same":
            return list(operands[: len(equation.outvars)])
        if kind == "layout" or name in SHAPING:
            return [operands[0]] * len(equation.outvars)
        if kind == "elementwise":
            return [self._together(name, {o for o in operands if o})]
        described = _described(equation)
        if described is None:
            return [self.new() for _ in equation.outvars]
        keys = [(name, described, tuple(operands), i) for i in range(len(equation.outvars))]
        results = [self._number(key) for key in keys]
        if kind == "reduction":
            self._reduced[results[0]] = operands[0]
        return results

    def is_statistic(self, a: int, b: int) -> bool:
        """Whether one of two values is a statistic of the other."""
        return a in self._sources(b) or b in self._sources(a)

    def _together(self, name: str, features: set[int]) -> int:
        """What is combined entry by entry; a statistic of something else among it is left out."""
        left = {f for f in features if not ({*self._sources(f)} & features)}
        if len(left) == 1:
            return left.pop()
        return self._number(("together", name, *sorted(left)))

    def _sources(self, number: int) -> list[int]:
        """What a value is a statistic of, of the statistic's own origin and so on."""
        found = []
        while number in self._reduced:
            number = self._reduced[number]
            found.append(number)
        return found

    def _number(self, key: tuple[object, ...]) -> int:
        return self._known.setdefault(key, len(self._known) + 1)


def _described(equation: JaxprEqn) -> tuple[object, ...] | None:
    """What tells an equation from others of its primitive; None where it cannot be told."""
    params = tuple(sorted((k, str(v)) for k, v in equation.params.items() if not _is_large(v)))
    if any(_is_large(v) for v in equation.params.values()):
        return None
    return (params, tuple(str(v.aval) for v in equation.outvars))


def _is_large(value: object) -> bool:
    """Whether a parameter is a jaxpr or a function, whose text says too much or too little."""
    items = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(v, AnyJaxpr) or callable(v) for v in items)
