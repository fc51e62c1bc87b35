"""What every solver promises unless it says otherwise."""

import dataclasses

import jax.numpy as jnp
import pytest

from ifjax.transport.solvers import SOLVERS, Solution, Solver


@dataclasses.dataclass(frozen=True)
class Product(Solver):
    scale: float = 1.0

    def __call__(self, cost, a, b, init=None):
        return Solution(a[:, None] * b, 0 * a, jnp.asarray(True), jnp.int32(0))


def test_a_solver_is_itself_at_any_size_and_needs_nothing():
    one = Product()
    assert one.at(5, 3, uniform=True) is one
    assert one.sources(5, 3) is None
    one.require(5, 3, uniform=False)
    assert (one.optimal, one.balanced) == (False, True)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_values(name):
    one, two = SOLVERS[name](), SOLVERS[name]()
    assert one == two
    assert hash(one) == hash(two)
    assert {one: name}[two] == name


def test_other_options_are_other_solvers():
    assert Product() != Product(scale=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Product().scale = 2.0
