from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.models import VGG, create
from tests.models.compression import drawn, groups, hold, struct

# Column letters of table 1: convolutions per stage.
STAGES = {11: "11222", 13: "22222", 16: "22333", 19: "22444"}
# Counted by torch, with 10 classes.
PARAMETERS = {11: 9_231_114, 13: 9_416_010, 16: 14_728_266, 19: 20_040_522}


@pytest.mark.parametrize("depth", STAGES)
def test_standard_networks(depth):
    model = VGG.standard(depth)
    expected = zip((64, 128, 256, 512, 512), map(int, STAGES[depth]), strict=True)
    assert model.widths == tuple((width,) * count for width, count in expected)
    variables = struct(model, 32, 32, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[depth]
    assert VGG.from_variables(variables) == model


def test_every_convolution_is_a_group_of_its_own():
    model = create("vgg16", 10)
    graph = ifjax.trace(model.apply, struct(model, 32, 32, 3), jnp.zeros((1, 32, 32, 3)))
    assert groups(graph) == {
        f"params/conv{stage}_{index}/kernel": width
        for stage, (width, count) in enumerate(
            zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True), start=1
        )
        for index in range(1, count + 1)
    }


def test_a_cut_network_is_an_ordinary_module():
    _, spec, small = hold(VGG(((4, 6), (5,)), 3), (8, 4, 2))
    kept = {group.name: group.kept for group in spec.groups}
    assert small.widths == (
        (kept["params/conv1_1/kernel"], kept["params/conv1_2/kernel"]),
        (kept["params/conv2_1/kernel"],),
    )


def test_train_mode_moves_the_statistics():
    model = VGG(((2,), (3,)), 3)
    variables = drawn(struct(model, 4, 4, 3))
    x = jax.random.normal(jax.random.key(1), (4, 4, 4, 3))
    step = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, new = step(variables, x)
    assert logits.shape == (4, 3)
    moved = jax.tree.map(jnp.array_equal, new["batch_stats"], variables["batch_stats"])
    assert not any(jax.tree.leaves(moved))


def test_bfloat16_computation_keeps_parameters():
    model = create("vgg11", width=1 / 32, dtype=jnp.bfloat16)
    variables = struct(model, 32, 32, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(model.apply, variables, jnp.zeros((1, 32, 32, 3)))
    assert logits.dtype == jnp.bfloat16


def test_images_too_small_for_the_pools_are_refused():
    with pytest.raises(ValueError, match="at least 32 x 32 pixels for 5 max-pools"):
        VGG.standard(11).init(jax.random.key(0), np.zeros((1, 32, 16, 3), np.float32))


def test_from_variables_names_the_leaf_that_does_not_fit():
    variables = struct(VGG(((2,), (3,))), 4, 4, 3)
    variables["params"]["bn2_1"]["scale"] = jax.ShapeDtypeStruct((2,), "float32")
    with pytest.raises(ValueError, match=r"params/bn2_1/scale: expected \(3,\), got \(2,\)"):
        VGG.from_variables(variables)
    with pytest.raises(ValueError, match="expected a leaf at 'params/conv1_1/kernel'"):
        VGG.from_variables({"params": {}})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VGG(()), "at least one convolution"),
        (lambda: VGG(((4,), ())), "at least one convolution"),
        (lambda: VGG(((4, 0),)), r"widths\[0\]\[1\], got 0"),
        (lambda: VGG(((4,),), 0), "num_classes"),
        (lambda: VGG.standard(12), "out of 11, 13, 16, 19, got depth=12"),
        (lambda: VGG.standard(11, width=0), "positive width multiplier"),
        (lambda: VGG.standard(11, width=float("nan")), "positive width multiplier"),
    ],
)
def test_bad_widths_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
