"""Sites, views and paths of small functions."""

import jax
import jax.numpy as jnp
import pytest

from ifjax.graph.facts.sites import find_sites
from ifjax.jaxprs.program import flatten

pytestmark = pytest.mark.promotes(ranks="its own functions do")

W, V, B, X = jnp.ones((4, 4)), jnp.ones((4, 4)), jnp.ones(4), jnp.ones((3, 4))


def sites(function, *params):
    program = flatten(jax.make_jaxpr(function)(*params, X), [False] * len(params) + [True])
    return program, find_sites(program)


VIEWS = {
    "itself": lambda w, x: x @ w,
    "transposed": lambda w, x: x @ w.T,
    "scaled": lambda w, x: x @ (w / 2),
    "another parameter's scale": lambda w, v, x: x @ (w * v),
    "reshaped": lambda w, x: x @ w.reshape(2, 8).reshape(4, 4),
    "shifted": lambda w, v, x: x @ (w + 2 * v),
}
NO_VIEWS = {
    "normalised by itself": (lambda w, x: x @ (w / jnp.sqrt((w**2).sum())), "of itself"),
    "centred by itself": (lambda w, v, x: x @ ((w - w.mean()) * v), "of itself"),
    "no affine function": (lambda w, x: x @ jnp.exp(w), "made by exp"),
    "joined with itself": (lambda w, x: x @ jnp.concatenate([w, w.T], 1), "repeated"),
    "joined with zeros": (lambda w, x: x @ jnp.concatenate([w, 0 * X.T], 1), "made by mul"),
    "of integers": (lambda w, x: x @ (w.astype(jnp.int8).astype(w.dtype) * 2), "are int8"),
    "repeated": (lambda w, x: x @ jnp.broadcast_to(w[:, :1], (4, 4)), "repeated"),
}


def arguments(function):
    return (W, V)[: function.__code__.co_argcount - 1]


@pytest.mark.parametrize("name", VIEWS)
def test_weights_that_are_entries_of_a_leaf(name):
    function = VIEWS[name]
    program, found = sites(function, *arguments(function))
    [unit] = found.units
    assert unit.sites[0].leaves == (program.inputs[0],)
    assert not found.follows


@pytest.mark.parametrize("name", NO_VIEWS)
def test_other_weights_have_a_reason(name):
    function, reason = NO_VIEWS[name]
    _, found = sites(function, *arguments(function))
    assert not found.units
    assert reason in found.follows[0][1]


def test_leaves_that_are_joined():
    function = lambda w, v, x: x @ jnp.concatenate([w, 2 * v.T], 1)  # noqa: E731
    program, found = sites(function, W, V)
    [unit] = found.units
    assert unit.sites[0].leaves == tuple(program.inputs[:2])
    assert not found.follows


FORMS = {
    "norm, gain": lambda v, g, x: x @ (v / jnp.sqrt((v**2).sum(0)) * g),
    "gain over norm": lambda v, g, x: x @ (v * (g / jnp.sqrt((v**2).sum(0)))).T,
    "gain, norm": lambda v, g, x: x @ (g * v / jnp.linalg.norm(v, axis=0)),
}


@pytest.mark.parametrize("name", FORMS)
def test_normalised_weights_have_a_gain(name):
    program, found = sites(FORMS[name], W, B)
    [unit] = found.units
    [site] = unit.sites
    assert (site.leaves, site.gains) == ((program.inputs[0],), (program.inputs[1],))
    assert not found.follows


def names(program, unit):
    return [program.steps[p].equation.primitive.name for p in unit.places]


def test_a_path_goes_on_while_a_value_is_used_once_and_affinely():
    program, found = sites(lambda w, b, x: jax.nn.relu(-(x @ w + b) * 2 + x), W, B)
    [unit] = found.units
    assert names(program, unit) == ["dot_general", "add", "neg", "mul", "add"]
    program, found = sites(lambda w, x: (x @ w) * x, W)  # scaled by data
    assert names(program, found.units[0]) == ["dot_general"]

    def twice(w, x):
        y = x @ w
        return y + y

    program, found = sites(twice, W)
    assert names(program, found.units[0]) == ["dot_general"]


def test_what_meets_at_an_add_is_one_unit():
    program, found = sites(lambda w, v, x: jnp.tanh(x @ w + jnp.sin(x) @ v), W, V)
    [unit] = found.units
    assert {n for s in unit.sites for n in s.leaves} == set(program.inputs[:2])


def test_weights_read_again_and_again_are_tied_or_follow():
    _, found = sites(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w), W)
    assert not found.units
    assert [len(units) for units in found.tied] == [2]
    _, found = sites(lambda w, x: jnp.tanh(x @ w) @ w.T, W)  # not alike
    assert not found.units
    assert not found.tied
    assert {reason for _, reason in found.follows} == {"the leaf is read elsewhere too"}
