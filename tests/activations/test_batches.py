"""Batches in every form mean the same to every function that reads some."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.activations.batches import each_batch, inputs_of, read_inputs
from ifjax.activations.divergence import output_divergence

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 4)).astype("f4"), RNG.standard_normal((6, 2)).astype("f4")
PARAMS = {
    "a": jnp.asarray(RNG.standard_normal((4, 8)), jnp.float32),
    "mean": jnp.zeros(8),
    "var": jnp.ones(8),
    "b": jnp.asarray(RNG.standard_normal((8, 2)), jnp.float32),
}


def network(p, x):
    x = (x @ p["a"] - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5)
    return jax.nn.relu(x) @ p["b"]


def of_dict(p, batch):
    return network(p, batch["x"])


def loss(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


FORMS = {
    "array": X,
    "tuple": (X,),
    "list": [X],
    "with targets": (X, Y),
    "a list with targets": [X, Y],
    "nested with targets": ((X,), Y),
    "with integer targets": (X, np.arange(6)),
    "jax": (jnp.asarray(X), jnp.asarray(Y)),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_form_for_all(form):
    batch, graph = FORMS[form], ifjax.trace(network, PARAMS, X)
    want = ifjax.reset_statistics(network, PARAMS, [(X,)])
    got = ifjax.reset_statistics(network, PARAMS, [batch])
    jax.tree.map(np.testing.assert_array_equal, got, want)
    want = ifjax.collect_stats(network, PARAMS, graph, [(X,)], metrics=["chip"])
    got = ifjax.collect_stats(network, PARAMS, graph, [batch], metrics=["chip"])
    jax.tree.map(np.testing.assert_array_equal, got, want)
    got = ifjax.batch_stats(network, PARAMS, graph, batch, metrics=["chip"])
    jax.tree.map(np.testing.assert_allclose, got, want)
    given = {"on": "activations", "apply_fn": network}
    want = ifjax.fuse_models([PARAMS, PARAMS], graph, batches=[(X,)], **given)
    got = ifjax.fuse_models([PARAMS, PARAMS], graph, batches=[batch], **given)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert output_divergence(network, PARAMS, network, PARAMS, [batch])
    if len(batch) == 2:
        given = {"metrics": ["taylor"], "loss_fn": loss}
        if form == "with integer targets":
            given["loss_fn"] = lambda outputs, targets: jnp.mean(outputs[:, 0] * targets)
        targets = batch[1]
        want = ifjax.collect_stats(network, PARAMS, graph, [((X,), targets)], **given)
        got = ifjax.collect_stats(network, PARAMS, graph, [batch], **given)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_dictionary_is_one_input():
    graph = ifjax.trace(of_dict, PARAMS, {"x": X})
    for batch in ({"x": X}, ({"x": X},), ({"x": X}, Y), {"x": X, "label": Y}):
        got = ifjax.reset_statistics(of_dict, PARAMS, [batch])
        assert np.abs(got["mean"]).max() > 0
        assert ifjax.collect_stats(of_dict, PARAMS, graph, [batch], metrics=["chip"]).count == 6
    stats = ifjax.collect_stats(
        of_dict, PARAMS, graph, [({"x": X}, Y)], metrics=["taylor"], loss_fn=loss
    )
    assert stats.gradients["a"].shape == (4, 8)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_two_inputs_stay_two():
    both = lambda p, x, y: network(p, x) + y  # noqa: E731
    for batch in ((X, Y), [X, Y], ((X, Y), Y)):
        found = inputs_of(batch, both, PARAMS)
        assert len(found) == 2
        assert found[0] is X
        assert found[1] is Y


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_the_function_is_traced_once_for_a_form():
    calls = []

    def counted(p, x):
        calls.append(1)
        return network(p, x)

    found = list(read_inputs([(X, Y)] * 5, counted, PARAMS))
    assert [len(inputs) for inputs in found] == [1] * 5
    assert len(calls) == 1  # two inputs are too many to get that far


@pytest.mark.usefixtures("unchecked")
def test_one_array_is_one_batch():
    assert len(list(each_batch(X))) == 1
    got = ifjax.reset_statistics(network, PARAMS, X)
    want = ifjax.reset_statistics(network, PARAMS, [(X,)])
    jax.tree.map(np.testing.assert_array_equal, got, want)
    for wrong in ("abc", {"x": X}, 3, None):
        with pytest.raises(TypeError, match="expected an iterable of batches"):
            ifjax.reset_statistics(network, PARAMS, wrong)
    with pytest.raises(ValueError, match="at least one batch"):
        ifjax.reset_statistics(network, PARAMS, [])
    for wrong in ("abc", None, 3, [(1, 2)], [()]):
        with pytest.raises(TypeError, match="expected every batch to be a tuple of what the func"):
            ifjax.reset_statistics(network, PARAMS, [wrong])
