from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from ifjax.models import MLP, NAMES, VGG, CifarResNet, ResNet, SmallCNN, create


@pytest.mark.parametrize("name", NAMES)
def test_every_name_gives_logits_under_strict_promotion(name):
    model = create(name, num_classes=7)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        image = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        logits = jax.eval_shape(model.apply, variables, image)
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.float32


def test_names_are_those_of_the_papers():
    depths = (8, 14, 20, 32, 44, 56, 110, 18, 34, 50, 101)
    assert set(NAMES) == {
        *("mlp", "cnn", "vit_tiny", "vit_small", "vit_b_16"),
        *(f"vgg{depth}" for depth in (11, 13, 16, 19)),
        *(f"resnet{depth}" for depth in depths),
    }
    for depth in depths:
        assert create(f"resnet{depth}").widths.depth == depth


def test_options_reach_the_class():
    assert create("mlp", hidden=(3,)) == MLP(hidden=(3,))
    assert create("cnn", widths=(3,), hidden=()) == SmallCNN(widths=(3,), hidden=())
    assert create("resnet32", 5, shortcut="B") == CifarResNet.standard(32, 5, shortcut="B")
    assert create("resnet20").shortcut == "A"
    assert create("resnet20", width=0.5).widths.streams == (8, 16, 32)
    assert create("resnet20", width=0.01).widths.streams == (2, 4, 8)
    assert create("resnet20", width=0.01, shortcut="B").widths.streams == (1, 2, 4)
    assert create("vgg13", 3, width=0.5) == VGG.standard(13, 3, width=0.5)
    assert create("resnet34", 3, stem="imagenet") == ResNet.standard(34, 3, stem="imagenet")
    assert create("vit_tiny", depth=3, patch=8).widths.heads == (3, 3, 3)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("mlp", "cnn")])
def test_every_width_is_at_least_one(name):
    model = create(name, width=1e-6)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert min(leaf.size for leaf in jax.tree.leaves(variables)) >= 1


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match="vit_b_16; got 'resnet19'"):
        create("resnet19")
    with pytest.raises(TypeError, match="shortcut"):
        create("mlp", shortcut="B")
    with pytest.raises(TypeError, match="depth"):
        create("vgg11", depth=13)
