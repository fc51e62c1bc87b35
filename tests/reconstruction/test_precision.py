"""What stays on an accelerator, in single precision, against the host's in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.activations.moments import Moments, added, summed
from ifjax.reconstruction import choice, precision
from ifjax.reconstruction.ridge import fit, ridge

pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers")


def test_large_sums_stay_where_the_default_device_is_no_cpu(monkeypatch):
    assert not precision.stays(10**6)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert precision.stays(2048)
    assert not precision.stays(2047)
    with jax.default_device(jax.devices("cpu")[0]):
        assert not precision.stays(10**6)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def problem(n, blocks=1):
    """Activations that have a mean and directions in common, and weights."""
    common = np.maximum(normal(1, blocks, n, 12), 0)
    gram = common @ common.swapaxes(1, 2) / 12
    gram[:, range(n), range(n)] += np.random.default_rng(2).uniform(0, 0.3, (blocks, n))
    return gram, normal(3, blocks, n, 10)


@pytest.mark.parametrize("direction", ["backward", "forward"])
@pytest.mark.parametrize(("n", "blocks", "entries"), [(100, 1, 1), (64, 2, 4)])
def test_the_same_neurons_are_chosen(direction, n, blocks, entries, monkeypatch):
    gram, weights = problem(n, blocks)
    monkeypatch.setattr(choice, "CANDIDATES", 32)
    order = np.random.default_rng(4).permutation(n)  # the neurons need not lie in order
    units, kept = np.tile(order, (blocks, 1)), n // entries // 4
    choose = choice.kept_neurons(direction)
    want = choose(gram, weights, units, entries, kept)
    got = choose(jnp.asarray(gram, jnp.float32), weights, units, entries, kept)
    same = np.mean([len({*a} & {*b}) / kept for a, b in zip(got, want, strict=True)])
    assert got.shape == want.shape
    assert same > 0.95


def test_neurons_of_several_columns_go_to_the_host():
    gram, weights = problem(40)
    units = np.arange(40)[None] // 2
    want = choice.backward_elimination(gram, weights, units, 1, 10)
    got = choice.backward_elimination(jnp.asarray(gram, jnp.float32), weights, units, 1, 10)
    np.testing.assert_array_equal(got, want)


def test_single_precision_is_enough_for_many_columns(monkeypatch):
    gram, weights = problem(160)
    units = np.arange(160)[None]
    monkeypatch.setattr(choice, "CANDIDATES", 32)
    found = []
    for single in (1000, 100):
        monkeypatch.setattr(choice, "SINGLE", single)
        for direction in ("backward", "forward"):
            [kept] = choice.kept_neurons(direction)(gram, weights, units, 1, 40)
            rest = gram[0] - gram[0][:, kept] @ np.linalg.solve(
                gram[0][np.ix_(kept, kept)] + 1e-6 * np.eye(40), gram[0][kept]
            )
            found.append(np.sum(weights[0] * (rest @ weights[0])))
    np.testing.assert_allclose(found[2:], found[:2], rtol=1e-3)


def sums(seed, device):
    x, t = normal(seed, 2, 200, 30) + 0.5, normal(seed + 1, 2, 200, 4)
    x[:, :, 20:] = x[:, :, :10] + 0.1 * x[:, :, 20:]
    t = t + x[..., :4] * 3
    parts = []
    for a in range(0, 200, 50):
        x_, t_ = x[:, a : a + 50], t[:, a : a + 50]
        xt, square = x_.swapaxes(1, 2), (t_**2).sum(1)
        parts.append(Moments(50.0, x_.sum(1), xt @ x_, xt @ t_, t_.sum(1), square))
    total = None
    for part in parts:
        if device:
            part = jax.tree.map(jnp.float32, part)
        total = summed(total, part) if device else added(total, part)
    return total


@pytest.mark.parametrize("intercept", [False, True])
def test_solutions_and_errors_are_those_of_the_host(intercept):
    start = normal(9, 2, 30, 4)
    host, device = (best_of(start, intercept, on) for on in (False, True))
    assert host[0] == device[0]
    for a, b in zip(host[1:], device[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def best_of(start, intercept, device):
    found = fit(sums(1, device), sums(5, device), start, intercept)
    assert isinstance(found.weights, jax.Array) == device
    offsets = () if found.offsets is None else (found.offsets,)
    errors = found.before, found.after, found.held_before, found.held_after
    return found.shrinkage, *errors, found.weights, *offsets


def test_what_reads_nothing_stays_and_what_is_singular_is_shrunk_further():
    zero = jax.tree.map(jnp.zeros_like, sums(1, True))._replace(count=jnp.float32(8))
    start = normal(1, 2, 30, 4)
    solved, _ = ridge(zero, start, 0.01, False)
    np.testing.assert_allclose(solved, start, rtol=1e-6)
    ones = jnp.ones((2, 30, 30))
    solved, _ = ridge(sums(1, True)._replace(gram=ones), start, 1e-12, False)
    assert np.isfinite(solved).all()


def test_compress_is_the_same_either_way(monkeypatch):
    params = {"a": normal(1, 8, 40), "b": normal(2, 40, 12), "bias": normal(3, 12)}
    params = jax.tree.map(np.float32, params | {"c": normal(4, 12, 5)})

    def apply(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"] + p["bias"]) @ p["c"]

    x = normal(5, 256, 8).astype(np.float32)
    spec = ifjax.trace(apply, params, x).spec(0.5)
    small, report = ifjax.compress(apply, params, spec, [x])
    asked = []
    monkeypatch.setattr(precision, "stays", lambda columns: not asked.append(columns))
    also, other = ifjax.compress(apply, params, spec, [x])
    assert {20, 40} <= {*asked}
    for name in report.kept:
        np.testing.assert_array_equal(report.kept[name], other.kept[name])
    for a, b in zip(report.solved, other.solved, strict=True):
        assert (a.sites, a.shrinkage, a.offset) == (b.sites, b.shrinkage, b.offset)
        np.testing.assert_allclose(
            [a.before, a.after, a.held_after], [b.before, b.after, b.held_after], rtol=1e-3
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-3, 2e-4), small, also)
