"""Folding and refitting of batch norms, against loops in numpy."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import ifjax
from ifjax.fusion import batch_norm
from ifjax.fusion.execution.merging import fold
from ifjax.fusion.merge import matrices
from ifjax.structure.structure import BatchNorm
from tests import reference

EPS = 1e-2
WIDTHS = (6, 8)


def norm(i=0, bias=True, eps=EPS):
    return BatchNorm(
        kernel=f"conv{i}.weight",
        axis=0,
        bias=f"conv{i}.bias" if bias else None,
        scale=f"bn{i}.weight",
        offset=f"bn{i}.bias",
        mean=f"bn{i}.running_mean",
        variance=f"bn{i}.running_var",
        eps=eps,
    )


def leaves(seed=0):
    return {k: jnp.asarray(v) for k, v in reference.init("vgg", seed, WIDTHS).items()}


def spread_loop(kernel, scale):
    """Covariances |g_i g_k| rho_ik, with rho the cosine of the kernels; float64."""
    rows = np.asarray(kernel, np.float64).reshape(len(kernel), -1)
    scale = np.abs(np.asarray(scale, np.float64))
    n = len(rows)
    covariance = np.zeros((n, n))
    for i in range(n):
        for k in range(n):
            lengths = np.sqrt((rows[i] ** 2).sum() * (rows[k] ** 2).sum())
            rho = rows[i] @ rows[k] / lengths if lengths else 0
            covariance[i, k] = scale[i] * scale[k] * rho
    return covariance


def test_the_norms_of_the_network_are_found():
    single = float(np.float32(EPS))  # as the function adds it
    expected = (norm(0, eps=single), norm(1, bias=False, eps=single))
    assert reference.trace("vgg", leaves(), EPS).structure.norms == expected


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_folding_equals_a_float64_loop(eps):
    before = leaves()
    folded = fold(before, [norm(eps=eps)])
    for i in range(WIDTHS[0]):
        scale, variance = (np.float64(before[f"bn0.{k}"][i]) for k in ("weight", "running_var"))
        slope = scale / np.sqrt(variance + eps)
        for path in ("conv0.weight", "conv0.bias", "bn0.running_mean"):
            expected = slope * np.asarray(before[path][i], np.float64)
            np.testing.assert_allclose(folded[path][i], expected, rtol=1e-6, err_msg=path)
    changed = {path for path in before if np.any(folded[path] != before[path])}
    assert changed == {"conv0.weight", "conv0.bias", "bn0.running_mean"}


def test_folding_leaves_its_argument_alone():
    before = leaves()
    copies = {path: np.array(x) for path, x in before.items()}
    fold(before, [norm()])
    for path, x in copies.items():
        np.testing.assert_array_equal(before[path], x)


@pytest.mark.parametrize("axis", [0, 3])
def test_the_kernel_may_have_its_outputs_on_any_axis(axis):
    before = leaves()
    moved = {**before, "conv0.weight": jnp.moveaxis(before["conv0.weight"], 0, axis)}
    record = BatchNorm(**{**vars(norm()), "axis": axis})
    got = fold(moved, [record])["conv0.weight"]
    expected = fold(before, [norm()])["conv0.weight"]
    np.testing.assert_array_equal(jnp.moveaxis(got, axis, 0), expected)
    spread = batch_norm.spread(got, before["bn0.weight"], axis)
    ones = jnp.ones(6)
    scale, variance = batch_norm.refit(spread, ones, axis, EPS)
    np.testing.assert_allclose(scale, jnp.abs(before["bn0.weight"]), rtol=1e-6)
    np.testing.assert_allclose(variance, before["bn0.weight"] ** 2 - EPS, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), merge=st.sampled_from(["pushforward", "barycentric"]))
def test_refit_equals_the_double_sum_over_neurons(seed, merge):
    """s_j^2 = sum_ik A_ji A_jk |g_i g_k| rho_ik."""
    rng = np.random.default_rng(seed)
    n, m = 5, 3
    kernel = jnp.asarray(rng.normal(size=(n, 2, 3)), jnp.float32)
    scale = jnp.asarray(rng.normal(size=n), jnp.float32)
    plan = jnp.asarray(rng.uniform(size=(n, m)), jnp.float32)
    matrix = matrices(plan)[merge]
    rows = jnp.tensordot(matrix, batch_norm.spread(kernel, jnp.abs(scale), 0), 1)
    alpha = jnp.asarray(rng.uniform(0.5, 2, m) * rng.choice([-1, 1], m), jnp.float32)
    got, variance = batch_norm.refit(rows, alpha, 0, 1e-5)
    covariance = spread_loop(kernel, scale)
    for j in range(m):
        expected = sum(
            float(matrix[j, i]) * float(matrix[j, k]) * covariance[i, k]
            for i in range(n)
            for k in range(n)
        )
        before = max(expected / float(alpha[j]) ** 2, 1e-5)
        np.testing.assert_allclose(got[j] / alpha[j], np.sqrt(before), rtol=1e-4)
        np.testing.assert_allclose(variance[j], before - 1e-5, rtol=1e-4, atol=1e-6)
    assert np.all(variance >= 0)


@pytest.mark.parametrize("merge", ["reference", "preserving"])
def test_fused_norms_have_the_scale_and_variance_of_the_double_sum(merge):
    params = leaves()
    graph = reference.trace("vgg", params, EPS)
    spec = graph.spec(0.5, merge=merge, include=["conv0*"])
    (found,) = ifjax.transport_maps(params, spec).values()
    small = ifjax.apply_maps(params, spec, {"conv0.weight": found})
    by = matrices(found.map)["pushforward" if merge == "reference" else "barycentric"]
    slope = params["bn0.weight"] / np.sqrt(params["bn0.running_var"] + EPS)
    folded = params["conv0.weight"] * slope[:, None, None, None]
    covariance = spread_loop(folded, params["bn0.weight"])
    squared = np.einsum("ji,jk,ik->j", by, by, covariance)
    assert np.all(squared > 2 * EPS)
    alpha = by @ np.abs(slope) * np.sign(slope[found.targets])
    assert np.any(alpha < 0)
    np.testing.assert_allclose(small["bn0.weight"], np.sqrt(squared) * np.sign(alpha), rtol=1e-5)
    np.testing.assert_allclose(small["bn0.running_var"], squared / alpha**2 - EPS, rtol=1e-5)
    np.testing.assert_allclose(small["bn0.bias"], by @ params["bn0.bias"], atol=1e-6)
    mean = by @ (slope * params["bn0.running_mean"]) / alpha
    np.testing.assert_allclose(small["bn0.running_mean"], mean, atol=1e-6)
    kernel = np.einsum("ji,i...->j...", by, folded) / alpha[:, None, None, None]
    np.testing.assert_allclose(small["conv0.weight"], kernel, atol=1e-6)


@pytest.mark.parametrize("merge", ["reference", "preserving"])
def test_channels_that_are_equal_keep_kernel_mean_and_variance(merge):
    """The preserving merge keeps scale and offset too, the reference's sums them."""
    params = leaves()
    copies = jnp.arange(6) % 3
    for path in ("conv0.weight", "conv0.bias", *(f"bn0.{k}" for k in reference.NORMS)):
        params[path] = params[path][copies]
    spec = reference.trace("vgg", params, EPS).spec({"conv0*": 0.5}, merge=merge, solver="nearest")
    small = ifjax.fuse_params(params, spec, {"conv0.weight": np.arange(6)[::-1]})
    for path in ("conv0.weight", "conv0.bias", "bn0.running_mean", "bn0.running_var"):
        np.testing.assert_allclose(small[path], params[path][:3], rtol=1e-5, atol=1e-6)
    for path in ("bn0.weight", "bn0.bias"):
        factor = 2 if merge == "reference" else 1
        np.testing.assert_allclose(small[path], factor * params[path][:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("merge", ["reference", "preserving"])
def test_eval_mode_of_the_refit_norm_is_that_of_the_folded_network(merge):
    """The small network equals the one with kernels A W_f and offsets A (b - a mu), norms gone."""
    params, x = leaves(), reference.inputs("vgg", 1)
    graph = reference.trace("vgg", params, EPS)
    spec = graph.spec(0.5, merge=merge)
    small = ifjax.fuse_params(params, spec)
    got = jax.jit(ifjax.shrink(reference.apply("vgg", EPS), spec))(small, x)
    plain = {}
    for path, value in reference.folded(graph.structure, small).items():
        layer = path.split(".")[0]
        if not layer.startswith("bn"):
            plain[path] = value.astype(np.float32)
            continue
        n = len(value)
        identity = (np.ones(n), value, np.zeros(n), np.ones(n))
        for key, vector in zip(reference.NORMS, identity, strict=True):
            plain[f"{layer}.{key}"] = vector.astype(np.float32)
    np.testing.assert_allclose(got, jax.jit(reference.apply("vgg", 0.0))(plain, x), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-2])
def test_the_slope_is_alpha_whatever_the_variance_is_rounded_to(eps, dtype):
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)), jnp.float32)
    rows = rows * jnp.asarray([0, 1e-7, 1e-3, 0.1, 1, 30, 1e4])[:, None]
    alpha = jnp.asarray([1.0, 1, -1, 2, 1, 0.1, 3])
    scale, variance = batch_norm.refit(rows, alpha, 0, eps, dtype)
    assert np.all(variance >= 0)
    assert np.all(np.isfinite(scale))
    np.testing.assert_array_equal(variance, variance.astype(dtype).astype(jnp.float32))
    np.testing.assert_allclose(scale / np.sqrt(variance + eps), alpha, rtol=1e-6)


