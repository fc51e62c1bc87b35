"""Biases where a function has none: where they stand, and that solves find them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 2


def shapes(biased):
    return {path: x.shape for path, x in biased["biases"].items()}


def with_ones(biased):
    """Every entry of a bias another number."""
    biases = {p: normal(i, *x.shape) for i, (p, x) in enumerate(biased["biases"].items())}
    return {**biased, "biases": biases}


def plain(p, x):
    return jax.nn.relu(x @ p["up"] + p["b"]) @ p["down"]


PLAIN = {"up": normal(1, 8, 16), "b": normal(2, 16), "down": normal(3, 16, 4)}


def test_what_is_left_over_on_average_goes_into_the_new_bias():
    """Half of the neurons hardly vary: what they give is not lost with them."""
    params = {**PLAIN, "b": np.where(np.arange(16) < 8, 0.0, 3.0).astype(np.float32)}
    params["up"] = params["up"] * np.where(np.arange(16) < 8, 1.0, 1e-3).astype(np.float32)
    x = normal(4, 64, 8)
    apply, biased = ifjax.with_biases(plain, params, x)
    assert shapes(biased) == {"down": (4,)}
    scores, index = {"params/up": np.arange(16.0) < 8}, np.arange(8)
    with jax.enable_x64(True):
        spec = ifjax.trace(apply, biased, x).spec(0.5)
        small, report = ifjax.compress(apply, biased, spec, [x], scores=scores)
    [solved] = report.solved
    assert solved.offset == "biases/down"
    assert solved.after < 1e-4 < 1 < solved.before
    rows = np.maximum(np.float64(x @ params["up"] + params["b"]), 0)
    target, rows = rows @ params["down"], rows[:, index]
    centred, old = rows - rows.mean(0), params["down"][index]
    shift = solved.shrinkage * (rows**2).sum() / 8 * np.eye(8)
    kernel = np.linalg.solve(centred.T @ centred + shift, centred.T @ target + shift @ old)
    np.testing.assert_allclose(small["params"]["down"], kernel, rtol=1e-3, atol=1e-4)
    want = target.mean(0) - rows.mean(0) @ kernel
    np.testing.assert_allclose(small["biases"]["down"], want, rtol=1e-3, atol=1e-4)


def test_each_place_where_a_bias_can_stand():
    """A conv, heads, an add that two share, one that has a bias, one whose norm has an offset."""
    params = {
        "conv": normal(1, 3, 3, 2, 6),
        "heads": normal(2, 6, 2, 4),
        "left": normal(3, 2, 4, 5),
        "right": normal(4, 6, 5),
        "normed": normal(5, 5, 7),
        "mean": normal(6, 7),
        "offset": normal(7, 7),
        "out": normal(8, 7, 3),
        "bias": normal(9, 1, 3),
    }
    numbers = ("NHWC", "HWIO", "NHWC")

    def apply(p, x, shift=lambda name, y: y):
        y = lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=numbers)
        y = jnp.tanh(shift("conv", y)).mean(1)
        h = jnp.tanh(shift("heads", jnp.einsum("bwc,chd->bhwd", y, p["heads"])))
        y = jnp.tanh(shift("left", jnp.einsum("bhwd,hdo->bwo", h, p["left"])) + y @ p["right"])
        y = jnp.tanh((y @ p["normed"] - p["mean"]) * 2 + p["offset"])
        return y @ p["out"] + p["bias"]

    x = normal(10, 2, 4, 4, 2)
    apply_biased, biased = ifjax.with_biases(apply, params, x)
    assert shapes(biased) == {"conv": (6,), "heads": (2, 4), "left": (5,)}
    np.testing.assert_array_equal(apply_biased(biased, x), apply(params, x))
    biased = with_ones(biased)
    add = {**biased["biases"], "heads": biased["biases"]["heads"][:, None]}
    want = apply(params, x, lambda name, y: y + add[name])
    np.testing.assert_allclose(apply_biased(biased, x), want, rtol=1e-5, atol=1e-6)
    _, few = ifjax.with_biases(apply, params, x, include=["he*", "left"])
    assert {*shapes(few)} == {"heads", "left"}
    with pytest.raises(ValueError, match="of no weight that lacks a bias; these do: conv, heads"):
        ifjax.with_biases(apply, params, x, include="out")


def test_layers_of_a_scan_have_one_each_and_turns_over_time_share_it():
    params = {"up": normal(1, 3, 8, 12), "down": normal(2, 3, 12, 8), "time": normal(3, 8, 8)}

    def apply(p, x, biases=None):
        b = biases or {"up": jnp.zeros((3, 12)), "down": jnp.zeros((3, 8)), "time": jnp.zeros(8)}

        @jax.checkpoint
        def layer(h, w):
            up, down, first, last = w
            return h + (jnp.tanh(h @ up + (first if biases else 0)) @ down) + (
                last if biases else 0
            ), None

        x, _ = lax.scan(layer, x, (p["up"], p["down"], b["up"], b["down"]))
        step = lambda h, x: (jnp.tanh(h @ p["time"] + (b["time"] if biases else 0) + x), None)  # noqa: E731
        return lax.scan(step, jnp.zeros_like(x[0]), x)[0]

    x = normal(4, 5, 2, 8)
    apply_biased, biased = ifjax.with_biases(lambda p, x: apply(p, x), params, x)
    assert shapes(biased) == {"up": (3, 12), "down": (3, 8), "time": (8,)}
    biased = with_ones(biased)
    loss = lambda biased: jnp.sum(jax.jit(apply_biased)(biased, x) ** 2)  # noqa: E731
    other = lambda biased: jnp.sum(apply(biased["params"], x, biased["biases"]) ** 2)  # noqa: E731
    (got, slopes), (want, expected) = (jax.value_and_grad(f)(biased) for f in (loss, other))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-5), slopes, expected)


def test_layers_are_solved_shrunk_and_saved_with_them(tmp_path):
    params = {"up": normal(1, 2, 8, 12), "down": normal(2, 2, 12, 8)}

    def apply(p, x):
        layer = lambda h, w: (h + jax.nn.relu(h @ w[0]) @ w[1], None)  # noqa: E731
        return lax.scan(layer, x, (p["up"], p["down"]))[0]

    x = normal(3, 32, 8)
    apply_biased, biased = ifjax.with_biases(apply, params, x, include="down")
    assert shapes(biased) == {"down": (2, 8)}
    spec = ifjax.trace(apply_biased, biased, x).spec(0.5)
    small, report = ifjax.compress(apply_biased, biased, spec, [x])
    offsets = [s.offset for s in report.solved if "down" in s.sites[0]]
    assert offsets == [f"biases/down/{i}" for i in range(2)]
    assert np.abs(small["biases"]["down"]).min() > 0
    ifjax.save(tmp_path / "small", small, spec)
    jax.tree.map(np.testing.assert_array_equal, ifjax.load(tmp_path / "small")[0], small)
    assert ifjax.shrink(apply_biased, spec)(small, x).shape == (32, 8)


def test_it_is_named_after_the_kernel_and_has_the_shape_and_dtype_of_what_it_gives():
    """A gain that several share, and half-precision weights with a scale, also inside of a loop."""
    params = {"a": np.float32(1.5), "half": np.ones((2, 4, 4), np.float16), "s": normal(1, 2, 1, 4)}
    params |= {"up": normal(2, 4, 6), "w": normal(3, 6, 4)}

    def apply(p, x):
        y = jax.nn.relu(x @ (p["a"] * p["up"])) @ (p["a"] * p["w"])
        layer = lambda h, w: (jnp.tanh(h @ (w[0].astype(jnp.float32) * w[1])), None)  # noqa: E731
        return lax.scan(layer, y, (p["half"], p["s"]))[0]

    apply_biased, biased = ifjax.with_biases(apply, params, normal(4, 3, 4))
    assert shapes(biased) == {"up": (6,), "w": (4,), "half": (2, 4)}
    assert {x.dtype for x in biased["biases"].values()} == {jnp.dtype("float32")}
    biased["biases"]["w"] = jnp.ones(5)
    with pytest.raises(ValueError, match=r"biases/w: expected shape \(4,\), .* got \(5,\)"):
        apply_biased(biased, normal(4, 3, 4))


@pytest.mark.parametrize(
    ("path", "reason"),
    [("up", "has one, or can have none"), ("left", "does not exist")],
)
def test_a_bias_of_what_lacks_none_is_refused(path, reason):
    apply, biased = ifjax.with_biases(plain, PLAIN, normal(4, 3, 8))
    biased["biases"][path] = jnp.zeros(16)
    with pytest.raises(ValueError, match=f"biases/{path}: .* {reason}; these lack one: down"):
        apply(biased, normal(4, 3, 8))


def test_a_bias_of_a_weight_that_a_mode_does_not_read_waits():
    def apply(p, x, mode="both"):
        y = x @ p["up"]
        return y if mode == "one" else jax.nn.relu(y) @ p["down"]

    x = normal(4, 3, 8)
    apply_biased, biased = ifjax.with_biases(apply, PLAIN, x)
    biased = with_ones(biased)
    want = apply(PLAIN, x, "one") + biased["biases"]["up"]
    np.testing.assert_allclose(apply_biased(biased, x, mode="one"), want, rtol=1e-5, atol=1e-6)


PARTS = {
    "two loops over parts": lambda step, w, x: lax.scan(step, lax.scan(step, x, w[:2])[0], w[2:])[
        0
    ],
    "back and forth": lambda step, w, x: lax.scan(step, lax.scan(step, x, w)[0], w[::-1])[0],
    "one by one": lambda step, w, x: step(step(x, w[0])[0], w[1])[0],
    "one by one, remade": lambda step, w, x: jax.checkpoint(step)(
        jax.checkpoint(step)(x, w[0])[0], w[1]
    )[0],
}


@pytest.mark.parametrize("how", PARTS)
def test_what_several_loops_read_differently_has_none(how):
    step = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
    apply = lambda p, x: PARTS[how](step, p["w"], x) @ p["out"]  # noqa: E731
    params = {"w": normal(1, 4, 3, 3), "out": normal(2, 3, 2)}
    _, biased = ifjax.with_biases(apply, params, normal(3, 5, 3))
    assert shapes(biased) == {"out": (2,)}
