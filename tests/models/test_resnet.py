from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

import ifjax
from ifjax.models import ResNet, ResNetWidths, create
from tests.models.compression import drawn, groups, hold, struct

# Torchvision's documentation of resnet18, 34, 50 and 101, with 1,000 classes.
PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160}


@pytest.mark.parametrize(("depth", "count"), PARAMETERS.items())
def test_parameter_counts_are_those_of_torchvision(depth, count):
    model = create(f"resnet{depth}", 1000, stem="imagenet")
    variables = struct(model, 32, 32, 3)
    assert model.widths.depth == depth
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert ResNet.from_variables(variables) == model


@pytest.mark.parametrize(("stem", "side"), [("cifar", 4), ("imagenet", 1)])
def test_the_image_shrinks_as_the_stem_says(stem, side):
    model = ResNet.standard(18, width=1 / 64, stem=stem)
    x = jnp.zeros((1, 32, 32, 3))
    variables = struct(model, 32, 32, 3)
    apply = functools.partial(model.apply, capture_intermediates=True)
    _, seen = jax.eval_shape(apply, variables, x)
    assert seen["intermediates"]["layer4_1"]["__call__"][0].shape == (1, side, side, 8)
    assert seen["intermediates"]["conv1"]["__call__"][0].shape[1] == {4: 32, 1: 16}[side]


def test_groups_of_basic_blocks():
    """One per block's inside and one per stage's stream, the first stage's with the stem."""
    model = create("resnet18", 10)
    graph = ifjax.trace(model.apply, struct(model, 32, 32, 3), jnp.zeros((1, 32, 32, 3)))
    widths = {1: 64, 2: 128, 3: 256, 4: 512}
    inner = {f"params/layer{s}_{b}/conv1/kernel": w for s, w in widths.items() for b in (0, 1)}
    streams = {f"params/layer{s}_0/conv2/kernel": w for s, w in widths.items() if s > 1}
    assert groups(graph) == inner | streams | {"params/conv1/kernel": 64}


def test_groups_of_bottlenecks():
    """Two per block's inside, one per stage's stream, and the stem's."""
    model = create("resnet50", 10, stem="imagenet")
    graph = ifjax.trace(model.apply, struct(model, 32, 32, 3), jnp.zeros((1, 32, 32, 3)))
    expected = {"params/conv1/kernel": 64}
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        expected[f"params/layer{stage + 1}_0/conv3/kernel"] = 4 * width
        for block in range(blocks):
            for conv in ("conv1", "conv2"):
                expected[f"params/layer{stage + 1}_{block}/{conv}/kernel"] = width
    assert groups(graph) == expected


def test_a_cut_network_of_basic_blocks_is_an_ordinary_module():
    model = ResNet(ResNetWidths((4, 6), ((3, 5), (4,))), 3)
    _, spec, small = hold(model, (6, 6, 3))
    kept = {group.name: group.kept for group in spec.groups}
    assert small.widths.streams == (
        kept["params/conv1/kernel"],
        kept["params/layer2_0/conv2/kernel"],
    )
    assert small.widths.stem is None


def test_a_cut_network_of_bottlenecks_is_an_ordinary_module():
    widths = ResNetWidths((8, 9), (((4, 5),), ((6, 4), (3, 5))), stem=5)
    _, spec, small = hold(ResNet(widths, 3, "B", "imagenet"), (16, 16, 3))
    kept = {group.name: group.kept for group in spec.groups}
    assert small.stem == "imagenet"
    assert small.widths.stem == kept["params/conv1/kernel"] < 5
    assert small.widths.inner[1][0] == (
        kept["params/layer2_0/conv1/kernel"],
        kept["params/layer2_0/conv2/kernel"],
    )


def test_train_mode_moves_the_statistics():
    widths = ResNetWidths((4,), (((2, 3),),), stem=2)
    model = ResNet(widths, 3)
    variables = drawn(struct(model, 4, 4, 3))
    x = jax.random.normal(jax.random.key(1), (4, 4, 4, 3))
    step = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    _, new = step(variables, x)
    moved = jax.tree.map(jnp.array_equal, new["batch_stats"], variables["batch_stats"])
    assert not any(jax.tree.leaves(moved))


def test_bfloat16_computation_keeps_parameters():
    model = create("resnet50", width=1 / 64, stem="imagenet", dtype=jnp.bfloat16)
    variables = struct(model, 32, 32, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(model.apply, variables, jnp.zeros((1, 32, 32, 3)))
    assert logits.dtype == jnp.bfloat16


def test_from_variables_names_the_leaf_that_does_not_fit():
    variables = struct(ResNet.standard(50, width=1 / 64), 8, 8, 3)
    variables["params"]["layer2_1"]["bn3"]["scale"] = jax.ShapeDtypeStruct((7,), "float32")
    del variables["params"]["layer3_0"]["shortcut_conv"]
    with pytest.raises(ValueError, match="not those of one ResNet") as caught:
        ResNet.from_variables(variables)
    assert "params/layer2_1/bn3/scale: expected (8,), got (7,)" in str(caught.value)
    assert "layer3_0/shortcut_conv/kernel: expected (1, 1, 8, 16), got no leaf" in str(caught.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNet.standard(20), "out of 18, 34, 50, 101, got depth=20"),
        (lambda: ResNet.standard(18, stem="tiny"), "'cifar' or 'imagenet', got 'tiny'"),
        (lambda: ResNet.standard(18, width=-1), "positive width multiplier"),
        (lambda: ResNet(ResNetWidths((4,), (((2, 2),),)), 3, "A"), "basic blocks"),
        (lambda: ResNet(ResNetWidths((4,), ((2,),), stem=3), 3, "A"), "basic blocks"),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
