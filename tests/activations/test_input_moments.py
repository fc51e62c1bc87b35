"""Moments of what weights are multiplied with, against float64 on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax.activations import moments


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check(found, read, rtol=1e-5):
    """Against rows ``[B, N, K]``."""
    read = np.asarray(read, np.float64)
    mean = read.mean(1)
    rest = read - mean[:, None]
    assert found.count == read.shape[1]
    np.testing.assert_allclose(found.mean, mean, rtol=rtol, atol=1e-5 * np.abs(mean).max())
    scatter = np.einsum("bnk,bnl->bkl", rest, rest)
    np.testing.assert_allclose(found.scatter, scatter, rtol=rtol, atol=rtol * scatter.max())
    np.testing.assert_allclose(found.covariance, scatter / read.shape[1], rtol=rtol, atol=rtol)
    gram = np.einsum("bnk,bnl->bkl", read, read)
    np.testing.assert_allclose(found.gram, gram, rtol=rtol, atol=rtol * gram.max())


def mixed(p, x):
    """A convolution of two groups, layers in a loop, experts, one array of two weights."""
    numbers = ("NHWC", "HWIO", "NHWC")
    h = jnp.tanh(
        lax.conv_general_dilated(
            x, p["conv"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=2
        )
    )
    h = h.mean((1, 2))
    h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["layers"])[0]
    a, b = h @ p["both"][:, :5], h @ p["both"][:, 5:]
    return jnp.einsum("ne,neo->no", a, jnp.einsum("nk,eko->neo", b, p["experts"])) @ p["out"].T


PARAMS = {
    "conv": normal(0, 3, 3, 2, 6), "layers": normal(1, 3, 6, 6), "both": normal(2, 6, 9),
    "experts": normal(3, 5, 4, 7), "out": normal(4, 2, 7),
}  # fmt: skip
IMAGES = normal(5, 16, 5, 5, 4)


def read_by_hand(x):
    """What the weights read, in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), PARAMS)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    patches = windows.reshape(-1, 2, 2 * 9).swapaxes(0, 1)
    kernel = p["conv"].transpose(2, 0, 1, 3).reshape(18, 2, 3)
    h = np.tanh(np.einsum("gnk,kgo->ngo", patches, kernel).reshape(len(x), 25, 6)).mean(1)
    found = {"conv": patches}
    for i in range(3):
        found[f"layers[{i}]"] = h[None]
        h = np.tanh(h @ p["layers"][i])
    found["both[:, 0:5]"] = found["both[:, 5:9]"] = h[None]
    a, b = h @ p["both"][:, :5], h @ p["both"][:, 5:]
    found["experts"] = b[None]
    found["out"] = np.einsum("ne,neo->no", a, np.einsum("nk,eko->neo", b, p["experts"]))[None]
    return found


@pytest.mark.parametrize("chunks", [False, True])
def test_every_weight_and_every_layer_of_a_loop(chunks, monkeypatch):
    if chunks:  # few patches at a time
        monkeypatch.setattr(moments, "PATCHES", 1000)
    batches = [IMAGES[:4], (IMAGES[4:8],), (IMAGES[8:],)]
    found, want = ifjax.collect_moments(mixed, PARAMS, batches), read_by_hand(IMAGES)
    assert {*found} == {*want}
    for name, moment in found.items():
        assert moment.scatter.dtype == np.float64
        check(moment, want[name])


def test_large_means_leave_the_digits_of_the_variance():
    x = normal(0, 512, 8) + 1000
    apply = lambda p, x: x @ p  # noqa: E731
    [found] = ifjax.collect_moments(apply, normal(1, 8, 3), np.split(x, 4)).values()
    check(found, x[None], 1e-5)
    [one] = ifjax.batch_moments(apply, normal(1, 8, 3), x).values()
    check(jax.tree.map(np.asarray, one), x[None], 1e-4)


def test_a_weight_that_is_read_twice_has_the_moments_of_both():
    p, x = {"w": normal(0, 4, 4)}, normal(1, 10, 4)
    found = ifjax.collect_moments(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"], p, x)
    check(found["w"], np.concatenate([x, np.tanh(x.astype(np.float64) @ p["w"])])[None])


class Silent:
    """Values that print alike."""

    def __init__(self, scale):
        self.scale = scale

    def __repr__(self):
        return "Silent"


def test_static_inputs_that_print_alike_are_told_apart():
    p, x = {"w": normal(0, 4, 4)}, normal(1, 10, 4)
    apply = lambda p, x, by: (x * by.scale) @ p["w"]  # noqa: E731
    found = ifjax.collect_moments(apply, p, [(x, Silent(1.0)), (x, Silent(3.0))])
    check(found["w"], np.concatenate([x, 3 * x])[None])


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_devices_add_up():
    whole = ifjax.collect_moments(mixed, PARAMS, [IMAGES])
    want = read_by_hand(IMAGES)

    def own(p, x):
        return ifjax.batch_moments(mixed, p, (x,), "devices")

    parts = IMAGES.reshape(8, 2, *IMAGES.shape[1:])
    mapped = jax.pmap(own, "devices", in_axes=(None, 0))(PARAMS, parts)
    found = [jax.tree.map(lambda v: np.asarray(v[3]), mapped)]
    mesh = Mesh(np.array(jax.devices()[:8]), ("devices",))
    for check_vma in (True, False):
        specs = {"mesh": mesh, "in_specs": (P(), P("devices")), "out_specs": P()}
        sharded = jax.shard_map(own, **specs, check_vma=check_vma)
        found.append(jax.tree.map(np.asarray, jax.jit(sharded)(PARAMS, IMAGES)))
    split = jax.device_put(IMAGES, NamedSharding(mesh, P("devices")))
    found.append(ifjax.collect_moments(mixed, PARAMS, [split]))
    for one in found:
        assert {*one} == {*whole}
        for name in one:
            check(one[name], want[name], 1e-4)


def test_bad_calls_say_what_to_do():
    apply = lambda p, x: x @ p  # noqa: E731
    with pytest.raises(ValueError, match="at least one batch"):
        ifjax.collect_moments(apply, np.eye(2), [])
    with pytest.raises(ValueError, match="not finite"):
        ifjax.collect_moments(apply, np.eye(2, dtype=np.float32), np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="multiplies data with parameters"):
        ifjax.collect_moments(lambda p, x: x + p, np.ones(2, np.float32), np.ones((3, 2)))
