from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.models import SmallCNN


@pytest.mark.parametrize("image", [(8, 8, 1), (16, 8, 3)])
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_from_variables_reads_the_widths(image, hidden):
    model = SmallCNN(widths=(4, 6), hidden=hidden, num_classes=3)
    struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image)))
    assert SmallCNN.from_variables(struct) == model
    logits = jax.eval_shape(model.apply, struct, jnp.zeros((2, *image)))
    assert logits.shape == (2, 3)


def test_train_mode_normalises_with_the_batch_and_moves_the_statistics():
    model = SmallCNN(widths=(4,), hidden=(), num_classes=3)
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 2))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    step = jax.jit(functools.partial(model.apply, mutable=["batch_stats"]), static_argnames="train")
    _, new = step(variables, x, train=True)
    conv = jax.lax.conv_general_dilated(
        x,
        variables["params"]["conv1"]["kernel"],
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    stats = new["batch_stats"]["bn1"]
    np.testing.assert_allclose(stats["mean"], 0.1 * conv.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * conv.var((0, 1, 2)), atol=1e-5)
    evaluated, kept = step(variables, x)
    np.testing.assert_array_equal(kept["batch_stats"]["bn1"]["mean"], np.zeros(4))
    assert evaluated.shape == (8, 3)


def test_a_channel_feeds_one_row_per_pixel():
    model = SmallCNN(widths=(4,), hidden=(5,), num_classes=3)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    params, stats = variables["params"], variables["batch_stats"]
    kept = jnp.array([0, 2])
    rows = params["fc1"]["kernel"].reshape(4, 4, 5)
    small = {
        "params": {
            **params,
            "conv1": {"kernel": params["conv1"]["kernel"][..., kept]},
            "bn1": jax.tree.map(lambda leaf: leaf[kept], params["bn1"]),
            "fc1": {**params["fc1"], "kernel": rows[:, kept].reshape(8, 5)},
        },
        "batch_stats": jax.tree.map(lambda leaf: leaf[kept], stats),
    }
    zeroed = jax.tree.map(lambda leaf: leaf, variables)
    zeroed["params"]["fc1"]["kernel"] = rows.at[:, jnp.array([1, 3])].set(0).reshape(16, 5)
    cut = SmallCNN.from_variables(small)
    assert cut.widths == (2,)
    found, expected = jax.jit(cut.apply)(small, x), jax.jit(model.apply)(zeroed, x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rows_that_are_no_multiple_of_the_channels_are_named():
    model = SmallCNN(widths=(4,), hidden=(5,), num_classes=3)
    struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    struct["params"]["fc1"]["kernel"] = jax.ShapeDtypeStruct((15, 5), "float32")
    with pytest.raises(
        ValueError, match=r"multiple of the 4 channels of conv1.*fc1/kernel.*got 15"
    ):
        SmallCNN.from_variables(struct)


def test_missing_statistics_are_named():
    model = SmallCNN(widths=(4,), hidden=(), num_classes=3)
    struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    with pytest.raises(ValueError, match=r"batch_stats/bn1/mean: expected \(4,\), got no leaf"):
        SmallCNN.from_variables({"params": struct["params"]})


def test_images_too_small_for_the_pools_are_refused():
    with pytest.raises(ValueError, match="at least 8 x 8 pixels for 3 max-pools"):
        SmallCNN(widths=(2, 2, 2)).init(jax.random.key(0), jnp.zeros((1, 4, 8, 1)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("arguments", [{"widths": ()}, {"widths": (0,)}, {"hidden": [3]}])
def test_bad_widths_are_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        SmallCNN(**arguments)
