"""Checkpoints of Hugging Face decoders: read into parameters, and written at the small widths."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ifjax.interop import huggingface_config as hf
from ifjax.interop.decoder_leaves import HEAD, Place, places, read_tree, to_torch
from ifjax.interop.files import map_safetensors
from ifjax.models.decoder import DecoderConfig
from ifjax.models.decoder_widths import DecoderWidths, layer_widths

INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", INDEX)


class Checkpoint(NamedTuple):
    """A decoder as a checkpoint has it.

    Attributes:
      config: the numbers that the shapes do not tell.
      params: the tree of `ifjax.models.decoder`, numpy arrays on the host.
      source: the text config of Hugging Face, which `save_huggingface` edits.
    """

    config: DecoderConfig
    params: dict[str, Any]
    source: dict[str, Any]


def load_huggingface(
    folder: str | Path,
    *,
    scan: bool = True,
    dtype: Any = None,
    mapped: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Reads a Llama, Mistral, Qwen2, Qwen3, Gemma2 or Gemma3 checkpoint.

    One tensor at a time is held beside the parameters; of sharded files likewise.

    Args:
      folder: with config.json and ``*.safetensors``, sharded with an index or not.
      scan: layers stacked on axis 0, to be scanned; else a list of layers.
      dtype: of the parameters; None for that of the files.
      mapped: leaves are memory maps of the files, which are read when they are used. `compress`
        then holds a layer at a time. Layers are a list, and the dtype that of the files.
      progress: told how many tensors of how many have been read.

    Returns:
      Config, parameters and the text config.

    Raises:
      ValueError: for a file that is missing, damaged, or of another network, naming it; an
        architecture that is not known; quantised weights; a dtype that is not that of the files, or
        a scan, where they are mapped.
      ImportError: without safetensors.
    """
    if mapped and scan:
        raise ValueError("mapped: stacked layers are no part of a file; give scan=False")
    folder = Path(folder)
    source = hf.text_config(_json(folder / "config.json"))
    tensors = SafeTensors(folder, mapped)
    with contextlib.closing(tensors):
        return read_checkpoint(tensors, source, scan=scan, dtype=dtype, progress=progress)


