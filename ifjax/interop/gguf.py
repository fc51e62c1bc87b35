"""GGUF files of decoders, read as the Hugging Face checkpoints that they were made from.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Quantised tensors become
floating point, one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ifjax.interop.huggingface import Checkpoint, read_checkpoint
from ifjax.models.decoder import FrequencyScaling, Rotary

_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
"""Hugging Face's model type of an architecture."""

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_FREQUENCIES = "rope_freqs.weight"
# What Llama 3.1 and 3.2 were trained with: low and high factor, and the context before.
_LLAMA3 = (1.0, 4.0, 8192)


def load_gguf(
    path: str | Path,
    *,
    scan: bool = True,
    dtype: Any = np.float32,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Reads a Llama, Mistral, SmolLM, Qwen2, Qwen3, Gemma2 or Gemma3 decoder from a GGUF file.

    Args:
      path: of the file.
      scan: layers stacked on axis 0, to be scanned; else a list of layers.
      dtype: of the parameters.
      progress: told how many tensors of how many have been read.

    Returns:
      Config, parameters and a text config as Hugging Face has it, so that
      `ifjax.interop.save_huggingface` can write the network.

    Raises:
      ValueError: for a file that is damaged, an architecture that is not known, or numbers that a
        Hugging Face config cannot say.
      ImportError: without the package gguf.
    """
    tensors = GGUFTensors(path)
    return read_checkpoint(tensors, tensors.source, scan=scan, dtype=dtype, progress=progress)


class GGUFTensors:
    """The tensors of a GGUF file by Hugging Face's names, with the config that they belong to.

    Attributes:
      fields: the file's own keys and values.
      source: the text config of Hugging Face.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the file; nothing but its header is read.

        Raises:
          ValueError: as `load_gguf` says.
        """
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise ImportError("GGUF files: pip install 'ifjax[llm]'") from error
        if not Path(path).is_file():
            raise ValueError(f"{path}: expected a GGUF file, found none")
        try:
            reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: damaged, or no GGUF file ({error})") from error
        self.fields = {key: field.contents() for key, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        for tensor in reader.tensors:
            if tensor.data_offset + tensor.n_bytes > Path(path).stat().st_size:
                raise ValueError(f"{path}: not complete, {tensor.name} ends behind the file")
        self._architecture = str(self.fields.get("general.architecture"))
        if self._architecture not in _TYPES:
            raise ValueError(
                f"{path}: expected an architecture of {', '.join(_TYPES)}, got "
                f"{self._architecture!r}"
            )
        self._where = {self._name(name): name for name in self._tensors if name != _FREQUENCIES}
        self.source = self._source()

    def names(self) -> Collection[str]:
        """All names, as Hugging Face has them."""
        return self._where

    def read(self, name: str) -> np.ndarray:
        """The tensor of a name in float32, ``[out, in]``, as Hugging Face has it."""
        from gguf.quants import dequantize

        tensor = self._tensors[self._where[name]]
        array = dequantize(tensor.data, tensor.tensor_type)
        array = np.asarray(array, np.float32).reshape(tuple(map(int, tensor.shape))[::-1])
        if self._architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
            array = halves_from_neighbours(array, self.source[heads])
        if self._architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array - 1.0
        return array

    def _name(self, name: str) -> str:
        match = _BLOCK.fullmatch(name)
        inside = _INSIDE | (_GEMMA if self._architecture.startswith("gemma") else {})
        if match is None or match[2] not in inside:
            return _TOP.get(name, name)
        return f"model.layers.{match[1]}.{inside[match[2]]}.{match[3]}"

    def _source(self) -> dict[str, Any]:
        """The text config of Hugging Face."""

        def number(key: str, default: Any = None) -> Any:
            found = self.fields.get(f"{self._architecture}.{key}", default)
            if found is None:
                raise ValueError(f"{self._architecture}.{key}: expected this key, got none")
            if isinstance(found, list):
                if len(set(found)) > 1:
                    raise ValueError(
                        f"{self._architecture}.{key}: expected one number for all layers, got "
                        f"{sorted(set(found))}"
                    )
                return found[0]
            return found

        hidden, heads = number("embedding_length"), number("attention.head_count")
        head_dim = number("attention.key_length", number("rope.dimension_count", hidden // heads))
        gemma3 = self._architecture == "gemma3"
        found = {
            "architectures": [_CLASSES[_TYPES[self._architecture]]],
            "model_type": _TYPES[self._architecture],
            "vocab_size": int(self._tensors["token_embd.weight"].shape[1]),
            "hidden_size": hidden,
            "intermediate_size": number("feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": number("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "num_hidden_layers": number("block_count"),
            "rms_norm_eps": round(number("attention.layer_norm_rms_epsilon"), 12),
            "max_position_embeddings": number("context_length"),
            "rope_theta": number("rope.freq_base", 1e6 if gemma3 else 10_000.0),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "bos_token_id": self.fields.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.fields.get("tokenizer.ggml.eos_token_id"),
        }
        if _TYPES[self._architecture] in ("llama", "qwen3"):
            found["attention_bias"] = "blk.0.attn_q.bias" in self._tensors
            found["mlp_bias"] = "blk.0.ffn_up.bias" in self._tensors
        if scaling := self._scaling(found, number):
            found["rope_scaling"] = scaling
        if self._architecture.startswith("gemma"):
            large = found["num_hidden_layers"] in (46, 62)  # the 27B models
            found |= {
                "query_pre_attn_scalar": hidden // heads if large else head_dim,
                "sliding_window": number("attention.sliding_window"),
            }
        if self._architecture == "gemma2":
            found["attn_logit_softcapping"] = number("attn_logit_softcapping", 50.0)
            found["final_logit_softcapping"] = number("final_logit_softcapping", 30.0)
        if gemma3:
            found["rope_local_base_freq"] = number("rope.freq_base_swa", 10_000.0)
            found["sliding_window_pattern"] = number("attention.sliding_window_pattern", 6)
        return found

    def _scaling(
        self, source: Mapping[str, Any], number: Callable[..., Any]
    ) -> dict[str, Any] | None:
        """The rope_scaling of a config.json."""
        kind = number("rope.scaling.type", "none")
        if kind == "linear":
            return {"rope_type": "linear", "factor": float(number("rope.scaling.factor"))}
        if kind not in ("none", ""):
            raise ValueError(f"rope.scaling.type: expected none or linear, got {kind!r}")
        if _FREQUENCIES not in self._tensors:
            return None
        divisors = np.asarray(self._tensors[_FREQUENCIES].data, np.float32).reshape(-1)
        head_dim, (low, high, length) = source["head_dim"], _LLAMA3
        scaling = FrequencyScaling(float(divisors.max()), low, high, length)
        plain = Rotary(source["rope_theta"])
        scaled = Rotary(source["rope_theta"], scaling=scaling)
        wanted = plain.frequencies(head_dim) / scaled.frequencies(head_dim)
        if divisors.shape != wanted.shape or not np.allclose(divisors, wanted, rtol=1e-3):
            raise ValueError(
                f"{_FREQUENCIES}: expected the divisors of Llama 3.1 or 3.2 (factors {low} and "
                f"{high}, {length} positions), got {divisors[:: max(1, len(divisors) // 4)]}"
            )
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": length,
        }


def halves_from_neighbours(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys from pairs of neighbours to pairs of j and j + head_dim / 2.

    >>> halves_from_neighbours(np.arange(4), heads=1).tolist()
    [0, 2, 1, 3]
    """
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
