from __future__ import annotations

import jax
import jaxtyping
import numpy as np
import pytest

from ifjax.interop import vit_from_torch, vit_to_torch
from ifjax.models import ViT, ViTWidths
from tests.models.compression import drawn, struct

DENSE = ViT.standard(3, dim=6, depth=2, heads=2, mlp=5, patch=2)
CUT = ViT(ViTWidths(6, (2, 3), (4, 2), (3, 5), (7, 4)), head_dim=4, num_classes=3, patch=2)
ATTENTION = "encoder.layers.encoder_layer_1.self_attention."


@pytest.fixture
def unchecked(monkeypatch):
    """Let wrong arguments reach our own errors, where types are checked at run time too."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def state_of(model: ViT):
    variables = drawn(struct(model, 4, 4, 3))
    return variables, vit_to_torch(variables)


@pytest.mark.parametrize(
    ("model", "options"),
    [(DENSE, {"heads": 2}), (CUT, {"heads": (2, 3), "head_dim": 4})],
    ids=["dense", "cut"],
)
def test_round_trip_is_exact(model, options):
    variables, state = state_of(model)
    module, again = vit_from_torch(state, **options)
    assert module == model
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))
    twice = vit_to_torch(again)
    assert twice.keys() == state.keys()
    assert all(value.flags.c_contiguous and value.flags.writeable for value in state.values())
    assert all(np.array_equal(twice[name], value) for name, value in state.items())


def test_projections_are_fused_and_flattened_head_by_head():
    variables, state = state_of(CUT)
    block = variables["params"]["block2"]
    fused, bias = state[f"{ATTENTION}in_proj_weight"], state[f"{ATTENTION}in_proj_bias"]
    assert fused.shape == (3 * (2 + 2 + 5), 6)
    # rows: heads x queries, heads x keys, heads x values
    np.testing.assert_array_equal(fused[1 * 2 + 1], block["query"]["kernel"][:, 1, 1])
    np.testing.assert_array_equal(fused[6 + 2 * 2], block["key"]["kernel"][:, 2, 0])
    np.testing.assert_array_equal(fused[12 + 1 * 5 + 3], block["value"]["kernel"][:, 1, 3])
    np.testing.assert_array_equal(bias[12 + 1 * 5 + 3], block["value"]["bias"][1, 3])
    out = state[f"{ATTENTION}out_proj.weight"]
    np.testing.assert_array_equal(out[:, 2 * 5 + 4], block["out"]["kernel"][2, 4])


def test_names_of_older_versions_are_understood():
    _, state = state_of(DENSE)
    old = {
        "module." + name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): value
        for name, value in state.items()
    }
    assert old.keys() & state.keys() == set()
    assert vit_from_torch(old, heads=2)[0] == DENSE


def test_head_dim_of_cut_heads_must_be_given():
    _, state = state_of(CUT)
    with pytest.raises(ValueError, match=r"expected head_dim for heads=\(2, 3\)"):
        vit_from_torch(state, heads=(2, 3))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("heads", [(2,), (2, 0), 0, (2, "3")])
def test_heads_must_fit_the_blocks(heads):
    with pytest.raises(ValueError, match="heads as a positive integer or one for each of 2 blocks"):
        vit_from_torch(state_of(CUT)[1], heads=heads)


def test_heads_must_divide_the_projections():
    with pytest.raises(ValueError, match=r"in_proj_weight: .*pass the number of heads of block 0"):
        vit_from_torch(state_of(DENSE)[1], heads=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("encoder.layers.encoder_layer_1.ln_2.bias"),
            r"encoder_layer_1.ln_2.bias: missing, expected shape \(6,\)",
        ),
        (lambda s: s.pop("class_token"), r"class_token: missing, expected shape \(1, 1, 6\)"),
        (lambda s: s.pop("encoder.pos_embedding"), "encoder.pos_embedding: missing"),
        (lambda s: s.pop("heads.head.weight"), "heads.head.weight: missing"),
        (
            lambda s: s.update({"conv_proj.weight": np.zeros((5, 3, 2, 2), np.float32)}),
            r"class_token: expected shape \(1, 1, 5\), got \(1, 1, 6\)",
        ),
        (
            lambda s: s.update({"heads.pre_logits.weight": np.zeros((6, 6), np.float32)}),
            r"heads.pre_logits.weight: unexpected, shape \(6, 6\)",
        ),
        (
            lambda s: s.update({f"{ATTENTION}bias_k": np.zeros((1, 1, 6), np.float32)}),
            r"self_attention.bias_k: unexpected",
        ),
        (lambda s: s.pop(f"{ATTENTION}in_proj_bias"), "in_proj_bias: missing, expected 1 axes"),
        (
            lambda s: s.update({f"{ATTENTION}in_proj_bias": np.zeros(7, np.float32)}),
            r"in_proj_bias: expected shape \(18,\), got \(7,\)",
        ),
        (
            lambda s: s.update({f"{ATTENTION}in_proj_weight": np.zeros((18, 5), np.float32)}),
            r"in_proj_weight \(as params/block2/key/kernel\): expected shape \(6, 2, 3\), got \(5",
        ),
        (
            lambda s: s.update({f"{ATTENTION}in_proj_weight": np.zeros(18, np.float32)}),
            r"in_proj_weight: expected 2 axes, got shape \(18,\)",
        ),
    ],
)
def test_every_wrong_entry_is_named(change, message):
    _, state = state_of(DENSE)
    change(state)
    with pytest.raises(ValueError, match=message):
        vit_from_torch(state, heads=2, head_dim=3)


def test_export_refuses_what_is_no_vit():
    variables, _ = state_of(DENSE)
    del variables["params"]["block1"]["key"]["bias"]
    with pytest.raises(ValueError, match=r"params/block1/key/bias: expected .*, got no leaf"):
        vit_to_torch(variables)
