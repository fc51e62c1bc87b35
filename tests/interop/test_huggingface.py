from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from benchmarks import decoder_logits
from ifjax.interop import huggingface as hf
from ifjax.interop import load_huggingface, overrides_for, save_huggingface
from ifjax.models import DecoderWidths, decoder, decoder_shapes

safetensors = pytest.importorskip("safetensors.numpy", reason="pip install 'ifjax[llm]'")


@pytest.fixture
def dense(tmp_path):
    kept = decoder_logits.fixture("llama 3.1, tied")
    return decoder_logits.written(tmp_path / "dense", kept["config"], kept["shapes"])


def small_tree(checkpoint, sparsity):
    apply_fn = functools.partial(decoder, checkpoint.config)
    graph = ifjax.trace(apply_fn, checkpoint.params, decoder_logits.TOKENS)
    spec = graph.spec(sparsity, method="prune")
    small = ifjax.fuse_params(checkpoint.params, spec)
    return small, ifjax.shrink(apply_fn, spec)(small, decoder_logits.TOKENS)


@pytest.mark.parametrize("scan", [True, False])
def test_what_is_cut_by_the_graph_is_written_read_and_the_same_function(dense, tmp_path, scan):
    checkpoint = load_huggingface(dense, scan=scan)
    asked = {"*gate": 0.5, "*(kv heads)": 0.5, "*(query heads)": 1 / 3, "embedding": 1 / 3}
    small, logits = small_tree(checkpoint, asked)
    changed = save_huggingface(tmp_path / "small", checkpoint.config, small, checkpoint.source)
    assert changed == {
        "hidden_size": 16,
        "intermediate_size": 10,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    assert changed == overrides_for(checkpoint.config, small, checkpoint.source)
    again = load_huggingface(tmp_path / "small", scan=not scan)
    found = decoder(again.config, again.params, decoder_logits.TOKENS)
    np.testing.assert_allclose(found, logits, rtol=0, atol=2e-5 * np.abs(logits).max())


def test_shards_and_one_file_hold_the_same_bytes(dense, tmp_path):
    checkpoint = load_huggingface(dense)
    for name, limit in (("one", 2**31), ("many", 4000)):
        hf.save_huggingface(
            tmp_path / name,
            checkpoint.config,
            checkpoint.params,
            checkpoint.source,
            like=dense,
            shard_bytes=limit,
        )
    whole = safetensors.load_file(dense / "model.safetensors")
    one = safetensors.load_file(tmp_path / "one/model.safetensors")
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    many = {k: v for file in files for k, v in safetensors.load_file(file).items()}
    for found in (one, many):
        assert whole.keys() == found.keys()
        assert all(np.array_equal(whole[k], found[k]) for k in whole)
    index = json.loads((tmp_path / "many" / hf.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    assert {*index["weight_map"].values()} == {file.name for file in files}
    assert (tmp_path / "one/config.json").read_text() != ""
    again = load_huggingface(tmp_path / "many")
    jax.tree.map(np.testing.assert_array_equal, again.params, checkpoint.params)


def test_bfloat16_goes_in_and_out(dense, tmp_path):
    checkpoint = load_huggingface(dense, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(checkpoint.params)} == {jnp.dtype(jnp.bfloat16)}
    save_huggingface(tmp_path / "b", checkpoint.config, checkpoint.params, checkpoint.source)
    again = load_huggingface(tmp_path / "b")
    assert again.source.get("dtype", again.source.get("torch_dtype")) == "bfloat16"
    jax.tree.map(np.testing.assert_array_equal, again.params, checkpoint.params)


def test_other_files_are_copied_and_a_folder_that_is_not_empty_is_left_alone(dense, tmp_path):
    (dense / "tokenizer.json").write_text("{}")
    (dense / "pytorch_model.bin").write_text("old weights")
    checkpoint = load_huggingface(dense)
    arguments = checkpoint.config, checkpoint.params, checkpoint.source
    save_huggingface(tmp_path / "out", *arguments, like=dense)
    assert {x.name for x in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    with pytest.raises(FileExistsError, match="not empty"):
        save_huggingface(tmp_path / "out", *arguments)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["dense", "out"]


def test_reading_holds_one_tensor_beside_the_parameters(dense):
    held, most = set(), 0

    class Counted:
        def names(self):
            return file.names()

        def read(self, name):
            nonlocal most
            array = file.read(name).view(Watched)
            held.add(id(array))
            array.number = id(array)
            most = max(most, len(held))
            return array

    class Watched(np.ndarray):
        number = 0

        def __del__(self):
            held.discard(self.number)

    file = hf.SafeTensors(dense)
    source = json.loads((dense / "config.json").read_text())
    hf.read_checkpoint(Counted(), source)
    file.close()
    assert most <= 2


def edited(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"config\.json: expected this file"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json: not JSON"),
        (lambda d: edited(d, model_type="mamba"), "model_type: expected one of llama"),
        (lambda d: edited(d, hidden_act="relu"), "hidden_act"),
        (lambda d: edited(d, rope_parameters={"rope_type": "yarn"}), "rope_type"),
        (lambda d: edited(d, intermediate_size=21), r"expected shape \(21, 24\)"),
        (lambda d: edited(d, num_hidden_layers=4), "9 of 38 tensors are missing"),
        (lambda d: edited(d, num_hidden_layers=2), "9 tensors have no place"),
        (lambda d: edited(d, num_attention_heads="6"), "num_attention_heads: expected a positive"),
        (lambda d: (d / "model.safetensors").unlink(), r"model\.safetensors: expected this file"),
        (
            lambda d: (d / "model.safetensors").write_bytes(
                (d / "model.safetensors").read_bytes()[:-99]
            ),
            "damaged or not complete",
        ),
        (lambda d: (d / hf.INDEX).write_text("{}"), "expected a weight_map"),
        (
            lambda d: safetensors.save_file(
                {
                    k: v.astype(np.int8)
                    for k, v in safetensors.load_file(d / "model.safetensors").items()
                },
                d / "model.safetensors",
            ),
            "expected floating point weights",
        ),
    ],
)
def test_what_cannot_be_read_is_named(dense, damage, message):
    damage(dense)
    with pytest.raises(ValueError, match=message):
        load_huggingface(dense)


def test_widths_that_the_format_cannot_say_are_refused_with_those_that_would_do(dense):
    checkpoint = load_huggingface(dense, scan=False)

    def refused(widths, message, scan=True):
        shapes = decoder_shapes(DecoderWidths(23, *widths), scan=scan)
        with pytest.raises(ValueError, match=message):
            overrides_for(checkpoint.config, shapes, checkpoint.source)

    refused((22, 20, 6, 2, 8, 3), r"keep a hidden width of 18 or 24, or 2, 22 heads")
    refused((24, 20, 6, 2, 8, 3, 6), r"value_dim 6 and head_dim 8")
    layers = [
        decoder_shapes(DecoderWidths(23, 24, f, 6, 2, 8, 1), scan=False)["layers"][0]
        for f in (20, 10)
    ]
    shapes = decoder_shapes(DecoderWidths(23, 24, 20, 6, 2, 8, 1)) | {"layers": layers}
    with pytest.raises(ValueError, match=r"ffn: .* one number for all layers, got \[10, 20\]"):
        overrides_for(checkpoint.config, shapes, checkpoint.source)


def test_a_config_of_another_network_is_refused(dense):
    checkpoint = load_huggingface(dense)
    other = checkpoint.source | {"rope_parameters": {"rope_type": "default", "rope_theta": 2.0}}
    with pytest.raises(ValueError, match=r"config\.rotary"):
        overrides_for(checkpoint.config, checkpoint.params, other)


def test_the_keys_of_transformers_4_say_the_same(dense):
    checkpoint = load_huggingface(dense)
    old = dict(checkpoint.source)
    scaling = dict(old.pop("rope_parameters"))
    old |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    from ifjax.interop.huggingface_config import decoder_config

    assert decoder_config(old) == checkpoint.config


def test_prefixes_of_multimodal_checkpoints(tmp_path):
    kept = decoder_logits.fixture("gemma3")
    plain = decoder_logits.written(tmp_path / "plain", kept["config"], kept["shapes"])
    state = safetensors.load_file(plain / "model.safetensors")
    for prefix in ("language_model.model.", "model.language_model."):
        folder = tmp_path / prefix
        folder.mkdir()
        renamed = {prefix + k.removeprefix("model."): v for k, v in state.items()}
        renamed["vision_tower.patches"] = np.zeros(2, np.float32)
        safetensors.save_file(renamed, folder / "model.safetensors")
        config = {"model_type": "gemma3", "text_config": kept["config"]}
        (folder / "config.json").write_text(json.dumps(config))
        found = load_huggingface(folder)
        jax.tree.map(np.testing.assert_array_equal, found.params, load_huggingface(plain).params)
        assert found.config == load_huggingface(plain).config


def test_mapped_leaves_are_read_when_they_are_used(dense, tmp_path):
    """And give what those in memory do, in files again; shards, bfloat16."""
    plain = load_huggingface(dense, scan=False, dtype=jnp.bfloat16)
    hf.save_huggingface(
        tmp_path / "shards", plain.config, plain.params, plain.source, shard_bytes=4000
    )
    mapped = load_huggingface(tmp_path / "shards", scan=False, mapped=True)
    assert mapped.config == plain.config
    leaves = jax.tree.leaves(mapped.params)
    assert all(isinstance(x, np.memmap) and not x.flags.owndata for x in leaves)
    jax.tree.map(np.testing.assert_array_equal, mapped.params, plain.params)
    apply_fn = functools.partial(decoder, plain.config)
    graph = ifjax.trace(apply_fn, plain.params, decoder_logits.TOKENS)
    spec = graph.spec({"layers/1/gate": 0.5}, include="layers/1/gate")
    batches = [np.roll(decoder_logits.TOKENS, i, 1) for i in range(4)]
    small, _ = ifjax.compress(apply_fn, plain.params, spec, batches)
    again, _ = ifjax.compress(apply_fn, mapped.params, spec, batches, folder=tmp_path / "work")
    jax.tree.map(np.testing.assert_array_equal, small, again)
    assert not any(isinstance(x, np.memmap) for x in jax.tree.leaves(small))
    assert all(isinstance(x, np.memmap) for x in jax.tree.leaves(again["layers"][1]))
    for wrong, words in (({"scan": True}, "scan=False"), ({"dtype": jnp.float32}, "bfloat16")):
        with pytest.raises(ValueError, match=words):
            load_huggingface(tmp_path / "shards", **{"scan": False, "mapped": True, **wrong})
