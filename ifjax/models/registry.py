"""Networks by name."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from ifjax.models.cifar_resnet import CifarResNet
from ifjax.models.cnn import SmallCNN
from ifjax.models.mlp import MLP

_DEPTHS = (20, 32, 44, 56, 110)
_MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mlp": (MLP, {}),
    "cnn": (SmallCNN, {}),
    **{f"resnet{depth}": (CifarResNet.standard, {"depth": depth}) for depth in _DEPTHS},
}

NAMES: tuple[str, ...] = tuple(_MODELS)
"""The names :func:`create` knows."""


def create(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """Build a network by its name.

    Args:
        name: ``"mlp"``, ``"cnn"``, or ``"resnet20"``, ``"resnet32"``, ``"resnet44"``,
            ``"resnet56"``, ``"resnet110"``.
        num_classes: the number of logits.
        **options: what the class takes besides: ``hidden`` for the MLP, ``widths`` and ``hidden``
            for the CNN, ``shortcut`` (``"A"`` by default, or ``"B"``) for the ResNets, and
            ``dtype`` for all.

    Returns:
        The module; ``module.apply(variables, x, train=False)`` gives logits.

    Raises:
        ValueError: if the name is unknown, or a width or shortcut is not valid.
        TypeError: if the network has no such option.

    Example:
        >>> create("cnn", num_classes=3, widths=(4, 8)).widths
        (4, 8)
        >>> create("resnet56", shortcut="B").shortcut
        'B'
    """
    if name not in _MODELS:
        raise ValueError(f"expected a model name out of {', '.join(NAMES)}; got {name!r}")
    build, fixed = _MODELS[name]
    return build(num_classes=num_classes, **fixed, **options)
