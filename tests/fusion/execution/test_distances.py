"""Distances by tiles of fixed size, by SciPy and by products, against SciPy in double precision."""

import math

import jax
import jax.monitoring
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ifjax.fusion.execution import distances as module
from ifjax.fusion.execution.distances import distances
from ifjax.fusion.execution.place import in_numpy

pytestmark = pytest.mark.promotes(
    ranks="within public functions",
    dtypes="within public functions",
)

NAMES = {1: "cityblock", 2: "euclidean", math.inf: "chebyshev", "cosine": "cosine"}
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *args, **kwargs: COMPILED.append(name) if "backend_compile" in name else None
)


def points(d, n, m, seed=0):
    """Columns of features, some of the targets among the sources, some zero."""
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(d, k)).astype(np.float32) for k in (n, m))
    y[:, :3] = x[:, :3]
    x[:, -1] = 0
    return x, y


def expected(x, y, p):
    options = {} if p in NAMES else {"p": p}
    found = cdist(np.float64(x.T), np.float64(y.T), NAMES.get(p, "minkowski"), **options)
    if p == "cosine":  # one between a row of zeros and any other, zero between two
        zero = (x == 0).all(0)[:, None] ^ (y == 0).all(0)
        found = np.where(zero, 1, np.nan_to_num(found))
    return found


@pytest.fixture(params=["tiles", "scipy"])
def path(request, monkeypatch):
    """What small problems are left to."""
    if request.param == "tiles":
        monkeypatch.setattr(module, "_SMALL", 1)
    return request.param


@pytest.mark.parametrize("p", [1, 1.5, 2, 3.0, math.inf, "cosine"])
@pytest.mark.parametrize("shape", [(5, 7, 4), (300, 30, 20), (20, 300, 260)])
@pytest.mark.usefixtures("path")
def test_the_distances_are_scipy_s(p, shape):
    x, y = points(*shape)
    found = distances(x, y, p)
    assert found.dtype == np.float32
    want = expected(x, y, p)
    np.testing.assert_allclose(found, want, rtol=2e-6, atol=2e-6 * want.max())
    assert (found[[0, 1, 2], [0, 1, 2]] == 0).all()


@pytest.mark.parametrize("p", [2, "cosine"])
def test_near_neighbours_lose_no_digits(p):
    """Their distance is the difference of numbers a thousand times larger."""
    x, _ = points(50, 8, 4)
    x[:, -1] = 1
    y = x * np.float32(1 + 1e-3) if p == 2 else x + np.float32(1e-3) * x[::-1]
    found, want = distances(x, y, p), expected(x, y, p)
    np.testing.assert_allclose(np.diag(found), np.diag(want), rtol=2e-3, atol=1e-12)


def test_double_precision_stays(path):
    x, y = (np.float64(z) for z in points(9, 7, 4))
    with jax.enable_x64(True):
        found = distances(x, y, 1)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected(x, y, 1), rtol=1e-13)


@pytest.mark.usefixtures("path")
def test_one_program_serves_every_size(monkeypatch):
    monkeypatch.setattr(module, "_SMALL", 1)
    distances(*points(5, 7, 4), 1)
    count = len(COMPILED)
    for shape in ((300, 30, 20), (4, 5, 6), (257, 300, 400)):
        distances(*points(*shape), 1)
    assert len(COMPILED) == count


@pytest.fixture
def form(monkeypatch):
    """Sets the form of tiles, and leaves small problems to them, too."""
    monkeypatch.setattr(module, "_SMALL", 1)

    def chosen(*sizes, **more):
        monkeypatch.setattr(module, "_form", lambda _: module._Form(*sizes, **more))

    return chosen


@pytest.mark.parametrize("p", [1, 3.0, math.inf])
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("shape", [(40, 37, 33), (70, 5, 6), (33, 100, 70), (9, 3, 4)])
def test_blocks_of_any_form_are_put_together(p, lanes, shape, form):
    """More lanes than blocks, as many, and some that are left over in the last call."""
    form(lanes, 16, 32, 8)
    x, y = points(*shape)
    want = expected(x, y, p)
    np.testing.assert_allclose(distances(x, y, p), want, rtol=3e-6, atol=2e-6 * want.max())


def test_more_calls_than_may_wait_are_finished_in_order(form):
    form(2, 8, 8, 8, wide=True)
    x, y = points(30, 33, 17)
    np.testing.assert_allclose(distances(x, y, 1), expected(x, y, 1), rtol=3e-6, atol=1e-5)


@pytest.mark.parametrize(("differences", "platform"), [(2**40, "cpu"), (0, "gpu"), (2**40, "gpu")])
def test_large_problems_and_accelerators_have_larger_tiles(
    differences, platform, form, monkeypatch
):
    monkeypatch.setattr(module, "default_platform", lambda: platform)
    small, large = module._Form(8, 256, 128, 16, wide=True), module._form(differences)
    assert large.side * large.side * large.depth > small.side * small.side * small.depth
    assert large.wide == (platform == "cpu")
    form(*large)
    x, y = points(40, 37, 33)
    for p in (1, 3.0):
        np.testing.assert_allclose(distances(x, y, p), expected(x, y, p), rtol=3e-6)


def test_the_form_is_that_of_the_device_on_which_arrays_are_made(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not module._form(0).wide
    with jax.default_device(jax.devices("cpu")[0]):
        assert module._form(0).wide


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_of_two_precisions_the_wider_one_is_computed_in(p):
    x, y = points(9, 7, 4)
    for u, v in ((x, np.float64(y)), (np.float64(x), y)):
        with jax.enable_x64(True):
            found = distances(u, v, p)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected(x, y, p), rtol=1e-13, atol=1e-13)


def test_constants_of_an_outer_program_are_told_apart_as_well(monkeypatch):
    """A function under `jax.jit` that closes over parameters fuses them while it is traced."""
    monkeypatch.setattr(module, "_SMALL", 1)
    x, y = points(5, 7, 4)

    @jax.jit
    def outer(z):
        with in_numpy():
            return z + distances(x, y, 1)

    np.testing.assert_allclose(outer(np.float32(0)), expected(x, y, 1), rtol=2e-6, atol=1e-6)
