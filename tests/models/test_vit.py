from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import ifjax
from ifjax.models import ViT, ViTWidths, create
from tests.models.compression import drawn, groups, hold, struct

SMALL = ViT(ViTWidths(6, (2, 3), (4, 2), (3, 5), (7, 4)), head_dim=4, num_classes=3, patch=2)


def definition(model: ViT, variables, x: np.ndarray) -> np.ndarray:
    """Evaluate the network in float64 numpy, patch by patch and head by head."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])

    def norm(p, y):
        y = y - y.mean(-1, keepdims=True)
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    logits = []
    for image in x.astype(np.float64):
        size = model.patch
        tokens = [params["class_token"][0, 0]]
        for row in range(0, image.shape[0], size):
            for column in range(0, image.shape[1], size):
                patch = image[row : row + size, column : column + size]
                kernel = params["patches"]["kernel"]
                tokens.append(
                    (patch[..., None] * kernel).sum((0, 1, 2)) + params["patches"]["bias"]
                )
        y = np.stack(tokens) + params["positions"][0]
        for index, heads in enumerate(model.widths.heads, start=1):
            block = params[f"block{index}"]
            z, total = norm(block["ln1"], y), block["out"]["bias"]
            for head in range(heads):
                q, k, v = (
                    z @ block[name]["kernel"][:, head] + block[name]["bias"][head]
                    for name in ("query", "key", "value")
                )
                weights = scipy.special.softmax(q @ k.T / np.sqrt(model.head_dim), axis=-1)
                total = total + weights @ v @ block["out"]["kernel"][head]
            y = y + total
            z = norm(block["ln2"], y) @ block["fc1"]["kernel"] + block["fc1"]["bias"]
            z = z * scipy.special.ndtr(z)
            y = y + z @ block["fc2"]["kernel"] + block["fc2"]["bias"]
        y = norm(params["ln"], y)[0]
        logits.append(y @ params["linear"]["kernel"] + params["linear"]["bias"])
    return np.stack(logits)


def test_logits_equal_the_definition_at_uneven_widths():
    variables = drawn(struct(SMALL, 4, 6, 3))
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 3)).astype(np.float32)
    found = jax.jit(SMALL.apply)(variables, x)
    expected = definition(SMALL, variables, x)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_the_usual_sizes():
    """Torchvision counts 86,567,656 in vit_b_16 for 224 x 224 pixels and 1,000 classes."""
    variables = struct(create("vit_b_16", 1000), 224, 224, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 86_567_656
    assert create("vit_tiny").widths == ViTWidths.standard(192, 12, 3, 768)
    assert create("vit_small").widths == ViTWidths.standard(384, 12, 6, 1536)
    assert create("vit_tiny").patch == create("vit_small").patch == 4
    thin = create("vit_small", width=0.25)
    assert thin.widths == ViTWidths.standard(96, 12, 6, 384)
    assert thin.head_dim == 16


def test_heads_head_dim_and_mlp_are_groups_per_block():
    model = create("vit_b_16", 10, depth=2)
    graph = ifjax.trace(model.apply, struct(model, 32, 32, 3), jnp.zeros((1, 32, 32, 3)))
    found = {group.name: (group.size, group.kind) for group in graph.groups}
    for block in ("params/block1", "params/block2"):
        assert found[f"{block}/query/kernel"] == (12, "head")
        assert found[f"{block}/query/kernel (head_dim)"] == (64, "head_dim")
        assert found[f"{block}/value/kernel"] == (64, "head_dim")
        assert found[f"{block}/fc1/kernel"] == (3072, "neuron")
    heads = graph.structure.group["params/block1/query/kernel"]
    assert {(m.path.removeprefix("params/block1/"), m.axis) for m in heads.members} == {
        ("query/kernel", 1),
        ("query/bias", 0),
        ("key/kernel", 1),
        ("key/bias", 0),
        ("value/kernel", 1),
        ("value/bias", 0),
        ("out/kernel", 0),
    }


def test_a_cut_network_is_an_ordinary_module():
    model = ViT.standard(3, dim=8, depth=2, heads=2, mlp=6, patch=2)
    graph, spec, small = hold(model, (4, 4, 3), "params/block*")
    kept = {group.name: group.kept for group in spec.groups}
    assert small.head_dim == 4
    assert small.widths.heads == tuple(kept[f"params/block{b}/query/kernel"] for b in (1, 2))
    assert small.widths.query == tuple(
        kept[f"params/block{b}/query/kernel (head_dim)"] for b in (1, 2)
    )
    assert small.widths.query[0] < 4
    assert small.widths.mlp == tuple(kept[f"params/block{b}/fc1/kernel"] for b in (1, 2))
    assert len(groups(graph)) >= 8


def test_from_variables_needs_the_width_the_scores_are_scaled_by():
    variables = struct(SMALL, 4, 6, 3)
    assert ViT.from_variables(variables, head_dim=4) == SMALL
    with pytest.raises(ValueError, match=r"expected head_dim.*queries \(4, 2\) wide"):
        ViT.from_variables(variables)


def test_from_variables_names_the_leaf_that_does_not_fit():
    variables = struct(SMALL, 4, 6, 3)
    variables["params"]["block2"]["out"]["kernel"] = jax.ShapeDtypeStruct((2, 5, 6), "float32")
    message = r"block2/out/kernel: expected \(3, 5, 6\), got \(2, 5, 6\)"
    with pytest.raises(ValueError, match=message):
        ViT.from_variables(variables, head_dim=4)
    with pytest.raises(ValueError, match="expected a leaf at 'params/block1/query/kernel'"):
        ViT.from_variables({"params": {}}, head_dim=4)


def test_bfloat16_computation_keeps_parameters():
    model = create("vit_tiny", depth=1, dtype=jnp.bfloat16)
    variables = struct(model, 8, 8, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(model.apply, variables, jnp.zeros((1, 8, 8, 3)))
    assert logits.dtype == jnp.bfloat16


def test_images_that_do_not_divide_into_patches_are_refused():
    with pytest.raises(ValueError, match=r"multiples of patch=2, got shape \(1, 4, 5, 3\)"):
        SMALL.init(jax.random.key(0), np.zeros((1, 4, 5, 3), np.float32))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("attribute", ["head_dim", "num_classes", "patch"])
def test_bad_numbers_are_refused(attribute):
    with pytest.raises(ValueError, match=attribute):
        ViT(SMALL.widths, **({"head_dim": 4} | {attribute: 0}))
