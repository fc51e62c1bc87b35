"""Gram matrices and what is solved with them, spread over a mesh: equal, and nowhere whole."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax.activations import moments
from ifjax.parallel import matrices
from ifjax.reconstruction import choice, elimination, events, precision, ridge_on_device

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices"),
    pytest.mark.filterwarnings("ignore:Some donated buffers"),
]
COLLECTIVE = re.compile(r"= (.*?) (?:all-\w+|collective-permute|reduce-scatter)(?:-start)?\(")


def normal(seed, *shape):
    found = np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
    return found.astype(np.float32)


@pytest.fixture
def mesh(monkeypatch):
    monkeypatch.setattr(matrices, "PANEL", 16)
    monkeypatch.setattr(choice, "CANDIDATES", 16)
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "model"))


def test_inverses_are_those_of_numpy_in_double_precision(mesh):
    x = np.random.default_rng(0).normal(size=(2, 90, 72)).astype(np.float32)
    gram = np.einsum("bni,bnj->bij", x, x)  # the last panel is half a one
    there = matrices.placed(gram, mesh)
    assert there.sharding.shard_shape(there.shape) == (2, 18, 36)
    inverse = jax.jit(functools.partial(matrices.inverse, mesh=mesh))
    found, want = inverse(there), np.linalg.inv(gram.astype(np.float64))
    assert found.sharding == there.sharding
    np.testing.assert_allclose(found, want, atol=2e-5 * np.abs(want).max())
    gram[1, 40, 40] = -1  # not positive definite
    assert not np.isfinite(inverse(matrices.placed(gram, mesh))[1]).any()


def test_matrices_lie_over_all_axes_that_divide(mesh):
    of = lambda *shape: matrices.spread(mesh, shape).shard_shape(shape)  # noqa: E731
    assert of(1, 8, 8) == (1, 2, 4)
    assert of(1, 6, 8) == (1, 3, 2)
    assert of(1, 7, 7) == (1, 7, 7)
    assert matrices.mesh_of(np.ones(2), jnp.ones(2)) is None


@pytest.fixture
def programs(monkeypatch):
    """Calls of what is compiled for large sums."""
    calls = {}

    def of(x):
        on_mesh = matrices.mesh_of(x) is not None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if on_mesh else x

    def noted(module, name):
        function = getattr(module, name)

        def call(*args):
            structs = jax.tree.map(of, args)
            calls[name, str(structs)] = functools.partial(function.lower, *structs)
            return function(*args)

        monkeypatch.setattr(module, name, call)

    for module, *names in (
        (moments, "_moments", "_channel_moments"),
        (elimination, "_begun", "_round"),
        (ridge_on_device, "_solved", "_errors"),
        (events, "_taken_to"),
    ):
        for name in names:
            noted(module, name)
    return calls


def collected(lower):
    """Shapes of what collectives of a program give, without axes of one."""
    found = set()
    for shape in COLLECTIVE.findall(lower().compile().as_text()):
        for sizes in re.findall(r"\w+\[([\d,]*)\]", shape):
            found.add(tuple(n for n in map(int, filter(None, sizes.split(","))) if n > 1))
    return found


@pytest.mark.usefixtures("unchecked")
def test_no_gram_matrix_and_no_leaf_is_whole_on_a_device(mesh, programs, monkeypatch):
    params = {"up": normal(0, 40, 96), "down": normal(1, 96, 20)}
    apply = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]  # noqa: E731
    x = normal(3, 4, 160, 40) * 12
    spec = ifjax.trace(apply, params, x[0]).spec(0.5)
    one, report = ifjax.compress(apply, params, spec, [*x])
    monkeypatch.setattr(precision, "stays", lambda columns: True)
    programs.clear()
    places = {"up": P("data", "model"), "down": P("model", "data")}
    there = {n: jax.device_put(w, NamedSharding(mesh, places[n])) for n, w in params.items()}
    batches = [jax.device_put(part, NamedSharding(mesh, P("data"))) for part in x]
    found, other = ifjax.compress(apply, there, spec, batches)
    np.testing.assert_array_equal(report.kept["up"], other.kept["up"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, found)
    assert {n: w.sharding.spec for n, w in found.items()} == places
    names = {name for name, _ in programs}
    assert names >= {"_moments", "_channel_moments", "_begun", "_round", "_solved", "_errors"}
    whole = {(96, 96), (48, 48), (40, 96), (96, 20), (40, 48), (48, 20)}
    for (name, args), lower in programs.items():
        assert not whole & collected(lower), (name, args)


def test_sums_over_a_mesh_are_those_of_one_device(mesh):
    x, t = normal(0, 64, 96), normal(1, 1, 64, 20)
    dot = jax.make_jaxpr(jnp.matmul)(x, np.ones((96, 20), np.float32)).eqns[0]
    form = moments.normal_form(dot, 0)
    one = moments.moments((form,), ((96, 20),), (jnp.asarray(x),), jnp.asarray(t))
    placed = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))  # noqa: E731
    there = placed(x, "data", "model"), placed(t, None, "data")
    found = moments.moments((form,), ((96, 20),), there[:1], there[1])
    assert found.gram.sharding.shard_shape(found.gram.shape) == (1, 24, 48)
    assert found.cross.sharding.shard_shape(found.cross.shape) == (1, 24, 10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, found)
    want = x.astype(np.float64).T @ x
    np.testing.assert_allclose(found.gram[0], want, atol=1e-5 * np.abs(want).max())
