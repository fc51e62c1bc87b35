from __future__ import annotations

import jax.numpy as jnp
import pytest

import ifjax


@pytest.fixture
def graph():
    params = {"layers": [{"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))} for _ in range(3)]}

    def apply(p, x):
        for layer in p["layers"]:
            x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
        return x

    return ifjax.trace(apply, params, jnp.ones((2, 4)))


def test_equal_widths_pass(graph):
    for uniform in (True, "layers/*/up", ["layers/*/up"]):
        widths = graph.spec({"*/up": 0.5}, uniform=uniform).structure.widths
        assert widths == {f"layers/{i}/up": 4 for i in range(3)}
    assert graph.spec({"*/up": 0.5}, uniform=True) == graph.spec({"*/up": 0.5})


def test_different_widths_are_refused_with_one_that_would_do(graph):
    asked = {"layers/0/up": 0.25, "*/up": 0.5}
    assert len({*graph.spec(asked).structure.widths.values()}) == 2
    message = (
        r"uniform 'layers/\*/up': expected one width, got 4 for layers/2/up and 6 for "
        r"layers/0/up; .* keep=\{'layers/\*/up': 4\}"
    )
    for uniform in (True, "layers/*/up"):
        with pytest.raises(ValueError, match=message):
            graph.spec(asked, uniform=uniform)
    with pytest.raises(ValueError, match=r"expected one width, got 4 .* and 8 for layers/1/up"):
        graph.spec({"*/up": 0.5}, exclude="layers/1/up", uniform=True)
    assert graph.spec(keep={"layers/*/up": 4}, uniform=True).structure.widths["layers/1/up"] == 4


def test_a_pattern_that_matches_nothing_is_named(graph):
    with pytest.raises(ValueError, match="uniform pattern 'x' matches none"):
        graph.spec({"*/up": 0.5}, uniform="x")
