from __future__ import annotations

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from benchmarks import decoder_logits
from ifjax.interop import load_huggingface
from ifjax.models import decoder
from ifjax.models.decoder import FrequencyScaling

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'ifjax[llm]'")

from ifjax.interop import load_gguf, load_tokenizer  # noqa: E402

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
TWO = {"post_attention_layernorm": "ffn_norm"}
FOUR = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def written(file, checkpoint, state, quantise=(), divisors=None):
    """A GGUF file as llama.cpp's converter writes it."""
    source = checkpoint.source
    architecture = ARCHITECTURES[source["model_type"]]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(source["num_hidden_layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(source["hidden_size"])
    writer.add_feed_forward_length(source["intermediate_size"])
    writer.add_head_count(source["num_attention_heads"])
    writer.add_head_count_kv(source["num_key_value_heads"])
    writer.add_key_length(source["head_dim"])
    writer.add_layer_norm_rms_eps(source["rms_norm_eps"])
    writer.add_rope_freq_base(checkpoint.config.rotary.base)
    if architecture.startswith("gemma"):
        writer.add_sliding_window(source["sliding_window"])
        own = FOUR
    else:
        own = TWO
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    for name, array in state.items():
        stem, _, leaf = name.rpartition(".")
        for theirs, ours in (NAMES | own).items():
            if stem == theirs or stem.endswith("." + theirs):
                number = stem.split(".")[2] if "layers" in stem else None
                target = f"{ours}.{leaf}" if number is None else f"blk.{number}.{ours}.{leaf}"
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            halves = array.reshape(source[heads], 2, -1, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        kind = next((q for part, q in dict(quantise).items() if part in name), None)
        array = np.ascontiguousarray(array)
        if kind is None:
            writer.add_tensor(target, array)
        else:
            writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def made(tmp_path):
    """A checkpoint of Hugging Face, and its tensors."""

    def make(case):
        from safetensors.numpy import load_file

        kept = decoder_logits.fixture(case)
        folder = decoder_logits.written(tmp_path / "hf", kept["config"], kept["shapes"])
        return load_huggingface(folder), load_file(folder / "model.safetensors"), kept

    return make


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_a_file_is_read_as_the_checkpoint_that_it_was_made_from(case, made, tmp_path):
    checkpoint, state, kept = made(case)
    written(tmp_path / "x.gguf", checkpoint, state)
    found = load_gguf(tmp_path / "x.gguf")
    close = {"rtol": 1e-6, "atol": 1e-6}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close), found.params, checkpoint.params
    )
    # Not in the file: the scale of queries, and Qwen2's windows.
    same = ("eps", "norm_offset", "activation", "rotary", "local_rotary", "output_cap")
    for name in (*same, "embedding_scale", "attention_cap"):
        assert getattr(found.config, name) == getattr(checkpoint.config, name), name
    logits = decoder(checkpoint.config, found.params, decoder_logits.TOKENS)
    assert np.abs(logits - kept["dense"]).max() <= 1e-4 * np.abs(kept["dense"]).max()


def test_quantised_tensors_are_near(made, tmp_path):
    checkpoint, state, _ = made("llama")
    wide = dict(state)
    name = "model.layers.1.mlp.down_proj.weight"
    for number in range(3):
        key = f"model.layers.{number}."
        for part in ("gate_proj", "up_proj"):
            for leaf in ("weight", "bias"):
                at = f"{key}mlp.{part}.{leaf}"
                wide[at] = np.concatenate([state[at]] * 8)
        wide[f"{key}mlp.down_proj.weight"] = np.tile(state[f"{key}mlp.down_proj.weight"], (1, 8))
    source = checkpoint.source | {"intermediate_size": 160}
    quantise = {"down_proj.weight": gguf.GGMLQuantizationType.Q8_0}
    written(tmp_path / "x.gguf", checkpoint._replace(source=source), wide, quantise)
    found = load_gguf(tmp_path / "x.gguf", scan=False).params["layers"][1]["down"]
    error = np.abs(found - wide[name].T).max()
    assert 0 < error < 0.01 * np.abs(wide[name]).max()


def test_the_frequencies_of_llama_31_are_told_by_their_divisors(made, tmp_path):
    checkpoint, state, _ = made("llama 3.1, tied")
    scaling = FrequencyScaling(32.0, 1.0, 4.0, 8192)
    rotary = dataclasses.replace(checkpoint.config.rotary, scaling=scaling, base=5e5)
    checkpoint = checkpoint._replace(config=dataclasses.replace(checkpoint.config, rotary=rotary))
    plain = dataclasses.replace(rotary, scaling=None)
    divisors = plain.frequencies(8) / rotary.frequencies(8)
    written(tmp_path / "x.gguf", checkpoint, state, divisors=divisors)
    assert load_gguf(tmp_path / "x.gguf").config.rotary == rotary
    written(tmp_path / "y.gguf", checkpoint, state, divisors=divisors[::-1].copy())
    with pytest.raises(ValueError, match=r"rope_freqs\.weight: expected the divisors of Llama 3"):
        load_gguf(tmp_path / "y.gguf")


@pytest.mark.parametrize("keep", [10, 2000, -500])
def test_files_that_are_cut_short_are_named(keep, made, tmp_path):
    checkpoint, state, _ = made("qwen3")
    file = tmp_path / "x.gguf"
    written(file, checkpoint, state)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.gguf: (damaged|not complete)"):
        load_gguf(file)


def test_an_unknown_architecture_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"expected an architecture of llama.*'mamba'"):
        load_gguf(tmp_path / "x.gguf")


@pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None,
    reason="needs tokenizers: pip install 'ifjax[llm]'",
)
def test_the_tokenizer_of_a_file(tmp_path):
    letters = ["<|end|>", "a", "b", "1", "2", "Ġ", "ab", "Ġa"]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for key, number in {"embedding_length": 8, "block_count": 1, "feed_forward_length": 8}.items():
        writer.add_uint32(f"llama.{key}", number)
    writer.add_head_count(1)
    writer.add_context_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(letters)
    writer.add_token_types([3, 1, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = load_tokenizer(tmp_path / "x.gguf")
    assert tokenizer.encode("ab ab12").tokens == ["ab", "Ġ", "ab", "1", "2"]
    assert tokenizer.encode("a<|end|>").ids == [1, 0]
