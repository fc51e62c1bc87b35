"""State dicts of vision transformers."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ifjax.interop.state_dict import Entry, arrays, assemble, entry, export, key_of
from ifjax.models.vit import ViT
from ifjax.models.widths import Variables
from ifjax.tree import leaves_by_path

_BLOCK = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)")
_OUTSIDE = {"patches": "conv_proj", "ln": "encoder.ln", "linear": "heads.head"}
_INSIDE = {
    "ln1": "ln_1",
    "ln2": "ln_2",
    "fc1": "mlp.0",
    "fc2": "mlp.3",
    "out": "self_attention.out_proj",
}
_PARAMETERS = {"class_token": "class_token", "positions": "encoder.pos_embedding"}
_TORCH_OUTSIDE = {torch: flax for flax, torch in _OUTSIDE.items()}
_TORCH_INSIDE = {torch: flax for flax, torch in _INSIDE.items()}
_TORCH_PARAMETERS = {torch: flax for flax, torch in _PARAMETERS.items()}
_FUSED = ("query", "key", "value")
# Torch's arrays of one attention, and their numbers of axes.
_ATTENTION = {"in_proj_weight": 2, "in_proj_bias": 1, "out_proj.weight": 2, "out_proj.bias": 1}


def vit_from_torch(
    state_dict: Mapping[str, Any],
    *,
    heads: int | Sequence[int],
    head_dim: int | None = None,
    dtype: Any = None,
) -> tuple[ViT, Variables]:
    """Imports the state dict of a torchvision vision transformer, dense or compressed.

    Depth and widths are read off the state dict, but for the number of heads, which no shape tells.
    The names are torchvision's (``encoder.layers.encoder_layer_0.mlp.0.weight``, or ``linear_1`` of
    its older versions); the prefix ``module.`` is understood. Every entry is used.

    Args:
        state_dict: arrays or torch tensors by name, as from :func:`load_safetensors`.
        heads: the attention heads of all blocks, or of each block; torchvision's ``num_heads``.
        head_dim: the attention scores are divided by its square root; by default the width of the
            stream over the number of heads, as in torch. Needed where heads were cut.
        dtype: the dtype in which the module computes; the variables keep theirs.

    Returns:
        The module and its variables ``{"params"}``. Its input is NHWC, of the size the positions
        belong to.

    Raises:
        ValueError: naming every entry that is missing, unexpected, or of a wrong shape, or if
            ``heads`` or ``head_dim`` do not fit.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = ViT.standard(3, dim=8, depth=1, heads=2, mlp=16, patch=4)
        >>> struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        >>> variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), struct)
        >>> again, _ = vit_from_torch(vit_to_torch(variables), heads=2)
        >>> again == model
        True
    """
    state = arrays(state_dict, _usual)
    depth = 1 + max((int(m[1]) for m in map(_BLOCK.match, state) if m), default=0)
    per_block = (heads,) * depth if isinstance(heads, int) else tuple(heads)
    if len(per_block) != depth or not all(isinstance(h, int) and h > 0 for h in per_block):
        raise ValueError(
            f"expected heads as a positive integer or one for each of {depth} blocks, got {heads!r}"
        )
    entries: dict[str, Entry] = {}
    unexpected: list[Entry] = []
    for name, found in state.items():
        match = _BLOCK.fullmatch(name)
        if name in _TORCH_PARAMETERS:
            entries[f"params/{_TORCH_PARAMETERS[name]}"] = found
        elif match and match[2].removeprefix("self_attention.") in _ATTENTION:
            continue
        elif at := _plain(name, found):
            entries[at[0]] = at[1]
        else:
            unexpected.append(found)
    for index, count in enumerate(per_block):
        entries |= _attention(state, index, count)
    if head_dim is None:
        head_dim = _torch_head_dim(state, per_block)
    return assemble(
        "torchvision vision transformer",
        entries,
        unexpected,
        functools.partial(ViT.from_variables, head_dim=head_dim, dtype=dtype),
        _name,
    )


def vit_to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """Exports the variables of a :class:`~ifjax.models.ViT`, dense or compressed.

    The inverse of :func:`vit_from_torch`. The numbers of heads and ``head_dim`` are not part of a
    state dict; keep ``module.widths.heads`` and ``module.head_dim`` beside it where heads were cut.
    Torch itself runs only blocks in which the heads share the width of the stream.

    Args:
        variables: ``{"params"}``.

    Returns:
        Contiguous arrays by torchvision's names: ``safetensors.numpy.save_file`` takes them, and as
        tensors torch's ``load_state_dict``.

    Raises:
        ValueError: if the tree is not that of a ViT; the message names the leaves.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = ViT.standard(3, dim=8, depth=1, heads=2, mlp=16, patch=4)
        >>> struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        >>> variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), struct)
        >>> key = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
        >>> vit_to_torch(variables)[key].shape
        (24, 8)
    """
    widths = ViT.from_variables(variables, head_dim=1).widths
    leaves = leaves_by_path(variables)
    state: dict[str, np.ndarray] = {}
    for leaf, key in _PARAMETERS.items():
        state[key] = np.array(leaves.pop(f"params/{leaf}"))
    for index in range(len(widths.heads)):
        block, prefix = f"params/block{index + 1}", _attention_prefix(index)
        kernels = [np.asarray(leaves.pop(f"{block}/{name}/kernel")) for name in _FUSED]
        biases = [np.asarray(leaves.pop(f"{block}/{name}/bias")) for name in _FUSED]
        out = np.asarray(leaves.pop(f"{block}/out/kernel"))
        rows = [kernel.reshape(widths.dim, -1).T for kernel in kernels]
        state[f"{prefix}in_proj_weight"] = np.ascontiguousarray(np.concatenate(rows))
        state[f"{prefix}in_proj_bias"] = np.concatenate([bias.reshape(-1) for bias in biases])
        state[f"{prefix}out_proj.weight"] = np.array(out.reshape(-1, widths.dim).T, order="C")
    return state | export("ViT", leaves, _name, statistics=False)


def _attention(state: Mapping[str, Entry], index: int, heads: int) -> dict[str, Entry]:
    """The projections of one block, taken out of torch's fused and flattened ones."""
    found: dict[str, Entry] = {}
    for name, ndim in _ATTENTION.items():
        key = _attention_prefix(index) + name
        if key not in state:
            raise ValueError(f"{key}: missing, expected {ndim} axes")
        found[name] = state[key]
        if found[name].array.ndim != ndim:
            shape = found[name].array.shape
            raise ValueError(f"{found[name].key}: expected {ndim} axes, got shape {shape}")
    fused, bias, out = (found[n] for n in ("in_proj_weight", "in_proj_bias", "out_proj.weight"))
    rows, columns = fused.array.shape[0], out.array.shape[1]
    value, rest = divmod(columns, heads)
    query, left = divmod(rows - columns, 2 * heads)
    if rest or left or query < 1 or value < 1:
        raise ValueError(
            f"{fused.key}: expected 2 x {heads} x queries + {heads} x values rows and {heads} x "
            f"values columns at {out.key}, got {rows} and {columns}; pass the number of heads of "
            f"block {index}, not {heads}"
        )
    if bias.array.shape != (rows,):
        raise ValueError(f"{bias.key}: expected shape {(rows,)}, got {bias.array.shape}")
    block = f"params/block{index + 1}"
    kernel = out.array.T.reshape(heads, value, out.array.shape[0])
    entries = {
        f"{block}/out/kernel": Entry(out.key, kernel),
        f"{block}/out/bias": found["out_proj.bias"],
    }
    at = (heads * query, 2 * heads * query)
    parts = zip(_FUSED, np.split(fused.array, at), np.split(bias.array, at), strict=True)
    for name, w, b in parts:
        kernel = w.T.reshape(w.shape[1], heads, -1)
        entries[f"{block}/{name}/kernel"] = Entry(fused.key, kernel)
        entries[f"{block}/{name}/bias"] = Entry(bias.key, b.reshape(heads, -1))
    return entries


