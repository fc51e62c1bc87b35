"""What the state dicts of all networks have in common: torch's order of axes, names and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ifjax.models.widths import Difference, Variables, VariablesError
from ifjax.tree import leaves_by_path

Module = TypeVar("Module")

# Axes of a flax kernel in the order in which torch stores them, and back, by number of axes.
_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0)}
_STATISTICS = {"running_mean": "mean", "running_var": "var"}
_TORCH_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"} | {
    leaf: name for name, leaf in _STATISTICS.items()
}


class Entry(NamedTuple):
    """One array on its way from a state dict to variables.

    Attributes:
        key: its name in the state dict, as it is spelled there.
        array: its values.
    """

    key: str
    array: np.ndarray


def arrays(state_dict: Mapping[str, Any], spelling: Callable[[str], str]) -> dict[str, Entry]:
    """Reads a state dict into numpy arrays by the usual names.

    The prefix ``module.`` is dropped, and so is ``num_batches_tracked``, which flax does not count.

    Args:
        state_dict: arrays or torch tensors by name.
        spelling: gives the usual name for each name.

    Returns:
        The entries by usual name; bfloat16 tensors become arrays of ``ml_dtypes``.

    Raises:
        ValueError: if two entries have one name.

    Example:
        >>> list(arrays({"module.fc.bias": np.zeros(2)}, lambda name: name))
        ['fc.bias']
    """
    state: dict[str, Entry] = {}
    for key, value in state_dict.items():
        name = spelling(key.removeprefix("module."))
        if name.rpartition(".")[2] == "num_batches_tracked":
            continue
        if name in state:
            raise ValueError(
                f"expected one entry for {name!r}, got a second one at {key!r}; remove one of them"
            )
        if hasattr(value, "detach"):  # torch refuses to convert a tensor that requires gradients
            value = value.detach().cpu()
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # which torch cannot make numpy's
            value = np.asarray(value.float()).astype(jnp.bfloat16)
        state[name] = Entry(key, np.asarray(value))
    return state


def entry(module: str, leaf: str, found: Entry) -> tuple[str, Entry] | None:
    """The flax path of an array and its values in flax's order of axes.

    Args:
        module: flax's name of the module, with ``/`` between its parts.
        leaf: torch's name of the array in its module.
        found: the array, with the axes in torch's order.

    Returns:
        The path and the entry; ``None`` if no module of these networks has such an array.

    Example:
        >>> torch = Entry("fc.weight", np.zeros((10, 64)))
        >>> path, flax = entry("linear", "weight", torch)
        >>> path, flax.array.shape
        ('params/linear/kernel', (64, 10))
    """
    if leaf in _STATISTICS:
        return f"batch_stats/{module}/{_STATISTICS[leaf]}", found
    if leaf == "bias":
        return f"params/{module}/bias", found
    if leaf != "weight":
        return None
    ndim = found.array.ndim
    if ndim < 2:
        return f"params/{module}/scale", found
    order = _FROM_TORCH.get(ndim, range(ndim))
    return f"params/{module}/kernel", Entry(found.key, found.array.transpose(*order))


def key_of(torch_module: Callable[[str], str], path: str) -> str:
    """Torch's name for a flax path.

    Args:
        torch_module: gives torch's name for the name of a flax module.
        path: the path, with ``/`` between the keys.

    Returns:
        The name.

    Raises:
        KeyError: if torch has no such leaf.

    Example:
        >>> key_of({"ln": "encoder.ln"}.__getitem__, "params/ln/scale")
        'encoder.ln.weight'
    """
    module, _, leaf = path.partition("/")[2].rpartition("/")
    if not module:
        raise KeyError(path)
    return f"{torch_module(module)}.{_TORCH_LEAF[leaf]}"


def assemble(
    network: str,
    entries: Mapping[str, Entry],
    unexpected: Iterable[Entry],
    build: Callable[[Variables], Module],
    name: Callable[[str], str],
) -> tuple[Module, Variables]:
    """Builds a module and its variables from the entries of a state dict.

    Args:
        network: what the state dict should be of, for the message.
        entries: by flax path, with the axes in flax's order.
        unexpected: entries that have no place.
        build: builds the module from variables; its ``VariablesError`` is told in torch's terms.
        name: gives torch's name for a flax path.

    Returns:
        The module and its variables.

    Raises:
        ValueError: naming every entry that is missing, unexpected, or of a wrong shape, or whose
            dtype JAX would change.
    """
    lines = [f"{e.key}: unexpected, shape {e.array.shape}" for e in unexpected]
    tree: dict[str, Any] = {}
    for path, found in entries.items():
        *parents, last = path.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = found.array
    module = None
    try:
        module = build(tree)
    except VariablesError as error:
        lines += [_told(d, entries, name) for d in error.differences]
        if any(isinstance(d.expected, int) for d in error.differences):
            some = sorted(e.key for e in entries.values())[:4]
            lines[-1] += f" (the dict has {', '.join([*some, '...'] if some else ['nothing'])})"
    if lines or module is None:
        listing = "\n  ".join(sorted(lines))
        raise ValueError(
            f"the state dict is not that of a {network}:\n  {listing}\n"
            "pass model.state_dict() of one, with all of its parameters and buffers"
        )
    return module, jax.tree_util.tree_map_with_path(
        lambda path, _: _on_device(entries[jax.tree_util.keystr(path, simple=True, separator="/")]),
        tree,
    )


def export(
    network: str, variables: Variables, name: Callable[[str], str], statistics: bool = True
) -> dict[str, np.ndarray]:
    """Writes variables as torch's state dict.

    Args:
        network: what the variables should be of, for the message.
        variables: linen variables, or a part of them.
        name: gives torch's name for a flax path, or raises ``KeyError``.
        statistics: every scale is that of a batch norm, which must have its statistics.

    Returns:
        Contiguous, writable arrays by torch's names.

    Raises:
        ValueError: if a leaf is not one of the network, or a batch norm lacks its statistics.
    """
    leaves = leaves_by_path(variables)
    state: dict[str, np.ndarray] = {}
    for path, leaf in leaves.items():
        array = np.asarray(leaf)
        order = _TO_TORCH.get(array.ndim) if path.endswith("/kernel") else (0,)
        try:
            key = name(path)
        except KeyError:
            key = None
        if key is None or order is None or len(order) != array.ndim:
            raise ValueError(
                f"expected leaves of a {network}, got {path!r} of shape {array.shape}; "
                'pass {"params": ..., "batch_stats": ...} of one'
            )
        state[key] = np.array(array.transpose(order), order="C")
    scales = [p.removeprefix("params/").removesuffix("/scale") for p in leaves if "/scale" in p]
    wanted = (f"batch_stats/{s}/{m}" for s in scales for m in ("mean", "var") if statistics)
    missing = [name(path) for path in wanted if path not in leaves]
    if missing:
        raise ValueError(
            f"expected statistics of every batch norm, got none for {', '.join(missing)}; "
            'pass "batch_stats" beside "params"'
        )
    return state


def _told(difference: Difference, entries: Mapping[str, Entry], name: Callable[[str], str]) -> str:
    """A difference in torch's terms."""
    path, expected, found = difference
    key = entries[path].key if path in entries else name(path)
    if path.endswith("/kernel") and len(found or ()) == 3:
        key = f"{key} (as {path})"
    if expected is None:
        return f"{key}: unexpected, shape {_in_torch(path, found)}"
    if isinstance(expected, int):
        wanted = f"expected {expected} axes"
    else:
        wanted = f"expected shape {_in_torch(path, expected)}"
    if found is None:
        return f"{key}: missing, {wanted}"
    return f"{key}: {wanted}, got {_in_torch(path, found)}"


def _in_torch(path: str, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    order = _TO_TORCH.get(len(shape or ())) if path.endswith("/kernel") else None
    return tuple(shape[axis] for axis in order) if shape and order else shape


def _on_device(found: Entry) -> jax.Array:
    kept = jax.dtypes.canonicalize_dtype(found.array.dtype)
    if kept != found.array.dtype:
        raise ValueError(
            f"{found.key}: expected a dtype that JAX keeps, got {found.array.dtype}, which would "
            f"become {kept}; cast it, or call jax.config.update('jax_enable_x64', True)"
        )
    return jnp.asarray(found.array)
