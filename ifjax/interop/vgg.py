"""State dicts of VGG with batch norm."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ifjax.interop.state_dict import Entry, arrays, assemble, entry, export, key_of
from ifjax.models.vgg import VGG
from ifjax.models.widths import Variables

_FEATURE = re.compile(r"features\.(\d+)")
_CONV = re.compile(r"conv(\d+)_(\d+)")
_NORM = re.compile(r"bn(\d+)_(\d+)")


def vgg_from_torch(state_dict: Mapping[str, Any], *, dtype: Any = None) -> tuple[VGG, Variables]:
    """Imports the state dict of a torch VGG with batch norm and one linear classifier.

    The convolutions, norms, ReLUs and max-pools are numbered through as ``features.0``,
    ``features.1``, ...; the numbers of the convolutions tell where the max-pools are. The
    classifier is ``classifier.weight``; the prefix ``module.`` is understood,
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
        >>> model = VGG(((3, 5), (4,)))
        >>> struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
        >>> variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), struct)
        >>> again, _ = vgg_from_torch(vgg_to_torch(variables))
        >>> again == model
        True
    """
    state = arrays(state_dict, lambda key: key)
    modules = _modules(state)
    # Without convolutions there are no numbers, and the first one is missing.
    names = {"conv1_1": "features.0"} | {module: key for key, module in modules.items()}
    entries: dict[str, Entry] = {}
    unexpected: list[Entry] = []
    for name, found in state.items():
        module, _, leaf = name.rpartition(".")
        at = entry(modules[module], leaf, found) if module in modules else None
        if at is None:
            unexpected.append(found)
        else:
            entries[at[0]] = at[1]
    return assemble(
        "VGG with batch norm and one linear classifier",
        entries,
        unexpected,
        functools.partial(VGG.from_variables, dtype=dtype),
        functools.partial(key_of, names.__getitem__),
    )


def vgg_to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """Exports the variables of a :class:`~ifjax.models.VGG`, dense or compressed.

    The inverse of :func:`vgg_from_torch`.

    Args:
        variables: ``{"params", "batch_stats"}``.

    Returns:
        Contiguous arrays by torch's names, without ``num_batches_tracked``:
        ``safetensors.numpy.save_file`` takes them, and as tensors torch's ``load_state_dict``.

    Raises:
        ValueError: if a leaf is not one of a VGG, or a batch norm lacks its statistics.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = VGG(((3, 5), (4,)))
        >>> struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
        >>> variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), struct)
        >>> vgg_to_torch(variables)["features.7.weight"].shape
        (4, 5, 3, 3)
    """
    found = (_CONV.fullmatch(module) for module in variables.get("params", {}))
    places = sorted((int(m[1]), int(m[2])) for m in found if m)
    names = {"linear": "classifier"}
    for index, (stage, position) in enumerate(places):
        # Three modules per convolution, one max-pool per stage before.
        number = 3 * index + stage - 1
        names[f"conv{stage}_{position}"] = f"features.{number}"
        names[f"bn{stage}_{position}"] = f"features.{number + 1}"
    return export("VGG", variables, functools.partial(key_of, names.__getitem__))


def _modules(state: Mapping[str, Entry]) -> dict[str, str]:
    """Flax's name for each of torch's modules, by the numbers of the convolutions."""
    numbers = sorted(
        int(match[1])
        for key, found in state.items()
        if (match := _FEATURE.fullmatch(key.removesuffix(".weight"))) and found.array.ndim == 4
    )
    names = {"classifier": "linear"}
    stage = position = 1
    for before, number in zip([None, *numbers], numbers, strict=False):
        expected = (0,) if before is None else (before + 3, before + 4)
        if number not in expected:
            keys = " or ".join(f"features.{n}.weight" for n in expected)
            raise ValueError(
                f"expected the next convolution of a VGG with batch norm at {keys}, got it at "
                f"features.{number}.weight; pass model.state_dict() of one whose stages of "
                "(convolution, batch norm, ReLU) each end in a max-pool"
            )
        if before is not None:
            stage, position = (stage, position + 1) if number == before + 3 else (stage + 1, 1)
        names[f"features.{number}"] = f"conv{stage}_{position}"
        names[f"features.{number + 1}"] = f"bn{stage}_{position}"
    return names