def test_channels_whose_scale_is_zero_and_kernels_of_zero_make_no_nan():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32).at[1].set(0)
    scale = jnp.asarray([0.0, 2.0, -1.0, 0.0])
    spread = batch_norm.spread(kernel, scale, 0)
    np.testing.assert_allclose(jnp.linalg.norm(spread, axis=1), [0, 0, 1, 0], atol=1e-6)
    for eps in (0.0, 1e-5):
        ones = jnp.ones(4)
        assert all(np.all(np.isfinite(x)) for x in batch_norm.refit(spread, ones, 0, eps))
        size = batch_norm.slope(spread, scale, ones, 0, eps)
        np.testing.assert_allclose(size, np.array([0, 0, 1, 0]) / np.sqrt(1 + eps), rtol=1e-6)
        found = batch_norm.unfold({"k": kernel, "m": scale}, norm_of_k(eps), spread, scale)
        assert all(np.all(np.isfinite(x)) for x in found.values())
        np.testing.assert_allclose(found["k"], kernel / jnp.asarray([[1.0], [2.0], [-1.0], [1.0]]))


def norm_of_k(eps):
    return BatchNorm("k", 0, None, "s", None, "m", "v", eps)


def test_gradients_through_a_dead_channel_are_finite():
    def apply(p, x):
        h = (x @ p["w"] - p["m"]) / jnp.sqrt(p["v"] + 1e-5) * p["g"] + p["b"]
        return jax.nn.relu(h) @ p["o"]

    rng = np.random.default_rng(0)
    p = {"w": rng.normal(size=(4, 6)), "o": rng.normal(size=(6, 3)), "v": np.ones(6)}
    p |= {"m": np.zeros(6), "b": np.ones(6), "g": np.array([1.0, 0, 1, 2, 1, 3])}
    p = {
        k: jnp.asarray(x, jnp.float32).at[..., 3].set(0) if k == "w" else jnp.asarray(x, "f4")
        for k, x in p.items()
    }
    spec = ifjax.trace(apply, p, jnp.ones((1, 4))).spec(0.5, solver="nearest")
    assert spec.structure.norms

    def loss(p):
        return ifjax.shrink(apply, spec)(ifjax.fuse_params(p, spec), jnp.ones((2, 4))).sum()

    assert all(bool(jnp.isfinite(x).all()) for x in jax.grad(loss)(p).values())
