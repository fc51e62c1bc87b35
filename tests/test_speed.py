"""The torch peer of benchmarks/speed.py does the same work, and the check of it can fail."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import ifjax

pytest.importorskip("torch", reason="needs torch: pip install 'ifjax[torch]'")
pytest.importorskip("ot", reason="needs POT: pip install 'ifjax[exact]'")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def speed():
    """The benchmark, which finds its neighbours beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("speed", BENCHMARKS / "speed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def test_the_fused_weights_are_the_peers(speed):
    """Its own targets and plans, nothing given."""
    import torch_fusion

    leaves, spec = speed.network("vgg11", "sequential", "exact", width=1 / 8)
    todo = speed.work(spec)
    params = speed.tree(leaves)
    want, costs = torch_fusion.fuse(torch_fusion.to_torch(leaves), todo, "sequential")
    small = ifjax.tree.leaves_by_path(ifjax.fuse_params(params, spec))
    small = torch_fusion.to_torch({path: np.asarray(x) for path, x in small.items()})
    got = torch_fusion.fold(small, todo["norms"])
    assert got.keys() == want.keys()
    for path, x in want.items():
        np.testing.assert_allclose(got[path], x, rtol=0, atol=1e-5 * float(x.abs().max()))
    maps = ifjax.transport_maps(params, spec)
    for name, cost in costs.items():
        np.testing.assert_allclose(maps[name].cost, cost, rtol=1e-5)
    found = speed.check(leaves, spec)
    assert found["weights / torch - 1"] < 1e-5
    np.testing.assert_allclose(found["cost / exact"], 1, rtol=1e-5)


def test_the_check_fails_where_the_peer_does_something_else(speed, monkeypatch):
    leaves, spec = speed.network("vgg11", "sequential", "exact", width=1 / 8)
    todo = speed.work(spec)
    unmerged = {**todo, "groups": [{**g, "consumers": g["consumers"][:-1]} for g in todo["groups"]]}
    monkeypatch.setattr(speed, "work", lambda spec: unmerged)
    with pytest.raises((ValueError, RuntimeError)):
        speed.check(leaves, spec)
    reordered = {**todo, "groups": todo["groups"][::-1]}
    monkeypatch.setattr(speed, "work", lambda spec: reordered)
    with pytest.raises(ValueError, match=r"highest score|away from the peer's"):
        speed.check(leaves, spec)


def test_groups_that_the_peer_does_not_know_are_refused(speed):
    """A kernel that lies the other way round."""
    kernel = np.ones((4, 6), np.float32)
    params, x = {"a": kernel, "b": kernel}, np.ones((2, 4), np.float32)
    turned = ifjax.trace(lambda p, x: (x @ p["a"]) @ p["b"].T, params, x)
    with pytest.raises(ValueError, match="the peer knows no consumer"):
        speed.work(turned.spec(0.5))