def _torch_head_dim(state: Mapping[str, Entry], heads: tuple[int, ...]) -> int:
    """What torch divides the scores by the square root of: the stream's width over the heads."""
    shapes = [state[_attention_prefix(i) + "in_proj_weight"].array.shape for i in range(len(heads))]
    found = {dim // count for (_, dim), count in zip(shapes, heads, strict=True)}
    if len(found) > 1 or any(rows != 3 * dim for rows, dim in shapes):
        raise ValueError(
            f"expected head_dim for heads={heads} and in_proj_weight of shapes {shapes}, where "
            "heads were cut, got none; pass the width of a head before the cut"
        )
    return found.pop()


def _attention_prefix(index: int) -> str:
    return f"encoder.layers.encoder_layer_{index}.self_attention."


def _usual(key: str) -> str:
    """The name of today's torchvision for that of its older versions."""
    return key.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")


def _plain(name: str, found: Entry) -> tuple[str, Entry] | None:
    """Path and values of an array that only changes the order of its axes."""
    module, _, leaf = name.rpartition(".")
    match = _BLOCK.fullmatch(module)
    if match and match[2] in _TORCH_INSIDE:
        return entry(f"block{int(match[1]) + 1}/{_TORCH_INSIDE[match[2]]}", leaf, found)
    if module in _TORCH_OUTSIDE:
        return entry(_TORCH_OUTSIDE[module], leaf, found)
    return None


def _name(path: str) -> str:
    leaf = path.removeprefix("params/")
    return _PARAMETERS[leaf] if leaf in _PARAMETERS else key_of(_torch_module, path)


def _torch_module(module: str) -> str:
    block, _, inside = module.rpartition("/")
    if not block:
        return _OUTSIDE[module]
    return f"encoder.layers.encoder_layer_{int(block.removeprefix('block')) - 1}.{_INSIDE[inside]}"
