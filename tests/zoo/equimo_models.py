"""equimo: ready-made vision models, in inference mode.

Their layer norms compute in float32, whatever they are given.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
from equimo import models

from tests.zoo.model import model, rows

FLOAT32 = 1e-5


def vision(make: Any, batch: int, size: int = 16) -> tuple[Any, Any, tuple[Any, ...]]:
    """The model's function over images, channels first, the structs of its arrays, and images."""
    module = eqx.nn.inference_mode(make(jax.random.key(0)))
    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, float), arrays)

    def f(p: Any, x: Any) -> Any:
        network = eqx.combine(p, static)
        return jax.vmap(lambda x: network(x, key=jax.random.key(0), inference=True))(x)

    return f, structs, (rows(batch, 3, size, size),)


@model("ViT", "equimo", tolerance=FLOAT32, silent=("*k_norm/bias*",))
def equimo_vision_transformer(batch):
    """Registers, class token, layer scale, normalised queries and keys."""

    def make(key: Any) -> Any:
        return models.VisionTransformer(
            img_size=16,
            in_channels=3,
            dim=8,
            patch_size=8,
            num_heads=2,
            depths=[2],
            reg_tokens=2,
            qk_norm=True,
            init_values=0.1,
            mlp_ratio=1.5,
            num_classes=3,
            key=key,
        )

    return vision(make, batch)


@model("ConvNeXt", "equimo", tolerance=FLOAT32)
def equimo_convnext(batch):
    def make(key: Any) -> Any:
        return models.ConvNeXt(3, depths=[1, 1, 1, 1], dims=[4, 6, 6, 8], num_classes=3, key=key)

    return vision(make, batch, 32)


@model("MobileNet", "equimo", silent=("*: conv1/conv/bias*",))  # a norm per channel follows
def equimo_mobilenet(batch):
    def make(key: Any) -> Any:
        config = [(4, 8, 3, 1, True, "relu"), (6, 10, 3, 2, True, "hard_swish")]
        return models.MobileNetv3(3, config, last_channels=64, num_classes=3, key=key)

    return vision(make, batch)


@model("attention", "equimo", silent=("*/in_proj/*",))
def equimo_linear_attention(batch):
    """MLLA; in this release its attention branch reaches no output, which the graph reports."""

    def make(key: Any) -> Any:
        return models.Mlla(
            img_size=16,
            in_channels=3,
            dim=8,
            patch_size=4,
            depths=[1, 1],
            num_heads=[2, 2],
            mlp_ratio=1.5,
            num_classes=3,
            key=key,
        )

    return vision(make, batch)


@model("state space", "equimo", tolerance=FLOAT32)
def equimo_state_space_duality(batch):
    """VSSD: a stage of non-causal state-space duality, a stage of attention."""

    def make(key: Any) -> Any:
        return models.Vssd(
            img_size=16,
            in_channels=3,
            dim=8,
            d_state=4,
            patch_size=4,
            depths=[1, 1],
            num_heads=[2, 2],
            attentions_layers=("mamba2mixer", "attention"),
            mlp_ratio=1.5,
            num_classes=3,
            key=key,
        )

    return vision(make, batch)
