from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from ifjax.models import MLP, NAMES, CifarResNet, SmallCNN, create


@pytest.mark.parametrize("name", NAMES)
def test_every_name_gives_logits_under_strict_promotion(name):
    model = create(name, num_classes=7)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        image = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        logits = jax.eval_shape(model.apply, variables, image)
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.float32


def test_options_reach_the_class():
    assert create("mlp", hidden=(3,)) == MLP(hidden=(3,))
    assert create("cnn", widths=(3,), hidden=()) == SmallCNN(widths=(3,), hidden=())
    assert create("resnet32", 5, shortcut="B") == CifarResNet.standard(32, 5, shortcut="B")
    assert create("resnet20").shortcut == "A"


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match="resnet110; got 'resnet18'"):
        create("resnet18")
    with pytest.raises(TypeError, match="shortcut"):
        create("mlp", shortcut="B")