def read_checkpoint(
    tensors: Any,
    source: dict[str, Any],
    *,
    scan: bool = True,
    dtype: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """A checkpoint from tensors of any file and the text config that belongs to them."""
    hf.decoder_config(source)  # refuses before anything is read
    widths, tied = hf.widths_in(source), bool(hf.value(source, "tie_word_embeddings", False))
    leaves = {*_plain_leaves(), *hf.extra_leaves(source)}
    params = read_tree(
        tensors,
        widths,
        leaves,
        post_norms=hf.FAMILIES[source["model_type"]].post_norms,
        tied=tied,
        scan=scan,
        dtype=None if dtype is None else jnp.dtype(dtype),
        progress=progress,
    )
    return Checkpoint(hf.decoder_config(source, params["embedding"].dtype), params, source)


def save_huggingface(
    folder: str | Path,
    config: DecoderConfig,
    params: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    like: str | Path | None = None,
    shard_bytes: int = 2**31,
) -> dict[str, Any]:
    """Writes a decoder as a Hugging Face checkpoint, whatever its widths.

    Numbers that the format derives from a width are made up for in the weights, so that
    transformers computes the same function: the logit scale in the queries, Gemma's embedding
    factor in the embedding. The folder appears when all of it is written.

    Args:
      folder: to be made; refused where it exists and is not empty.
      config: of the decoder.
      params: its tree, dense or cut.
      source: the text config that it was read with; only widths, and what follows from them,
        change in it.
      like: the folder that it was read from: tokenizer and generation config are copied.
      shard_bytes: files are split so that none is larger; one shard at a time is held beside the
        parameters.

    Returns:
      The keys of the config that changed, see `overrides_for`.

    Raises:
      ValueError: for widths that the format cannot say, with the numbers that would do; layers of
        different widths; a config that is not that of ``source``.
      FileExistsError: for a folder that is not empty.
      ImportError: without safetensors.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not empty; give a new folder")
    small = small_config(config, params, source)
    parts = list(_parts(config, params, source))
    shards = _shards(parts, shard_bytes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        if like is not None:
            _copy_others(Path(like), made)
        index: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = "model.safetensors"
            if len(shards) > 1:
                name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            save_file({p.name: make() for p, _, make in shard}, made / name, {"format": "pt"})
            index |= {p.name: name for p, _, _ in shard}
        if len(shards) > 1:
            total = sum(size for _, size, _ in parts)
            content = {"metadata": {"total_size": total}, "weight_map": index}
            (made / INDEX).write_text(json.dumps(content, indent=2))
        (made / "config.json").write_text(json.dumps(small, indent=2) + "\n")
        if folder.exists():
            folder.rmdir()
        os.replace(made, folder)
    return hf.overrides(source, small)


def overrides_for(
    config: DecoderConfig, params: Mapping[str, Any], source: Mapping[str, Any]
) -> dict[str, Any]:
    """The keys of config.json that a cut changes, with their new values.

    Args:
      config: of the decoder.
      params: its tree at the small widths, of arrays or structs.
      source: the text config before.

    Returns:
      New values by key.

    Raises:
      ValueError: as `save_huggingface` says.
    """
    return hf.overrides(source, small_config(config, params, source))


def small_config(
    config: DecoderConfig, params: Mapping[str, Any], source: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole text config of a decoder at its widths, dense or cut."""
    widths = uniform_widths(params)
    dtype = jnp.dtype(params["embedding"].dtype)
    dense = hf.decoder_config(source, dtype)
    same = ("eps", "norm_offset", "activation", "rotary", "local_rotary")
    for name in (*same, "attention_cap", "output_cap"):
        if getattr(dense, name) != getattr(config, name):
            raise ValueError(
                f"config.{name} is {getattr(config, name)!r}, and that of the config.json "
                f"{getattr(dense, name)!r}: they are not of one network"
            )
    stored = next((source[k] for k in ("dtype", "torch_dtype") if source.get(k)), None)
    return hf.cut_config(
        source,
        widths,
        config.windowed,
        tied="head" not in params,
        dtype=None if stored == dtype.name else dtype.name,
    )


def uniform_widths(params: Mapping[str, Any]) -> DecoderWidths:
    """One width per kind, as every exported format has it.

    Args:
      params: of a decoder, arrays or structs.

    Returns:
      The widths.

    Raises:
      ValueError: where layers differ, with the kind and the widths.
    """
    each = layer_widths(params)
    for kind, found in each.items():
        if len(set(found)) > 1:
            raise ValueError(
                f"{kind}: the format has one number for all layers, got {sorted(set(found))}; "
                "cut every layer alike, see uniform= of DependencyGraph.spec"
            )
    one = {kind: found[0] for kind, found in each.items()}
    return DecoderWidths(vocabulary=params["embedding"].shape[0], layers=len(each["hidden"]), **one)


class SafeTensors:
    """The tensors of a folder of safetensors files, read one at a time."""

    def __init__(self, folder: Path, mapped: bool = False) -> None:
        """Opens what the index lists, or the one file.

        Args:
          folder: of the files.
          mapped: arrays are parts of memory maps.

        Raises:
          ValueError: for a file that is missing or damaged.
        """
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError("safetensors files: pip install 'ifjax[llm]'") from error
        if (folder / INDEX).exists():
            listed = _json(folder / INDEX).get("weight_map")
            if not isinstance(listed, dict):
                raise ValueError(f"{folder / INDEX}: expected a weight_map, got none")
            files = sorted(set(listed.values()))
        else:
            files = ["model.safetensors"]
        self._open: list[Any] = []
        self._where: dict[str, Any] = {}
        self._maps: dict[str, np.memmap] = {}
        for name in files:
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: expected this file, found none")
            try:
                file = safe_open(folder / name, framework="np").__enter__()
            except SafetensorError as error:
                raise ValueError(f"{folder / name}: damaged or not complete ({error})") from error
            self._open.append(file)
            self._where |= dict.fromkeys(file.keys(), file)
            self._maps |= map_safetensors(folder / name) if mapped else {}

    def names(self) -> Collection[str]:
        """All names."""
        return self._where

    def read(self, name: str) -> np.ndarray:
        """The array of a name."""
        return self._maps[name] if self._maps else self._where[name].get_tensor(name)

    def close(self) -> None:
        """Closes the files."""
        for file in self._open:
            file.__exit__(None, None, None)


def _plain_leaves() -> tuple[str, ...]:
    from ifjax.models.decoder_widths import KINDS, OPTIONAL

    return tuple(k for k in KINDS if k not in OPTIONAL)


Part = tuple[Place, int, Callable[[], np.ndarray]]


def _parts(
    config: DecoderConfig, params: Mapping[str, Any], source: Mapping[str, Any]
) -> Iterator[Part]:
    """Every tensor: its place, its bytes, and what makes it."""
    widths, layers = uniform_widths(params), params["layers"]
    stacked = isinstance(layers, Mapping)
    first = layers if stacked else layers[0]
    change = _changes(config, params, source)
    post = hf.FAMILIES[source["model_type"]].post_norms
    if post != ("ffn_post_norm" in first):
        raise ValueError(f"the leaves are not those of a {source['model_type']}: {list(first)}")
    for place in places(first.keys(), widths.layers, post, "head" not in params):
        number, leaf = place.layer, place.leaf
        if number is None:
            array = params[leaf]
        else:
            array = layers[leaf] if stacked else layers[number][leaf]
        at = number if stacked else None

        def make(array: Any = array, at: int | None = at, leaf: str = leaf) -> np.ndarray:
            array = np.asarray(array if at is None else array[at])
            if leaf in change:
                array = change[leaf](array.astype(np.float32)).astype(array.dtype)
            return to_torch(leaf, array)

        size = array.size * jnp.dtype(array.dtype).itemsize
        yield place, size if at is None else size // widths.layers, make


def _changes(
    config: DecoderConfig, params: Mapping[str, Any], source: Mapping[str, Any]
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What makes up for numbers that transformers derives from the small widths."""
    widths, layers = uniform_widths(params), params["layers"]
    first = layers if isinstance(layers, Mapping) else layers[0]
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    offset = config.norm_offset
    query = config.logit_scale / hf.logit_scale(source, widths.head_dim)
    if abs(query - 1) > 1e-12:
        if "query_norm" in first:
            found["query_norm"] = lambda w: (offset + w) * query - offset
        else:
            found["query"] = found["query_bias"] = lambda w: w * query
    dtype = params["embedding"].dtype
    scale = config.embedding_scale / hf.embedding_scale(source, widths.hidden, dtype)
    if abs(scale - 1) > 1e-12:
        found["embedding"] = lambda w: w * scale
        if "head" not in params:  # tied: the logits grow by the same factor
            found["norm"] = lambda w: (offset + w) / scale - offset
    return found


def _shards(parts: list[Part], limit: int) -> list[list[Part]]:
    shards: list[list[Part]] = [[]]
    held = 0
    for part in parts:
        if shards[-1] and held + part[1] > limit:
            shards.append([])
            held = 0
        shards[-1].append(part)
        held += part[1]
    return shards


def _copy_others(origin: Path, made: Path) -> None:
    """Tokenizer, generation config and the like: files that are neither weights nor config."""
    for file in sorted(origin.iterdir()):
        weights = file.name.endswith(_WEIGHTS) or file.name.endswith(".index.json")
        if file.is_file() and not weights and file.name != "config.json":
            shutil.copy2(file, made / file.name)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file}: expected this file, found none")
    try:
        found = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(found).__name__}")
    return found


__all__ = [
    "HEAD",
    "Checkpoint",
    "SafeTensors",
    "load_huggingface",
    "overrides_for",
    "read_checkpoint",
    "save_huggingface",
    "small_config",
    "uniform_widths",
]
