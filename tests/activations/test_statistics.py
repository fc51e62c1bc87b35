"""Statistics of networks on data, against loops over examples in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax import Stats
from tests import reference

WIDTHS = {"mlp": (8, 6), "vgg": (6, 8)}
SHAPE = {"mlp": (6,), "vgg": (3, 8, 8)}
CLASSES = {"mlp": 5, "vgg": 10}
EPS = 1e-2


def loss(outputs, targets):
    """Mean cross-entropy."""
    log = jax.nn.log_softmax(outputs)
    return -jnp.mean(jnp.take_along_axis(log, targets[:, None], 1))


def init(model, dtype=np.float32):
    return reference.init(model, 0, WIDTHS[model], dtype)


def data(model, count, dtype=np.float32):
    rng = np.random.default_rng(7)
    images = rng.normal(size=(count, *SHAPE[model])).astype(dtype)
    return images, rng.integers(0, CLASSES[model], count)


@functools.cache
def graph(model):
    return reference.trace(model, init(model), EPS)


@functools.cache
def apply(model):
    return reference.apply(model, EPS)


@functools.cache
def collected(model, metrics=("taylor", "fisher", "chip")):
    x, y = data(model, 6)
    batches = [((x,), y)]
    return ifjax.collect_stats(
        apply(model), init(model), graph(model), batches, loss_fn=loss, metrics=metrics
    )


def masked(params, group, mask):
    """A mask on the axes that consume a group."""
    result = dict(params)
    for m in group.members:
        if m.role == "consumer":
            shape = [-1 if i == m.axis else 1 for i in range(params[m.path].ndim)]
            result[m.path] = result[m.path] * mask.reshape(shape)
    return result


# Each kind of statistics ------------------------------------------------------------------------


@pytest.mark.parametrize("model", SHAPE)
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_gradients_are_those_of_the_mean_loss(model):
    """Scaling what a neuron's consumers read by 1 + h changes the loss by h times its score."""
    stats, (x, y) = collected(model), data(model, 6, np.float64)
    with jax.enable_x64(True):
        params = init(model, np.float64)
        mean_loss = jax.jit(lambda p: loss(apply(model)(p, x), y))
        for group in graph(model).groups:
            for i in range(group.size):
                ahead, behind = (
                    mean_loss(masked(params, group, 1 + h * np.eye(group.size)[i]))
                    for h in (1e-5, -1e-5)
                )
                (m,) = (m for m in group.members if m.role == "consumer")
                product = np.asarray(stats.gradients[m.path], np.float64) * params[m.path]
                got = np.moveaxis(product, m.axis, 0)[i].sum() / float(stats.count)
                np.testing.assert_allclose(got, (ahead - behind) / 2e-5, rtol=1e-3, atol=1e-6)
    assert float(stats.count) == 6


@pytest.mark.parametrize("model", SHAPE)
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_fisher_is_the_sum_of_squares_of_every_example_s_derivative(model):
    stats, (x, y) = collected(model), data(model, 6, np.float64)
    with jax.enable_x64(True):
        params = init(model, np.float64)

        @jax.jit
        def derivatives(x, y):
            def masked_loss(masks):
                p = params
                for group in graph(model).groups:
                    p = masked(p, group, masks[group.name])
                return loss(apply(model)(p, x), y)

            return jax.grad(masked_loss)({g.name: jnp.ones(g.size) for g in graph(model).groups})

        expected = {g.name: np.zeros(g.size) for g in graph(model).groups}
        for b in range(6):
            for name, value in derivatives(x[b : b + 1], y[b : b + 1]).items():
                expected[name] += np.asarray(value) ** 2
    for name, value in expected.items():
        np.testing.assert_allclose(stats.fisher[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_fisher_of_queries_and_keys_counts_their_biases():
    """Nothing consumes the dimensions of a head: the mask is on both factors of the scores."""
    rng = np.random.default_rng(3)
    shapes = {"q": (3, 2, 4), "k": (3, 2, 4), "v": (3, 5), "b": (2, 4), "c": (2, 4)}
    x, y = rng.normal(size=(6, 5, 3)), rng.integers(0, 5, 6)
    with jax.enable_x64(True):
        p = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}

        def attend(p, x, mask=1.0):
            q, k = (jnp.einsum("btc,chd->bthd", x, p[w]) + p[b] for w, b in ("qb", "kc"))
            weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q * mask, k))
            return jnp.einsum("bhqk,bkc->bc", weights, x @ p["v"])

        found = ifjax.trace(lambda p, x: attend(p, x), p, x)
        (group,) = (g for g in found.groups if g.kind == "head_dim")
        assert group.batch == (2,)
        batches = [((jnp.asarray(x),), jnp.asarray(y))]
        stats = ifjax.collect_stats(
            lambda p, x: attend(p, x), p, found, batches, loss_fn=loss, metrics=["fisher"]
        )

        @jax.jit
        def derivative(x, y):
            return jax.grad(lambda mask: loss(attend(p, x, mask), y))(jnp.ones((2, 4)))

        expected = sum(np.square(derivative(x[i : i + 1], y[i : i + 1])) for i in range(6))
    np.testing.assert_allclose(stats.fisher[group.name], 4 * expected, rtol=1e-9)


