"""Torch state dicts and safetensors files, to and from flax variables.

The CIFAR ResNets are covered: torch stores convolutions as OIHW and dense layers as (out, in),
flax as HWIO and (in, out); the names follow a fixed rule. Batch norm agrees but for the running
variance in training, where torch takes the unbiased estimate of a batch and flax the biased one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ifjax.models.cifar_resnet import CifarResNet, ResNetWidths
from ifjax.models.widths import Variables

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
_TORCH_LEAF = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_TORCH_MODULE = {"shortcut_conv": "shortcut.0", "shortcut_bn": "shortcut.1"}
# Axes of a flax kernel in the order in which torch stores them, and back, by number of axes.
_TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCH = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read every tensor of a safetensors file.

    Args:
        path: the file.

    Returns:
        The arrays by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated or not in this format.
        ImportError: if the package safetensors is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "weights.safetensors"
        ...     save_file({"linear.bias": np.zeros(3, np.float32)}, file)
        ...     load_safetensors(file)["linear.bias"].shape
        (3,)
    """
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "reading safetensors files needs the package safetensors; "
            "run: pip install 'ifjax[train]'"
        ) from error
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a safetensors file at {str(path)!r}, got no such file")
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"expected a complete safetensors file at {str(path)!r}, got {path.stat().st_size} "
            f"bytes that do not read as one ({error}); fetch or export the file again"
        ) from error


def cifar_resnet_from_torch(
    state_dict: Mapping[str, Any],
    *,
    pads: tuple[tuple[int, int], ...] | None = None,
    dtype: Any = None,
) -> tuple[CifarResNet, Variables]:
    """Import the state dict of a torch CIFAR ResNet.

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
    state = _normalised(state_dict)
    module = _infer(state, pads, dtype)
    channels = _shape(state, "conv1.weight", 4)[1]
    image = jax.ShapeDtypeStruct((1, 8, 8, channels), "float32")
    struct = jax.eval_shape(module.init, jax.random.key(0), image)
    names = {path: _torch_name(path) for path, _ in _leaves(struct)}
    expected = {
        names[path]: tuple(leaf.shape[axis] for axis in _TO_TORCH[len(leaf.shape)])
        for path, leaf in _leaves(struct)
    }
    lines = [
        f"{name}: missing, expected shape {expected[name]}" for name in expected.keys() - state
    ]
    lines += [f"{name}: unexpected, shape {state[name].shape}" for name in state.keys() - expected]
    lines += [
        f"{name}: expected shape {expected[name]}, got {state[name].shape}"
        for name in expected.keys() & state
        if expected[name] != state[name].shape
    ]
    if lines:
        raise _mismatch(lines)

    def convert(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(state[names[_keys(path)]].transpose(_FROM_TORCH[len(leaf.shape)]))

    return module, jax.tree_util.tree_map_with_path(convert, struct)


def cifar_resnet_to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """Export the variables of a :class:`~ifjax.models.CifarResNet`, dense or compressed.

    The inverse of :func:`cifar_resnet_from_torch`. The pads of an option-A shortcut are not part of
    a state dict; keep ``module.widths.pads`` beside it where the residual stream was cut.

    Args:
        variables: ``{"params", "batch_stats"}``.

    Returns:
        Contiguous arrays by torch's names, without ``num_batches_tracked``: torch's
        ``load_state_dict`` and ``safetensors.numpy.save_file`` take them.

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
    state: dict[str, np.ndarray] = {}
    for path, leaf in _leaves(variables):
        array = np.asarray(leaf)
        if path[-1] not in _TORCH_LEAF or array.ndim not in _TO_TORCH or len(path) < 3:
            raise ValueError(
                f"expected leaves of a CifarResNet, got {'/'.join(path)!r} of shape {array.shape}; "
                'pass {"params": ..., "batch_stats": ...} of one'
            )
        state[_torch_name(path)] = np.ascontiguousarray(array.transpose(_TO_TORCH[array.ndim]))
    norms = [name.removesuffix("weight") for name, value in state.items() if _is_scale(name, value)]
    missing = [n + s for n in norms for s in ("running_mean", "running_var") if n + s not in state]
    if missing:
        raise ValueError(
            f"expected statistics of every batch norm, got none for {', '.join(missing)}; "
            'pass "batch_stats" beside "params"'
        )
    return state


def _is_scale(name: str, value: np.ndarray) -> bool:
    return name.endswith(".weight") and value.ndim == 1


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _leaves(tree: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield _keys(path), leaf


def _torch_name(path: tuple[str, ...]) -> str:
    # ("params", "layer1_0", "conv1", "kernel") -> "layer1.0.conv1.weight"
    modules = [_TORCH_MODULE.get(name, name.replace("_", ".")) for name in path[1:-1]]
    return ".".join((*modules, _TORCH_LEAF[path[-1]]))


def _normalised(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}
    for key, value in state_dict.items():
        name = key.removeprefix("module.").replace(".downsample.", ".shortcut.")
        if name.startswith("fc."):
            name = "linear." + name.removeprefix("fc.")
        if name.endswith("num_batches_tracked"):
            continue
        if name in state:
            raise ValueError(
                f"expected one entry for {name!r}, got a second one at {key!r}; remove one of them"
            )
        # Torch refuses to convert a tensor that requires gradients, as parameters do.
        state[name] = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    return state


def _infer(
    state: Mapping[str, np.ndarray], pads: tuple[tuple[int, int], ...] | None, dtype: Any
) -> CifarResNet:
    found = {(int(m[1]), int(m[2])) for m in map(_BLOCK.match, state) if m}
    stages = max((stage for stage, _ in found), default=1)
    blocks = [
        1 + max((block for at, block in found if at == stage), default=0)
        for stage in range(1, stages + 1)
    ]
    inner = tuple(
        tuple(_shape(state, f"layer{stage}.{block}.conv1.weight", 4)[0] for block in range(count))
        for stage, count in enumerate(blocks, start=1)
    )
    streams = tuple(
        _shape(state, f"layer{stage}.0.conv2.weight", 4)[0] for stage in range(1, stages + 1)
    )
    classes = _shape(state, "linear.weight", 2)[0]
    if any(".shortcut." in name for name in state):
        return CifarResNet(ResNetWidths(streams, inner), classes, "B", dtype)
    if pads is None:
        pads = tuple((width // 4, width // 4) for width in streams[1:])
    return CifarResNet(ResNetWidths(streams, inner, pads), classes, "A", dtype)


def _shape(state: Mapping[str, np.ndarray], name: str, ndim: int) -> tuple[int, ...]:
    if name not in state:
        some = ", ".join(sorted(state)[:4]) or "nothing"
        raise _mismatch([f"{name}: missing (the dict has {some}, ...)"])
    if state[name].ndim != ndim:
        raise _mismatch([f"{name}: expected {ndim} axes, got shape {state[name].shape}"])
    return tuple(state[name].shape)


def _mismatch(lines: list[str]) -> ValueError:
    listing = "\n  ".join(sorted(lines))
    return ValueError(
        f"the state dict is not that of a CIFAR ResNet of basic blocks:\n  {listing}\n"
        "pass model.state_dict() of one, with all of its parameters and buffers"
    )
