from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.models import MLP


def test_forward_is_relu_of_affine_maps():
    model = MLP(hidden=(5, 4), num_classes=3)
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), x)
    y = x.reshape(2, 6).astype(np.float64)
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    for name in ("fc1", "fc2"):
        y = np.maximum(y @ layers[name]["kernel"] + layers[name]["bias"], 0)
    y = y @ layers["linear"]["kernel"] + layers["linear"]["bias"]
    np.testing.assert_allclose(model.apply(variables, x), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x, train=True))


@pytest.mark.parametrize("hidden", [(), (7,), (3, 2, 5)])
def test_from_variables_reads_the_widths(hidden):
    model = MLP(hidden=hidden, num_classes=4)
    struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6)))
    assert MLP.from_variables(struct) == model


def test_cut_variables_run_in_the_module_read_off_them():
    model = MLP(hidden=(5, 4), num_classes=3)
    x = jnp.ones((2, 6))
    params = model.init(jax.random.key(0), x)["params"]
    kept = jnp.array([0, 3])
    cut = {
        **params,
        "fc1": {"kernel": params["fc1"]["kernel"][:, kept], "bias": params["fc1"]["bias"][kept]},
        "fc2": {**params["fc2"], "kernel": params["fc2"]["kernel"][kept]},
    }
    small = MLP.from_variables({"params": cut})
    assert small.hidden == (2, 4)
    assert small.apply({"params": cut}, x).shape == (2, 3)


def test_widths_that_do_not_fit_are_named():
    model = MLP(hidden=(5, 4), num_classes=3)
    struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6)))
    struct["params"]["fc2"]["kernel"] = jax.ShapeDtypeStruct((2, 4), "float32")
    with pytest.raises(ValueError, match=r"params/fc2/kernel: expected \(5, 4\), got \(2, 4\)"):
        MLP.from_variables(struct)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("arguments", [{"hidden": (0,)}, {"hidden": [4]}, {"num_classes": 0}])
def test_bad_widths_are_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        MLP(**arguments)


def test_dtype_is_that_of_the_computation():
    model = MLP(hidden=(4,), num_classes=3, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 6)))
    assert variables["params"]["fc1"]["kernel"].dtype == jnp.float32
    assert model.apply(variables, jnp.ones((2, 6))).dtype == jnp.bfloat16