def drops(maps):
    """Of the nuclear norm, without one row after the other."""
    total, result = np.linalg.norm(maps, "nuc"), []
    for i in range(len(maps)):
        rest = maps.copy()
        rest[i] = 0
        result.append(total - np.linalg.norm(rest, "nuc"))
    return np.array(result)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_chip_is_the_mean_drop_of_the_nuclear_norm_of_every_example_s_maps():
    """The group of conv0 is read by conv1, after pooling: 4 x 4 positions."""
    stats, (x, _), p = collected("vgg"), data("vgg", 6), init("vgg")
    h = reference._norm(p, "bn0", reference._conv(p, "conv0", x), EPS)
    maps = np.asarray(reference._pool(jax.nn.relu(h)), np.float64)
    expected = sum(drops(example.reshape(6, 16)) for example in maps)
    np.testing.assert_allclose(stats.chip["conv0.weight"], expected, rtol=1e-4)
    got = ifjax.neuron_scores(
        p, graph("vgg").spec(0.5, importance="chip", normalization="none"), stats
    )
    np.testing.assert_allclose(got["conv0.weight"], expected / 6, rtol=1e-4)


@pytest.mark.parametrize(("model", "name"), [("mlp", "fc0.weight"), ("vgg", "conv1.weight")])
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_chip_of_one_value_per_example_is_over_the_examples(model, name):
    stats, (x, _), p = collected(model), data(model, 6), init(model)
    if model == "mlp":
        maps = np.maximum(x @ p["fc0.weight"].T + p["fc0.bias"], 0).T
    else:
        network = {**p, "fc.weight": np.eye(8, dtype=np.float32), "fc.bias": np.zeros(8)}
        maps = np.asarray(apply(model)(network, x)).T
    spec = graph(model).spec(0.5, importance="chip", normalization="none")
    got = ifjax.neuron_scores(p, spec, stats)[name]
    expected = drops(maps.astype(np.float64)) / 6
    # Through a Gram matrix: half of the digits of single precision.
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


# Streaming --------------------------------------------------------------------------------------


def assert_close(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        scale = np.abs(np.asarray(b)).max() + 1e-12
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("model", SHAPE)
def test_batches_of_any_sizes_add_up_to_one_large_batch(model):
    x, y = data(model, 6)
    batches = (((x[a:b],), y[a:b]) for a, b in ((0, 2), (2, 4), (4, 6)))
    got = ifjax.collect_stats(
        apply(model),
        init(model),
        graph(model),
        batches,
        loss_fn=loss,
        metrics=("taylor", "fisher", "chip"),
        chunk=1,
    )
    assert_close(got, collected(model))


def test_one_program_per_shape_of_a_batch():
    traces = []

    def counted(p, x):
        traces.append(x.shape)
        return apply("mlp")(p, x)

    x, y = data("mlp", 6)
    batches = [((x[:2],), y[:2])] * 3 + [((x[:4],), y[:4])] * 2
    stats = ifjax.collect_stats(
        counted, init("mlp"), graph("mlp"), batches, loss_fn=loss, metrics=["taylor"]
    )
    assert traces == [(2, 6), (4, 6)]
    assert float(stats.count) == 14


def test_a_spec_asks_for_its_own_importance_and_groups():
    x, y = data("mlp", 4)
    spec = graph("mlp").spec({"fc1*": 0.5}, importance="fisher")
    stats = ifjax.collect_stats(apply("mlp"), init("mlp"), spec, [((x,), y)], loss_fn=loss)
    assert stats.gradients is None
    assert stats.chip is None
    assert set(stats.fisher) == {"fc1.weight"}


def test_integers_and_half_precision_among_the_parameters():
    params = {k: jnp.asarray(v, jnp.bfloat16) for k, v in init("mlp").items()}
    params |= {"steps": jnp.int32(3)}

    def function(p, x):
        return apply("mlp")(p, x.astype(jnp.bfloat16)).astype(jnp.float32) + 0 * p["steps"]

    x, y = data("mlp", 4)
    found = ifjax.trace(function, params, x)
    stats = ifjax.collect_stats(
        function, params, found, [((x,), y)], loss_fn=loss, metrics=("taylor", "fisher", "chip")
    )
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(stats))
    assert stats.gradients["steps"] is None
    for name in ("taylor", "fisher", "chip"):
        spec = found.spec(0.5, importance=name, solver="nearest")
        assert ifjax.fuse_params(params, spec, stats=stats)["fc0.weight"].dtype == jnp.bfloat16


