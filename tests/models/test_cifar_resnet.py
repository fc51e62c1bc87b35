from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.models import BasicBlock, CifarResNet, ResNetWidths

DEPTHS = (20, 32, 44, 56, 110)
# Table 6 of He et al. 2015 gives 0.27, 0.46, 0.66, 0.85 and 1.7 million parameters.
MILLIONS = (0.27, 0.46, 0.66, 0.85, 1.7)


def struct_of(model: CifarResNet, side: int = 8):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


def random_variables(model: CifarResNet):
    """Draw all leaves in general position, the statistics too."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = rng.uniform(0.2, 1.0, leaf.shape)
        signs = rng.choice([-1, 1], leaf.shape) if len(leaf.shape) > 1 else 1
        return jnp.asarray(values * signs, leaf.dtype)

    return jax.tree.map(draw, struct_of(model))


def parameters(depth: int, shortcut: str) -> int:
    """Count the parameters by the formula, a norm having two per channel."""
    blocks = (depth - 2) // 6
    total = 9 * 3 * 16 + 2 * 16 + 64 * 10 + 10
    before = 16
    for width in (16, 32, 64):
        total += 9 * before * width + (2 * blocks - 1) * 9 * width**2 + 2 * blocks * 2 * width
        if shortcut == "B" and before != width:
            total += before * width + 2 * width
        before = width
    return total


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("depth", "millions"), tuple(zip(DEPTHS, MILLIONS, strict=True)))
def test_parameter_counts_are_those_of_the_paper(depth, millions, shortcut):
    model = CifarResNet.standard(depth, shortcut=shortcut)
    assert model.widths.depth == depth
    variables = struct_of(model)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == parameters(depth, shortcut)
    assert count == pytest.approx(millions * 1e6, rel=0.03)
    assert CifarResNet.from_variables(variables) == model


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_parameter_counts_of_option_a(depth, count):
    leaves = jax.tree.leaves(struct_of(CifarResNet.standard(depth))["params"])
    assert sum(leaf.size for leaf in leaves) == count


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_forward_shapes_and_statistics(shortcut):
    model = CifarResNet(ResNetWidths.standard(8, shortcut, width=2), 3, shortcut)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = random_variables(model)
    step = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, new = step(variables, x)
    assert logits.shape == (4, 3)
    assert jax.tree.structure(new["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    moved = jax.tree.map(jnp.array_equal, new["batch_stats"], variables["batch_stats"])
    assert not any(jax.tree.leaves(moved))
    assert jax.eval_shape(model.apply, variables, x).shape == (4, 3)


def test_shortcut_a_subsamples_and_pads_where_told():
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 2))
    block = BasicBlock(inner=3, features=5, stride=2, pad=(1, 2))
    variables = jax.jit(block.init)(jax.random.key(0), x)
    silent = jax.tree.map(jnp.zeros_like, variables)
    expected = np.zeros((1, 2, 2, 5))
    expected[..., 1:3] = np.maximum(x[:, ::2, ::2], 0)
    np.testing.assert_array_equal(jax.jit(block.apply)(silent, x), expected)


def test_cutting_the_residual_stream_equals_zeroing():
    """Option A: drop channels of every stage, and other pads on one side than on the other."""
    wide = CifarResNet(ResNetWidths.standard(8, width=4), 3)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = random_variables(wide)
    first = np.array([0, 3])
    second = np.concatenate([[1], 2 + first, [6, 7]])
    third = np.concatenate([[0, 1, 2], 4 + second, [13]])
    pads = ((1, 2), (3, 1))
    kept = {1: first, 2: second, 3: third}

    small, zeroed = {}, jax.tree.map(lambda leaf: leaf, variables)
    for collection, modules in variables.items():
        small[collection] = dict(modules)
        for name in modules:
            if name == "bn1":
                small[collection][name] = {k: v[first] for k, v in modules[name].items()}
            elif name.startswith("layer"):
                stage = int(name[5])
                small[collection][name] = dict(modules[name])
                small[collection][name]["bn2"] = {
                    k: v[kept[stage]] for k, v in modules[name]["bn2"].items()
                }
    params = small["params"]
    params["conv1"] = {"kernel": params["conv1"]["kernel"][..., first]}
    for stage, entering in ((1, first), (2, first), (3, second)):
        block = params[f"layer{stage}_0"]
        block["conv1"] = {"kernel": block["conv1"]["kernel"][:, :, entering]}
        block["conv2"] = {"kernel": block["conv2"]["kernel"][..., kept[stage]]}
    params["linear"] = {**params["linear"], "kernel": params["linear"]["kernel"][third]}

    def zero(leaf, keep, axis):
        mask = np.isin(np.arange(leaf.shape[axis]), keep)
        return leaf * mask.reshape([-1 if a == axis else 1 for a in range(leaf.ndim)])

    dense = zeroed["params"]
    for stage, entering in ((1, first), (2, first), (3, second)):
        kernel = dense[f"layer{stage}_0"]["conv1"]["kernel"]
        dense[f"layer{stage}_0"]["conv1"] = {"kernel": zero(kernel, entering, 2)}
    dense["linear"] = {**dense["linear"], "kernel": zero(dense["linear"]["kernel"], third, 0)}

    model = CifarResNet.from_variables(small, pads=pads)
    assert model.widths == ResNetWidths((2, 5, 9), ((4,), (8,), (16,)), pads)
    found, expected = jax.jit(model.apply)(small, x), jax.jit(wide.apply)(zeroed, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected pads=.*\(2, 5, 9\), got none"):
        CifarResNet.from_variables(small)


def test_cut_inner_widths_need_no_pads():
    widths = ResNetWidths((16, 32, 64), ((3, 5), (7, 2), (1, 4)), ((8, 8), (16, 16)))
    model = CifarResNet(widths, 7)
    assert CifarResNet.from_variables(struct_of(model)) == model


def test_option_b_reads_cut_streams():
    model = CifarResNet(ResNetWidths((3, 4, 7), ((3,), (1,), (2,))), 7, "B")
    variables = struct_of(model)
    assert CifarResNet.from_variables(variables) == model
    assert "shortcut_conv" not in variables["params"]["layer1_0"]


def test_from_variables_names_the_leaf_that_does_not_fit():
    variables = struct_of(CifarResNet.standard(20))
    variables["params"]["layer2_1"]["bn1"]["scale"] = jax.ShapeDtypeStruct((31,), "float32")
    del variables["batch_stats"]["bn1"]
    with pytest.raises(ValueError, match="not those of one CifarResNet") as caught:
        CifarResNet.from_variables(variables)
    assert "params/layer2_1/bn1/scale: expected (32,), got (31,)" in str(caught.value)
    assert "batch_stats/bn1/mean: expected (16,), got no leaf" in str(caught.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNetWidths.standard(21), r"6 n \+ 2"),
        (lambda: ResNetWidths.standard(2), r"6 n \+ 2"),
        (lambda: ResNetWidths.standard(20, width=3), "even width"),
        (lambda: ResNetWidths.standard(20, "C"), "got 'C'"),
        (lambda: ResNetWidths((4, 8), ((4,),)), "one tuple of inner widths per stage"),
        (lambda: ResNetWidths((4, 8), ((4,), ())), r"at least one block at inner\[1\]"),
        (lambda: ResNetWidths((4, 8), ((4,), (0,))), r"at inner\[1\]\[0\], got 0"),
        (lambda: ResNetWidths((4, 8), ((4,), (4,)), ((1, 2),)), r"before \+ 4 \+ after = 8"),
        (lambda: ResNetWidths((4, 8), ((4,), (4,)), ((-1, 5),)), r"pads\[0\]\[0\], got -1"),
        (lambda: ResNetWidths((4, 8), ((4,), (4,)), ((2, 2), (0, 0))), "1 pairs of pads"),
        (lambda: CifarResNet(ResNetWidths((4, 8), ((4,), (4,)))), "1 pairs of pads"),
        (lambda: CifarResNet(ResNetWidths.standard(8), shortcut="B"), "0 pairs of pads"),
        (lambda: CifarResNet(ResNetWidths.standard(8), shortcut="C"), "got 'C'"),
    ],
)
def test_widths_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_widths_and_module_are_static_arguments():
    one, two = CifarResNet.standard(20), CifarResNet.standard(20)
    assert hash(one) == hash(two)
    assert hash(one.widths) == hash(two.widths)


def test_bfloat16_computation_keeps_parameters():
    model = CifarResNet(ResNetWidths.standard(8, width=2), dtype=jnp.bfloat16)
    variables = struct_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(model.apply, variables, jnp.zeros((1, 8, 8, 3)))
    assert logits.dtype == jnp.bfloat16
