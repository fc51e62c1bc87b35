"""What ``init`` of an optimizer does with the parameters, read from its equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from ifjax.fusion import initial_state
from ifjax.fusion.initial_state import shapes_and_copies

# More numbers than any machine holds, twice the same shape.
WIDE = {
    "a": jax.ShapeDtypeStruct((10**7, 10**7), jnp.float32),
    "b": jax.ShapeDtypeStruct((10**7, 10**7), jnp.float32),
    "n": jax.ShapeDtypeStruct((10**9,), jnp.int32),
}
SMALL = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3)), "n": jnp.arange(3)}

READ: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "itself": (lambda x: x, True),
    "a copy": (lambda x: jnp.array(x, copy=True), True),
    "placed": (jax.device_put, True),
    "cast": (lambda x: x.astype(jnp.bfloat16), True),
    "cast, compiled": (jax.jit(lambda x: jnp.copy(x).astype(jnp.float16)), True),
    "not differentiated": (jax.lax.stop_gradient, True),
    "zeros": (jnp.zeros_like, False),
    "ones, compiled": (jax.jit(lambda x: jnp.ones_like(x) + 1), False),
}


@pytest.mark.parametrize("name", READ)
def test_copies_are_read_without_arrays(name: str) -> None:
    f, expected = READ[name]
    state, copies = shapes_and_copies(lambda p: jax.tree.map(f, p), WIDE)
    assert copies == [expected] * 3
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, WIDE)


@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(0.1), contrib.schedule_free_adamw(0.1), contrib.prodigy(0.1), optax.adafactor(0.1)],
)
def test_optimizers_of_optax_need_none(optimizer: optax.GradientTransformation) -> None:
    wide = {"a": WIDE["a"]}
    state, copies = shapes_and_copies(optimizer.init, wide)
    assert len(copies) == len(jax.tree.leaves(state))


TRIED: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "plus zero": (lambda x: x + 0, True),
    "twice transposed": (lambda x: x.T.T, True),
    "by way of numpy": (lambda x: jnp.asarray(np.asarray(x)), True),
    "after a look": (lambda x: x if float(x.sum()) != 0.5 else -x, True),
    "zero times": (lambda x: 0 * x, False),
    "squares": (lambda x: x**2, False),
}


@pytest.mark.parametrize("name", TRIED)
def test_what_is_computed_is_tried(name: str) -> None:
    f, expected = TRIED[name]
    state, copies = shapes_and_copies(lambda p: {"a": f(p["a"]), "b": 0 * p["b"]}, SMALL)
    assert copies == [expected, False]
    assert state["a"].shape == (2, 3)


def test_one_number_of_all_parameters_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the learning rate of DoG, of the norm of the parameters."""
    monkeypatch.delattr(initial_state, "_tried")
    _, copies = shapes_and_copies(lambda p: (p["a"].sum(), p["a"], "name", 3), SMALL)
    assert copies == [False, True, False, False]


@pytest.mark.parametrize("compiled", [False, True])
def test_constants_are_no_copies(compiled: bool) -> None:
    table = jnp.arange(6.0).reshape(2, 3)

    def init(p: Any) -> Any:
        return table, p["b"], table + 1

    _, copies = shapes_and_copies(jax.jit(init) if compiled else init, SMALL)
    assert copies == [False, True, False]
