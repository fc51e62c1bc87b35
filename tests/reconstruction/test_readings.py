"""What several contractions read is measured and factored once, with the same results."""

import jax
import numpy as np
import pytest
from jax import lax

import ifjax
from ifjax.reconstruction import solve

NUMBERS = ("NHWC", "HWIO", "NHWC")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape) / 2


def dense(p, x):
    """Queries, keys and a gate, of other shapes, read one value."""
    h = jax.nn.relu(x @ p["in"])
    y = jax.nn.relu(np.float64(2) * (h @ p["q"])) + jax.nn.relu(h @ p["k"] + p["kb"])
    gate = jax.nn.relu(jax.numpy.einsum("nd,dhc->nhc", h, p["g"])).reshape(len(x), -1)
    return (y * gate) @ p["out"]


def convolutions(p, x):
    """Two kernels of the same window, and one of another."""

    def conv(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS)

    h = jax.nn.relu(conv(x, p["in"]))
    return [jax.nn.relu(conv(h, p[name])).mean((1, 2)) for name in ("a", "c", "b")]


CASES = {
    "dense": (
        dense,
        {"in": (6, 12), "q": (12, 4), "k": (12, 4), "kb": (4,), "g": (12, 2, 2), "out": (4, 3)},
        (64, 6),
        {"q": 3, "k": 3, "g": 3},
    ),
    "convolutions": (
        convolutions,
        {"in": (1, 1, 3, 8), "a": (3, 3, 8, 12), "b": (3, 3, 8, 13), "c": (1, 1, 8, 4)},
        (16, 4, 4, 3),
        {"a": 2, "b": 2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_is_solved_as_if_it_were_alone(name, monkeypatch):
    """Against a sweep in which every unit measures what it reads, and a Gram matrix each."""
    apply, shapes, size, together = CASES[name]
    params = {key: normal(i, *shape) for i, (key, shape) in enumerate(shapes.items())}
    x = normal(9, *size) * 2
    eigh, factored = np.linalg.eigh, []
    monkeypatch.setattr(np.linalg, "eigh", lambda a: (factored.append(a.shape), eigh(a))[1])
    with jax.enable_x64(True):
        spec = ifjax.trace(apply, params, x).spec({"in": 0.5}, importance="reconstruction")
        small, report = ifjax.compress(apply, params, spec, [x])
        count = len(factored)
        monkeypatch.setattr(solve, "_shared", lambda walk, problem: None)
        alone, other = ifjax.compress(apply, params, spec, [x])
    assert {path for s in report.solved for path in s.sites} >= {*together}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-8, 1e-10), small, alone)
    for a, b in zip(report.solved, other.solved, strict=True):
        assert (a.sites, a.shrinkage, a.positions) == (b.sites, b.shrinkage, b.positions)
        np.testing.assert_allclose(
            [a.before, a.after, a.held_after], [b.before, b.after, b.held_after]
        )
    offsets = [s for s in report.solved if {*s.sites} & {*together}]
    kinds = {s.offset is not None for s in offsets}
    assert len(factored) - 2 * count == len(together) - len(kinds)
