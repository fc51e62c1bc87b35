"""Networks by name."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn

from ifjax.models.cifar_resnet import CifarResNet
from ifjax.models.cnn import SmallCNN
from ifjax.models.mlp import MLP
from ifjax.models.resnet import ResNet
from ifjax.models.vgg import VGG
from ifjax.models.vit import ViT


def _vit(dim: int, heads: int, patch: int) -> Any:
    return functools.partial(ViT.standard, dim=dim, depth=12, heads=heads, mlp=4 * dim, patch=patch)


_CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
_DEPTHS = (18, 34, 50, 101)
_MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mlp": (MLP, {}),
    "cnn": (SmallCNN, {}),
    **{f"vgg{depth}": (VGG.standard, {"depth": depth}) for depth in (11, 13, 16, 19)},
    **{f"resnet{depth}": (CifarResNet.standard, {"depth": depth}) for depth in _CIFAR_DEPTHS},
    **{f"resnet{depth}": (ResNet.standard, {"depth": depth}) for depth in _DEPTHS},
    # The tiny and the small one are DeiT's (https://arxiv.org/abs/2012.12877), on small patches.
    "vit_tiny": (_vit(192, 3, 4), {}),
    "vit_small": (_vit(384, 6, 4), {}),
    "vit_b_16": (_vit(768, 12, 16), {}),
}

NAMES: tuple[str, ...] = tuple(_MODELS)
"""The names :func:`create` knows."""


def create(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """Builds a network by its name.

    Args:
        name: ``"mlp"``, ``"cnn"``; ``"vgg11"``, ``"vgg13"``, ``"vgg16"``, ``"vgg19"``; the CIFAR
            ResNets ``"resnet8"``, ``"resnet14"``, ``"resnet20"``, ``"resnet32"``, ``"resnet44"``,
            ``"resnet56"``, ``"resnet110"``; the ImageNet ResNets ``"resnet18"``, ``"resnet34"``,
            ``"resnet50"``, ``"resnet101"``; ``"vit_tiny"`` and ``"vit_small"`` (patches of 4
            pixels), ``"vit_b_16"``.
        num_classes: the number of logits.
        **options: ``dtype`` for all; ``width``, a multiplier, for all but the MLP and the CNN,
            which take ``hidden``, the CNN ``widths`` as well; ``shortcut`` (``"A"`` by default, or
            ``"B"``) for the CIFAR ResNets; ``stem`` (``"cifar"`` by default, or ``"imagenet"``) for
            the ImageNet ResNets; ``depth``, ``dim``, ``heads``, ``mlp``, ``patch`` for the ViTs.

    Returns:
        The module; ``module.apply(variables, x, train=False)`` gives logits.

    Raises:
        ValueError: if the name is unknown, or an option is not valid.
        TypeError: if the network has no such option.

    Example:
        >>> create("cnn", num_classes=3, widths=(4, 8)).widths
        (4, 8)
        >>> create("resnet56", shortcut="B").shortcut
        'B'
        >>> create("vgg11", width=0.25).widths[0]
        (16,)
        >>> create("vit_tiny", depth=6).widths.heads
        (3, 3, 3, 3, 3, 3)
    """
    if name not in _MODELS:
        raise ValueError(f"expected a model name out of {', '.join(NAMES)}; got {name!r}")
    build, fixed = _MODELS[name]
    return build(num_classes=num_classes, **fixed, **options)
