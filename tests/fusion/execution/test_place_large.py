"""Groups so large that an accelerator fuses them: one program, on what lies there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.fusion import program
from ifjax.fusion.execution import place
from ifjax.fusion.program import compiled


def _network() -> tuple[dict[str, jax.Array], ifjax.DependencyGraph]:
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"w1": jax.random.normal(keys[0], (6, 8)), "w2": jax.random.normal(keys[1], (8, 3))}
    graph = ifjax.trace(lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"], params, jnp.ones((1, 6)))
    return params, graph


def test_large_groups_stay_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    params, graph = _network()
    spec = graph.spec(0.5, solver="sinkhorn_kernel", epsilon=0.1)
    want, maps = ifjax.fuse_params(params, spec), ifjax.transport_maps(params, spec)
    other = graph.spec(0.5, solver="sinkhorn_kernel", epsilon=0.1)  # a program of its own

    def fetched(tree: object) -> None:
        raise AssertionError("parameters were taken to the host")

    monkeypatch.setattr(program, "LARGE", 1)
    compiled(other).__dict__.pop("is_large", None)
    monkeypatch.setattr(place, "_on_accelerator", lambda trees: True)
    for module in ("fuse", "transport_maps"):
        monkeypatch.setattr(f"ifjax.fusion.{module}.to_host", fetched)
    got, found = ifjax.fuse_params(params, other), ifjax.transport_maps(params, other)
    again = ifjax.apply_maps(params, other, found)
    np.testing.assert_allclose(found["w1"].map, maps["w1"].map, atol=1e-6)
    for path, x in want.items():
        np.testing.assert_allclose(got[path], x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(again[path], x, rtol=1e-4, atol=1e-5)
    compiled(other).__dict__.pop("is_large")


def test_what_is_large() -> None:
    struct = jax.ShapeDtypeStruct
    shapes = {"w1": struct((4096, 14_336), "float32"), "w2": struct((14_336, 4096), "float32")}
    apply_fn = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]  # noqa: E731
    graph = ifjax.trace(apply_fn, shapes, struct((1, 4096), "float32"))
    found = {
        solver: compiled(graph.spec(0.5, solver=solver)).is_large
        for solver in ("sinkhorn", "sinkhorn_kernel", "exact")
    }
    assert found == {"sinkhorn": True, "sinkhorn_kernel": True, "exact": False}
    assert not compiled(graph.spec(0.5, method="prune")).is_large
    _, small = _network()
    assert not compiled(small.spec(0.5)).is_large


def test_arrays_of_a_cpu_or_of_numpy_are_on_no_accelerator() -> None:
    assert not place._on_accelerator(({"w": jnp.ones(2)}, np.ones(3), None))
    assert not place._on_accelerator(np.ones(3))
