"""Arrays along axis expressions, re-indexed position by position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from tests.structure.expressions import EXPRESSIONS, FULL, labels

pytestmark = pytest.mark.usefixtures("unchecked")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(EXPRESSIONS, st.fixed_dictionaries({n: st.permutations(FULL[n]) for n in "ab"}), st.data())
def test_indices_are_the_positions_of_the_selected_neurons(e, chosen, data):
    chosen = {n: c[: data.draw(st.integers(1, len(c)))] for n, c in chosen.items()}
    before = labels(e, FULL)
    after = labels(e, FULL | chosen)
    index = axis_arrays.indices(e, {n: np.array(c) for n, c in chosen.items()})
    assert [before[i] for i in index] == after
    sizes = {n: len(c) for n, c in chosen.items()}
    assert ex.size(e, sizes) == len(after)
    assert ex.size(e) == len(before)
    # in two steps, the second one at the sizes that the first one left
    first = axis_arrays.indices(e, {"a": np.array(chosen["a"])})
    second = axis_arrays.indices(e, {"b": np.array(chosen["b"])}, {"a": len(chosen["a"])})
    np.testing.assert_array_equal(np.asarray(first)[second], index)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(EXPRESSIONS)
def test_transform_and_rows_go_through_every_occurrence(e):
    x = np.arange(2.0 * ex.size(e)).reshape(ex.size(e), 2).T
    chosen = [2, 0]
    got = axis_arrays.transform(
        jnp.asarray(x), 1, e, "a", lambda part, axis: jnp.take(part, jnp.array(chosen), axis)
    )
    np.testing.assert_array_equal(got, x[:, axis_arrays.indices(e, {"a": np.array(chosen)})])
    found = axis_arrays.rows(jnp.asarray(x), 1, e, "a")
    where = labels(e, FULL)

    def holds(label, name, i):
        if isinstance(label, tuple) and label == (name, i):
            return True
        return isinstance(label, tuple) and any(holds(part, name, i) for part in label)

    for i in range(3):  # neuron i's entries are those whose label holds it, once per occurrence
        entries = np.concatenate([np.zeros(0), *(np.asarray(r[i]) for r in found)])
        columns = [k for k, label in enumerate(where) if holds(label, "a", i)]
        assert set(entries) == set(x[:, columns].ravel())
    assert len(found) == len(list(ex.places(e, "a")))


def test_traced_selections():
    e = ex.Sum((ex.Pinned(2), ex.Product((ex.Atom("a", 3), ex.Pinned(2)))))
    index = jax.jit(lambda i: axis_arrays.indices(e, {"a": i}))(jnp.array([2, 0]))
    assert index.tolist() == [0, 1, 6, 7, 2, 3]


def test_a_transformed_axis_beside_an_empty_one():
    e = ex.Product((ex.Atom("a", 3), ex.Pinned(2)))
    got = axis_arrays.transform(jnp.zeros((0, 6)), 1, e, "a", lambda x, axis: x[:, :1])
    assert got.shape == (0, 2)
