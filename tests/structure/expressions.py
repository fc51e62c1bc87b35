"""Axis expressions drawn at random, and what lies along them, position by position."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from ifjax.structure import axis as ex

SIZES = {"a": 3, "b": 2, "c": 4}
ATOMS = st.sampled_from([ex.Atom(n, k) for n, k in SIZES.items()])
LEAVES = ATOMS | st.builds(ex.Pinned, st.integers(1, 3))


def nest(inner):
    parts = st.lists(inner, min_size=1, max_size=3).map(tuple)
    orders = st.builds(turned, inner, st.integers(0, 5))
    return st.builds(ex.Product, parts) | st.builds(ex.Sum, parts) | orders


def turned(e: ex.Expression, k: int) -> ex.Expression:
    """The axis backwards, from a later position on."""
    return ex.in_order(e, tuple(np.roll(np.arange(ex.size(e))[::-1], k).tolist()))


EXPRESSIONS = st.recursive(LEAVES, nest, max_leaves=6).filter(lambda e: ex.size(e) <= 150)


def labels(e: ex.Expression, neurons: dict[str, list]) -> list:
    """What lies at every position: the factors' and segments' labels, nested."""
    match e:
        case ex.Atom(name, _):
            return [(name, i) for i in neurons[name]]
        case ex.Pinned(n):
            return [("pinned", i) for i in range(n)]
        case ex.Sum(parts):
            return [(k, x) for k, p in enumerate(parts) for x in labels(p, neurons)]
        case ex.Product(parts):
            found = [()]
            for p in parts:
                found = [(*f, x) for f in found for x in labels(p, neurons)]
            return found
        case ex.Ordered(inside, order):
            found = labels(inside, neurons)
            return [found[i] for i in order] if len(found) == len(order) else found


FULL = {n: list(range(k)) for n, k in SIZES.items()}
