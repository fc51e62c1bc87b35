"""What becomes of every part of a tree."""

import jax.numpy as jnp
import optax
import pytest

import ifjax
from ifjax.fusion.named_tree import node_of
from ifjax.fusion.part_kinds import check_patterns, explicit_kind, initial_kinds, kinds_of
from ifjax.fusion.state_parts import Parameters, parts_of

PARAMS = {"w1": jnp.ones((3, 4)), "w2": jnp.ones((4, 2))}
SPEC = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], PARAMS, jnp.ones((1, 3))).spec(0.5)


def kinds(tree, kind=None, initial=None):
    root, explicit = node_of(tree), explicit_kind(kind)
    parts = list(parts_of(root, Parameters.of(SPEC.structure), explicit))
    found = kinds_of(root, parts, explicit, initial or {})
    return dict(zip((p.name for p in parts), found, strict=True))


def test_the_first_pattern_on_a_path_or_what_holds_it_wins():
    explicit = explicit_kind({"ema*": "weights", "*/mu": "gradients", "*": "select"})
    assert explicit(("ema", "0")) == "weights"
    assert explicit(("opt", "0", "mu")) == "gradients"
    assert explicit(("x",)) == "select"
    assert explicit_kind("keep")(("x",)) == "keep"
    assert explicit_kind(None)(("x",)) is None
    with pytest.raises(ValueError, match=r"pattern 'b/\*' matches nothing .* such as a, a/w1"):
        check_patterns({"b/*": "keep"}, node_of({"a": PARAMS}))


def test_places_say_what_they_hold_and_what_is_left_is_the_parameters():
    tree = {"model": PARAMS, "opt": optax.adam(0.1).init(PARAMS), "grads": PARAMS}
    expected = {
        "model": "weights",
        "opt/0/mu": "select",
        "opt/0/nu": "select",
        "grads": "gradients",
    }
    assert kinds(tree) == expected
    assert kinds({**tree, "x": PARAMS}, {"x": "select"}) == {**expected, "x": "select"}
    whole = {"y": PARAMS, "opt": tree["opt"]}
    assert kinds(whole)["y"] == "weights"
    with pytest.raises(ValueError, match="nothing says what it holds"):
        kinds({"y": PARAMS, "z": PARAMS, "opt": tree["opt"]})


def test_an_optimizer_says_what_it_keeps():
    def init(params):
        return {"start": params, "sum": {k: 0 * v for k, v in params.items()}}

    optimizer = optax.GradientTransformation(init, lambda g, s, p=None: (g, s))
    found = initial_kinds(optimizer, PARAMS, SPEC)
    assert found == {("start",): "weights", ("sum",): "select"}
    assert kinds({"s": init(PARAMS)}, initial=found) == {"s/start": "weights", "s/sum": "select"}
