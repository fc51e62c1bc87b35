"""Transport maps by every importance: what each reads, and what of it reaches the maps."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax import importance
from tests import reference
from tests.fusion.tiny_networks import init, traced

SCORES = [name for name in importance.names() if name != "reconstruction"]  # which has none


def batch(model):
    rng = np.random.default_rng(3)
    x = reference.inputs(model, 3)
    return (x,), rng.normal(size=(len(x), 5 if model == "mlp" else 10)).astype(np.float32)


def loss(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


@functools.cache
def stats(model):
    return ifjax.collect_stats(
        reference.apply(model, 1e-2),
        init(model),
        traced(model),
        [batch(model)],
        loss_fn=loss,
        metrics=("taylor", "fisher", "chip"),
    )


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("model", ["mlp", "vgg"])
def test_every_importance_fuses_and_prunes_in_either_order(model, name):
    params, small = init(model), {}
    for method, order in itertools.product(("fuse", "prune"), ("sequential", "simultaneous")):
        spec = traced(model).spec(
            0.5, importance=name, method=method, order=order, solver="nearest"
        )
        if (model, name) == ("mlp", "bn_scale"):
            with pytest.raises(ValueError, match=r"group fc1\.weight: importance 'bn_scale' reads"):
                ifjax.fuse_params(params, spec, stats=stats(model))
            continue
        maps = ifjax.transport_maps(params, spec, stats=stats(model))
        small[method, order] = ifjax.fuse_params(params, spec, stats=stats(model))
        for path, x in small[method, order].items():
            assert x.shape == spec.structure.shape(path)
            assert np.all(np.isfinite(x)), (method, order, path)
        scores = ifjax.neuron_scores(params, spec, stats(model))
        first = spec.structure.in_order()[0].name  # nothing has changed before its turn
        assert sorted(scores) == sorted(maps)
        for group in maps if order == "simultaneous" or name in STILL else [first]:
            kept = np.sort(np.argsort(-scores[group], stable=True)[: spec.structure.widths[group]])
            np.testing.assert_array_equal(maps[group].targets, kept, group)
    for order in ("sequential", "simultaneous") if small else ():
        assert any(np.any(small["fuse", order][p] != small["prune", order][p]) for p in params)


# Importances that do not look at weights that earlier groups have changed.
STILL = ("bn_scale", "taylor", "fisher", "chip", "random")


def test_taylor_sums_weights_times_gradients_in_every_kernel():
    params, gradients = init("mlp"), {k: np.sin(v) for k, v in init("mlp", 1).items()}
    spec = traced("mlp").spec(0.5, importance="taylor", reduction="sum", normalization="none")
    got = ifjax.neuron_scores(params, spec, ifjax.Stats(gradients=gradients))
    product = {k: params[k].astype(np.float64) * gradients[k] for k in params}
    for name, after in (("fc0.weight", "fc1.weight"), ("fc1.weight", "fc2.weight")):
        expected = np.abs(product[name].sum(1)) + np.abs(product[after].sum(0))
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, err_msg=name)
    halved = ifjax.Stats(gradients=gradients, count=2.0)
    assert ifjax.neuron_scores(params, spec, halved)["fc0.weight"].shape == (8,)


def test_gradients_of_weights_alone_suffice_and_lie_where_the_weights_do():
    params = {"params": init("mlp")}
    apply = reference.apply("mlp")
    graph = ifjax.trace(lambda p, x: apply(p["params"], x), params, reference.inputs("mlp"))
    spec = graph.spec(0.5, importance="taylor", solver="nearest")
    gradients = {k: v for k, v in init("mlp", 1).items() if k.endswith("weight")}
    right = ifjax.Stats(gradients={"params": gradients})
    assert ifjax.fuse_params(params, spec, stats=right)["params"]["fc0.weight"].shape == (4, 6)
    message = r"gradients of params/fc1\.weight: expected shape .* got none; .* \{\"params\": grads"
    with pytest.raises(ValueError, match=message):
        ifjax.fuse_params(params, spec, stats=ifjax.Stats(gradients=gradients))


def test_scores_of_batch_norms_are_the_sizes_of_their_scales():
    params = init("vgg")
    spec = traced("vgg").spec(0.5, importance="bn_scale", normalization="max")
    scale = np.abs(params["bn0.weight"])
    got = ifjax.neuron_scores(params, spec)["conv0.weight"]
    np.testing.assert_allclose(got, scale / scale.max(), rtol=1e-6)


def test_scales_of_norms_that_cannot_be_folded_are_read_as_well():
    """A norm before the kernel, on a stream that it cannot be folded into."""

    def network(p, x):
        h = x @ p["a"] + jnp.sin(x) @ p["b"]
        h = (h - p["mean"]) * jax.lax.rsqrt(p["variance"] + 1e-5) * p["scale"] + p["offset"]
        return jax.nn.relu(h) @ p["c"]

    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (3, 4), "c": (4, 2)}
    shapes |= dict.fromkeys(("mean", "variance", "scale", "offset"), (4,))
    p = {k: jnp.asarray(rng.uniform(0.5, 1, s), jnp.float32) for k, s in shapes.items()}
    graph = ifjax.trace(network, p, jnp.ones((2, 3)))
    assert graph.structure.norms == ()
    spec = graph.spec(0.5, importance="bn_scale", normalization="none")
    (got,) = ifjax.neuron_scores(p, spec).values()
    np.testing.assert_allclose(got, p["scale"], rtol=1e-6)


def test_the_first_member_is_the_first_producer_and_not_the_first_leaf():
    rng = np.random.default_rng(1)
    p = {"a": rng.normal(size=(5, 2)), "b": rng.normal(size=(3, 5)), "c": rng.normal(size=(3, 5))}
    p = {k: jnp.asarray(v, jnp.float32) for k, v in p.items()}

    def network(p, x):  # a consumes; c produces before b does
        return jax.nn.relu(x @ p["c"] + jnp.sin(x) @ p["b"]) @ p["a"]

    graph = ifjax.trace(network, p, jnp.ones((2, 3)))
    got = {}
    for reduction in importance.REDUCTIONS:
        spec = graph.spec(0.5, reduction=reduction, normalization="none")
        (got[reduction],) = ifjax.neuron_scores(p, spec).values()
    each = [np.abs(p["c"]).sum(0), np.abs(p["b"]).sum(0), np.abs(p["a"]).sum(1)]
    np.testing.assert_allclose(got["first"], each[0], rtol=1e-6)
    np.testing.assert_allclose(got["sum"], np.sum(each, 0), rtol=1e-6)
    np.testing.assert_allclose(got["mean"], np.mean(each, 0), rtol=1e-6)
    np.testing.assert_allclose(got["max"], np.max(each, 0), rtol=1e-6)


def test_reductions_change_the_order_and_normalisations_the_scale():
    params, found = init("vgg"), {}
    choices = [(r, "none") for r in importance.REDUCTIONS]
    choices += [("mean", n) for n in importance.NORMALIZATIONS]
    for reduction, normalization in choices:
        spec = traced("vgg").spec(
            {"conv0*": 0.5}, reduction=reduction, normalization=normalization, scores_on="raw"
        )
        (found[reduction, normalization],) = ifjax.neuron_scores(params, spec).values()
    plain = found["mean", "none"]
    for normalization, unit in (("mean", plain.mean()), ("max", plain.max()), ("sum", plain.sum())):
        np.testing.assert_allclose(found["mean", normalization], plain / unit, rtol=1e-6)
    orders = {tuple(np.argsort(found[r, "none"]).tolist()) for r in importance.REDUCTIONS}
    assert len(orders) > 1


def test_statistics_may_be_traced_and_compile_once():
    traces = []

    def fuse(params, spec, stats):
        traces.append(spec)
        return ifjax.fuse_params(params, spec, stats=stats)

    jitted = jax.jit(fuse, static_argnames="spec")
    spec = traced("mlp").spec(0.5, importance="fisher", solver="nearest")
    for seed in range(2):
        params = {k: jnp.asarray(v) for k, v in init("mlp", seed).items()}
        fisher = {k: v * (seed + 1) for k, v in stats("mlp").fisher.items()}
        given = ifjax.Stats(fisher=fisher, count=jnp.float32(2))
        got, expected = jitted(params, spec, given), ifjax.fuse_params(params, spec, stats=given)
        for path in expected:
            np.testing.assert_allclose(got[path], expected[path], atol=1e-6, err_msg=path)
    assert len(traces) == 1


def test_scores_stand_in_for_statistics_of_their_group():
    spec = traced("mlp").spec(0.5, importance="fisher", solver="nearest")
    only = ifjax.Stats(fisher={"fc1.weight": jnp.arange(6.0)})
    with pytest.raises(ValueError, match=r"fisher of fc0\.weight: expected shape \(8,\), got none"):
        ifjax.transport_maps(init("mlp"), spec, stats=only)
    scores = {"fc0.weight": np.arange(8)}
    maps = ifjax.transport_maps(init("mlp"), spec, scores, only)
    assert maps["fc0.weight"].targets.tolist() == [4, 5, 6, 7]
    assert maps["fc1.weight"].targets.tolist() == [3, 4, 5]
    both = scores | {"fc1.weight": np.arange(6)}
    assert set(ifjax.transport_maps(init("mlp"), spec, both)) == set(maps)
