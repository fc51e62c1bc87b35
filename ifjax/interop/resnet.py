"""State dicts of residual networks."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ifjax.interop.state_dict import Entry, arrays, assemble, entry, export, key_of
from ifjax.models.cifar_resnet import CifarResNet
from ifjax.models.resnet import ResNet
from ifjax.models.resnet_widths import ResNetWidths
from ifjax.models.widths import Variables, leaf_shape

Names = Literal["cifar", "torchvision"]

_BLOCK = re.compile(r"(layer\d+)\.(\d+)\.")
_FC = re.compile(r"^fc\.")
_SHORTCUT = {"shortcut_conv": "0", "shortcut_bn": "1"}
_SPELLED = {"shortcut.0": "shortcut_conv", "shortcut.1": "shortcut_bn"}


def cifar_resnet_from_torch(
    state_dict: Mapping[str, Any],
    *,
    pads: tuple[tuple[int, int], ...] | None = None,
    dtype: Any = None,
) -> tuple[CifarResNet, Variables]:
    """Imports the state dict of a torch CIFAR ResNet of three stages.

    Depth, widths and shortcut are read off the state dict. Names are ``conv1.weight``,
    ``bn1.weight``, ``layer1.0.conv1.weight``, ..., ``linear.weight``; the prefix ``module.``,
    ``fc.`` for ``linear.`` and ``downsample.`` for ``shortcut.`` are understood,
    ``num_batches_tracked`` is ignored. Every other entry is used.

    Args:
        state_dict: arrays or torch tensors by name, as from :func:`load_safetensors`.
        pads: for option A, the zero channels (before, after) the shortcut's at each transition; by
            default a quarter of the wider stream on each side.
        dtype: the dtype in which the module computes; the variables keep theirs.

    Returns:
        The module and its variables ``{"params", "batch_stats"}``. Its input is NHWC, normalised as
        in training; see :data:`ifjax.data.CIFAR10_MEAN`.

    Raises:
        ValueError: naming every entry that is missing, unexpected, or of a wrong shape.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from ifjax.models import CifarResNet, ResNetWidths
        >>> model = CifarResNet(ResNetWidths.standard(8, width=2))
        >>> struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        >>> variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), struct)
        >>> again, _ = cifar_resnet_from_torch(cifar_resnet_to_torch(variables))
        >>> again == model
        True
    """

    def build(variables: Variables) -> CifarResNet:
        streams = ResNetWidths.from_variables(variables).streams
        quarters = tuple((width // 4, width // 4) for width in streams[1:])
        return CifarResNet.from_variables(
            variables, pads=quarters if pads is None else pads, dtype=dtype
        )

    return _import("CIFAR ResNet of basic blocks", state_dict, build)


def cifar_resnet_to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """Exports the variables of a :class:`~ifjax.models.CifarResNet`, dense or compressed.

    The inverse of :func:`cifar_resnet_from_torch`. The pads of an option-A shortcut are not part of
    a state dict; keep ``module.widths.pads`` beside it where the residual stream was cut.

    Args:
        variables: ``{"params", "batch_stats"}``.

    Returns:
        Contiguous arrays by torch's names, without ``num_batches_tracked``:
        ``safetensors.numpy.save_file`` takes them, and as tensors torch's ``load_state_dict``.

    Raises:
        ValueError: if a leaf is not one of a CIFAR ResNet, or a batch norm lacks its statistics.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from ifjax.models import CifarResNet, ResNetWidths
        >>> model = CifarResNet(ResNetWidths.standard(8, width=2))
        >>> struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        >>> variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), struct)
        >>> cifar_resnet_to_torch(variables)["layer3.0.conv2.weight"].shape
        (8, 8, 3, 3)
    """
    return export("CifarResNet", variables, functools.partial(_name, "cifar"))


def resnet_from_torch(
    state_dict: Mapping[str, Any], *, dtype: Any = None
) -> tuple[ResNet, Variables]:
    """Imports the state dict of a torch ResNet with projected shortcuts, such as ResNet-18 or 50.

    Depth, kind of blocks, widths and stem are read off the state dict; a stem of 7x7 is ImageNet's.
    The names are torchvision's (``layer1.0.downsample.0.weight``, ``fc.weight``) or those usual for
    CIFAR (``layer1.0.shortcut.0.weight``, ``linear.weight``); the prefix ``module.`` is understood,
    ``num_batches_tracked`` is ignored. Every other entry is used.

    Args:
        state_dict: arrays or torch tensors by name, as from :func:`load_safetensors`.
        dtype: the dtype in which the module computes; the variables keep theirs.

    Returns:
        The module and its variables ``{"params", "batch_stats"}``. Its input is NHWC.

    Raises:
        ValueError: naming every entry that is missing, unexpected, or of a wrong shape.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = ResNet.standard(50, 3, width=1 / 32, stem="imagenet")
        >>> struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), struct)
        >>> again, _ = resnet_from_torch(resnet_to_torch(variables))
        >>> again == model
        True
    """
    return _import(
        "ResNet with projected shortcuts",
        state_dict,
        functools.partial(ResNet.from_variables, pads=(), dtype=dtype),
    )


def resnet_to_torch(variables: Variables, *, names: Names | None = None) -> dict[str, np.ndarray]:
    """Exports the variables of a :class:`~ifjax.models.ResNet`, dense or compressed.

    The inverse of :func:`resnet_from_torch`.

    Args:
        variables: ``{"params", "batch_stats"}``.
        names: ``"torchvision"`` (``downsample``, ``fc``) or ``"cifar"`` (``shortcut``, ``linear``);
            by default torchvision's for the 7x7 stem, else those usual for CIFAR.

    Returns:
        Contiguous arrays by torch's names, without ``num_batches_tracked``:
        ``safetensors.numpy.save_file`` takes them, and as tensors torch's ``load_state_dict``.

    Raises:
        ValueError: if a leaf is not one of a ResNet, a batch norm lacks its statistics, or the
            names are unknown.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = ResNet.standard(18, 3, width=1 / 32)
        >>> struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), struct)
        >>> resnet_to_torch(variables)["layer2.0.shortcut.0.weight"].shape
        (4, 2, 1, 1)
    """
    if names is None:
        imagenet = leaf_shape(variables, "params/conv1/kernel", 4)[0] == 7
        names = "torchvision" if imagenet else "cifar"
    if names not in ("cifar", "torchvision"):
        raise ValueError(f"expected names 'cifar' or 'torchvision', got {names!r}")
    return export("ResNet", variables, functools.partial(_name, names))


def _import(network: str, state_dict: Mapping[str, Any], build: Any) -> tuple[Any, Variables]:
    entries: dict[str, Entry] = {}
    unexpected: list[Entry] = []
    state = arrays(state_dict, _usual)
    for name, found in state.items():
        module, _, leaf = name.rpartition(".")
        block = _BLOCK.match(module)
        if block:
            inside = module[block.end() :]
            module = f"{block[1]}_{block[2]}/{_SPELLED.get(inside, inside)}"
        at = entry(module, leaf, found)
        if at is None:
            unexpected.append(found)
        else:
            entries[at[0]] = at[1]
    respelled = any(name not in found.key for name, found in state.items())
    names = "torchvision" if respelled else "cifar"
    return assemble(network, entries, unexpected, build, functools.partial(_name, names))


def _usual(key: str) -> str:
    """The CIFAR name for torchvision's."""
    return _FC.sub("linear.", key).replace(".downsample.", ".shortcut.")


def _name(names: Names, path: str) -> str:
    return key_of(functools.partial(_torch_module, names), path)


def _torch_module(names: Names, module: str) -> str:
    # "layer1_0/shortcut_conv" -> "layer1.0.shortcut.0"
    if module == "linear":
        return "fc" if names == "torchvision" else "linear"
    block, _, inside = module.rpartition("/")
    if inside in _SHORTCUT:
        around = "downsample" if names == "torchvision" else "shortcut"
        inside = f"{around}.{_SHORTCUT[inside]}"
    return f"{block.replace('_', '.')}.{inside}" if block else inside
