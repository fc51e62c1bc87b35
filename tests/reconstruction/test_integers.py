"""Groups that hold weights of integers."""

import jax
import numpy as np

import ifjax


def test_groups_that_hold_integers_are_selected_and_not_merged():
    """Also their kernels in floating point: the consumer is solved for on what is left of both."""
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(2, 6, 12))
    kernels[:, :, 6:] = 1.5 * kernels[:, :, :6] + 0.1 * kernels[:, :, 6:]  # worth merging
    scale = np.abs(kernels[0]).max(0) / 127
    params = {"up": np.round(kernels[0] / scale).astype(np.int8), "scale": scale}
    params |= {"gate": kernels[1], "down": rng.normal(size=(12, 4))}
    x = rng.normal(size=(64, 6))

    def apply(p, x):
        up = (x @ p["up"].astype(p["scale"].dtype)) * p["scale"]
        return (jax.nn.relu(x @ p["gate"]) * up) @ p["down"]

    with jax.enable_x64(True):
        spec = ifjax.trace(apply, params, x).spec(0.5, method="fuse", importance="l1")
        small, report = ifjax.compress(apply, params, spec, [x])
    small = jax.tree.map(np.asarray, small)
    [kept], [solved] = report.kept.values(), report.solved
    for name in ("up", "scale", "gate"):
        np.testing.assert_array_equal(small[name], params[name][..., kept])
    assert small["up"].dtype == np.int8
    assert ("up", "its entries are int8") in report.follows
    read = np.maximum(x @ small["gate"], 0) * ((x @ np.float64(small["up"])) * small["scale"])
    whole = np.maximum(x @ kernels[1], 0) * ((x @ np.float64(params["up"])) * scale)
    unit = solved.shrinkage * (read**2).sum() / 6
    right = read.T @ whole @ params["down"] + unit * params["down"][kept]
    want = np.linalg.solve(read.T @ read + unit * np.eye(6), right)
    np.testing.assert_allclose(small["down"], want, rtol=1e-5, atol=1e-6)
