"""Names, order and members of the groups."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import ifjax
from tests.graph.laws import array, arrays, hold

X = array(4, 3)


def test_names_are_unique_stable_and_say_where():
    def f(p, x):
        q = jnp.einsum("nc,chd->nhd", x, p["q"])
        return jnp.einsum("nhd,hdo->no", jnp.tanh(q), p["o"])

    p = arrays(q=(3, 2, 4), o=(2, 4, 2))
    graph = hold(f, p, X, groups={"q": 2, "q (axis 2)": 4})
    assert ifjax.trace(f, p, X).groups == ifjax.trace(f, p, np.zeros((9, 3))).groups
    assert graph.structure.group["q (axis 2)"].members[1].where == ("0:4",)


def test_the_order_of_groups_is_that_of_their_first_producers():
    def f(p, x):
        for k in ("c", "a", "b"):
            x = jnp.tanh(x @ p[k])
        return x @ p["d"]

    graph = ifjax.trace(f, arrays(a=(4, 5), b=(5, 6), c=(3, 4), d=(6, 2)), X)
    assert [g.name for g in graph.groups] == ["c", "a", "b"]
    assert [g.position for g in graph.groups] == [1, 2, 3]
