"""The benchmark of the devices of speed takes away what it says, and nothing that matters else."""

import numpy as np
import pytest

import ifjax
from ifjax.fusion import merge, program
from ifjax.fusion.execution import distances, padding
from ifjax.parallel import threads
from tests import benchmark_module

PLACES = (
    (threads, "_THREADS"),
    (threads, "_PRODUCT"),
    (distances, "_SMALL"),
    (distances, "_form"),
    (distances, "_wide_tiles"),
    (merge, "_NEURONS"),
    (padding, "_COMPILED"),
    (program, "_keeps_mass"),
    (program, "levels_of"),
)


@pytest.fixture(scope="module")
def ablation():
    return benchmark_module.loaded("ablation")


@pytest.fixture(autouse=True)
def everything_again():
    """What the benchmark changes, changed back."""
    before = [getattr(module, name) for module, name in PLACES]
    yield
    for (module, name), value in zip(PLACES, before, strict=True):
        setattr(module, name, value)
    program._compiled.cache_clear()


def test_without_any_device_the_weights_are_the_same(ablation):
    params, spec = ablation.densenet({"solver": "exact"}, layers=3)
    want = ifjax.tree.leaves_by_path(ifjax.fuse_params(params, spec))
    for take_away in ablation.WITHOUT.values():
        take_away()
        program._compiled.cache_clear()
        got = ifjax.tree.leaves_by_path(ifjax.fuse_params(params, spec))
        for path, x in want.items():
            np.testing.assert_allclose(got[path], x, rtol=1e-4, atol=1e-4, err_msg=path)