@pytest.mark.parametrize("model", SHAPE)
def test_two_devices_are_one(model):
    if jax.device_count() < 2:
        pytest.skip("needs 2 devices; leave XLA_FLAGS to tests/conftest.py")
    metrics = ("taylor", "fisher", "chip")
    x, y = data(model, 6)
    params, whole = {k: jnp.asarray(v) for k, v in init(model).items()}, collected(model)

    def own(params, x, y):
        stats = ifjax.batch_stats(
            apply(model), params, graph(model), ((x,), y), loss_fn=loss, metrics=metrics
        )
        return jax.lax.psum(stats, "devices")

    halves = x.reshape(2, 3, *x.shape[1:]), y.reshape(2, 3)
    replicated = jax.pmap(own, "devices", in_axes=(None, 0, 0))(params, *halves)
    assert_close(jax.tree.map(lambda v: v[0], replicated), whole)

    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    for check in (True, False):
        mapped = jax.shard_map(
            own,
            mesh=mesh,
            in_specs=(P(), P("devices"), P("devices")),
            out_specs=P(),
            check_vma=check,
        )
        assert_close(jax.jit(mapped)(params, x, y), whole)

    split = NamedSharding(mesh, P("devices"))
    batches = [((jax.device_put(x, split),), jax.device_put(y, split))]
    found = ifjax.collect_stats(
        apply(model), params, graph(model), batches, loss_fn=loss, metrics=metrics
    )
    assert_close(found, whole)


# Values -----------------------------------------------------------------------------------------


def test_statistics_are_pytrees_that_add():
    a = Stats(gradients={"w": jnp.ones(2), "n": None}, count=2.0)
    b = a + Stats(gradients={"w": jnp.ones(2), "n": None})
    np.testing.assert_array_equal(b.gradients["w"], [2, 2])
    assert b.count == 3
    assert len(jax.tree.leaves(b)) == 2
    with pytest.raises(ValueError, match=r"same kinds.*got gradients and chip"):
        a + Stats(chip={"w": jnp.ones(2)})
    with pytest.raises(TypeError):
        a + 1


# What is refused --------------------------------------------------------------------------------


def collect(batches, model="mlp", found=None, **options):
    return ifjax.collect_stats(apply(model), init(model), found or graph(model), batches, **options)


def test_metrics_that_are_none():
    with pytest.raises(ValueError, match=r"some of taylor, fisher, chip .* got \[\]"):
        collect([])
    with pytest.raises(ValueError, match=r"got \['l1'\]; other importances need no statistics"):
        collect([], found=graph("mlp").spec(0.5))
    with pytest.raises(ValueError, match="got 'chip'"):
        collect([], metrics="chip")
    with pytest.raises(ValueError, match=r"'fisher' needs a loss: pass loss_fn"):
        collect([], metrics=["chip", "fisher"])


def test_batches_that_are_none():
    x, y = data("mlp", 4)
    with pytest.raises(ValueError, match="at least one batch"):
        collect([], metrics=["chip"])
    with pytest.raises(TypeError, match=r"a tuple of what the function takes .* got str"):
        collect(["x"], metrics=["chip"])
    with pytest.raises(TypeError, match=r"a pair \(\(input, ...\), targets\), .* got \(ndarray\)"):
        collect([(x,)], metrics=["taylor"], loss_fn=loss)
    with pytest.raises(TypeError, match=r"an iterable of batches, such as \[\(x,\)\], got dict"):
        collect({"x": x}, metrics=["chip"])
    with pytest.raises(TypeError, match=r"got bool; bind options .* functools\.partial"):
        collect([(x, True)], metrics=["chip"])
    with pytest.raises(ValueError, match=r"on axis 0 .* got shapes \[\(4, 6\), \(3,\)\]"):
        collect([((x,), y[:3])], metrics=["taylor"], loss_fn=loss)
    with pytest.raises(ValueError, match=r"at least one, on axis 0 .* got shapes \[\(0, 6\)"):
        collect([((x[:0],), y[:0])], metrics=["taylor"], loss_fn=loss)
    with pytest.raises(ValueError, match=r"chunk must be at least 1.*got 0"):
        collect([((x,), y)], metrics=["fisher"], loss_fn=loss, chunk=0)


def test_a_loss_per_example_is_refused():
    x, y = data("mlp", 4)
    with pytest.raises(ValueError, match=r"a scalar, got shape \(4, 5\)"):
        collect([((x,), y)], metrics=["taylor"], loss_fn=lambda outputs, targets: outputs)


def test_chip_of_a_group_without_visible_consumers_names_it():
    def network(p, x):
        h, _ = jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w["a"]) @ w["b"], None), x, p)
        return h

    p = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 4, 3))}
    found = ifjax.trace(network, p, jnp.ones((5, 3)))
    names = [g.name for g in found.groups if g.kind == "neuron"]
    assert names, "the graph looks into loops"
    with pytest.raises(ValueError, match=f"group {names[0]}: importance 'chip' needs the activ"):
        ifjax.collect_stats(network, p, found, [(jnp.ones((5, 3)),)], metrics=["chip"])
