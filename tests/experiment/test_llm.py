from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from benchmarks import decoder_logits
from ifjax.data.text import plain_wikitext, windows
from ifjax.experiment import llm
from ifjax.experiment.perplexity import perplexity
from ifjax.interop import load_huggingface
from ifjax.models import decoder, layer_divergence

pytest.importorskip("safetensors", reason="needs safetensors: pip install 'ifjax[llm]'")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'ifjax[llm]'")

WORDS = [chr(ord("a") + i) for i in range(23)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    kept = decoder_logits.fixture("llama 3.1, tied")
    made = decoder_logits.written(folder / "dense", kept["config"], kept["shapes"])
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(made / "tokenizer.json"))
    numbers = np.random.default_rng(0).integers(0, 23, 400)
    (folder / "text.txt").write_text(" ".join(WORDS[i] for i in numbers))
    return made


def run(dense, out, *options):
    text = dense.parent / "text.txt"
    paths = ["--checkpoint", str(dense), "--text", str(text), "--out", str(out)]
    sizes = ["--windows", "4", "--test-windows", "3", "--length", "12", "--method", "prune"]
    return llm.cli([*paths, *sizes, *options])


def test_perplexity_is_that_of_the_logits(dense):
    network = load_huggingface(dense)
    tokens = np.arange(24).reshape(2, 12).astype(np.int32) % 23
    logits = np.float64(decoder(network.config, network.params, tokens))
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(scores[:, :-1], tokens[:, 1:, None], -1)
    found = perplexity(network.config, network.params, tokens)
    assert found == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    with pytest.raises(ValueError, match="tokens below 23"):
        perplexity(network.config, network.params, tokens + 5)


@pytest.mark.parametrize("method", ["prune", "reconstruction"])
def test_checkpoint_and_text_in_checkpoint_and_table_out(method, dense, tmp_path, capsys):
    options = ["--method", method, "--ffn", "0.5", "--kv-heads", "0.5"]
    options += ["--work", str(tmp_path / "work")]
    assert run(dense, tmp_path / "small", *options) == 0
    shown = capsys.readouterr()
    assert "10" in shown.out
    assert '"intermediate_size": 10' in shown.out
    assert "windows" in shown.err
    small = load_huggingface(tmp_path / "small")
    assert small.params["layers"]["gate"].shape == (3, 24, 10)
    assert small.params["layers"]["key"].shape == (3, 24, 1, 8)
    written = json.loads((tmp_path / "small/compression.json").read_text())
    assert (tmp_path / "small/tokenizer.json").exists()
    assert (tmp_path / "work").exists() == (method == "reconstruction")
    rows = written["rows"]
    text = (dense.parent / "text.txt").read_text().split()
    tokens = [WORDS.index(word) for word in text][200:]
    found = perplexity(small.config, small.params, windows(tokens, 3, 12))
    assert rows[1]["perplexity"] == pytest.approx(found, rel=1e-4)
    assert rows[0]["weights"] > rows[1]["weights"]
    assert math.isfinite(rows[0]["perplexity"])


def test_weights_that_stay_in_the_files_give_the_same_checkpoint(dense, tmp_path, capsys):
    for name, options in (("plain", []), ("mapped", ["--mapped"])):
        assert run(dense, tmp_path / name, "--ffn", "0.5", *options) == 0
    one, two = (tmp_path / name / "model.safetensors" for name in ("plain", "mapped"))
    assert one.read_bytes() == two.read_bytes()
    rows = [
        json.loads((file.parent / "compression.json").read_text())["rows"] for file in (one, two)
    ]
    for a, b in zip(*rows, strict=True):
        assert a["perplexity"] == pytest.approx(b["perplexity"], rel=1e-5)
    options = ["--mapped", "--dtype", "bfloat16"]
    assert run(dense, tmp_path / "other", *options) == 2
    assert "expected the dtype of the file, float32" in capsys.readouterr().err


def test_layers_alone(dense, tmp_path):
    assert run(dense, tmp_path / "small", "--ffn", "0", "--layers", "1") == 0
    small, whole = load_huggingface(tmp_path / "small"), load_huggingface(dense)
    assert small.source["num_hidden_layers"] == 2
    kept = [
        next(i for i in range(3) if np.array_equal(whole.params["layers"]["up"][i], up))
        for up in small.params["layers"]["up"]
    ]
    text = (dense.parent / "text.txt").read_text().split()
    tokens = windows([WORDS.index(word) for word in text][:200], 4, 12)
    left = {0, 1, 2} - {*kept}
    assert left == {int(layer_divergence(whole.config, whole.params, tokens).argmin())}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "3"], "--layers: expected 1 to 2 of the 3 layers"),
        (["--checkpoint", "nowhere"], "--checkpoint: nowhere: no such file or folder"),
        (["--text", "nowhere"], "--text: "),
        (["--length", "300"], "--text, first half: .* 200 tokens, .* give shorter ones,"),
        (["--test-text", __file__, "--test-windows", "9000"], "--test-text: the text has"),
        (["--hidden", "0.1"], "--ffn 0.25 --hidden 0.1: hidden width 21 and 6 query heads: .* 18"),
        (["--ffn", "2"], "--ffn 2.0: sparsity must be a number"),
        (["--ffn", "0"], "--ffn: spec needs a sparsity"),
        (["--round-to", "0"], "round_to must be a positive integer"),
        (["--tokenizer", __file__], "--tokenizer: "),
        (
            ["--out", f"{__file__}/a/b", "--text", "nowhere"],
            "--out: .*test_llm.py .*; give another",
        ),
        (["--work", __file__, "--text", "nowhere"], "--work: .*test_llm.py .*; give another"),
        (["--out", "a", "--work", "a/b"], "--work: a/b: lies in --out, which has to be new"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(options, message, dense, tmp_path, capsys):
    assert run(dense, tmp_path / "small", *options) == 2
    shown = capsys.readouterr().err
    line = next(line for line in shown.splitlines() if "error" in line)
    assert re.search(message, line), line
    assert list(tmp_path.iterdir()) == []


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": "linear"}, "rope_parameters: expected a JSON object, got 'linear'"),
        ({"rope_parameters": LLAMA3}, r"\.original_max_position_embeddings: .*, got none; write"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor: "),
        ({"rope_parameters": {"rope_theta": "1e4"}}, r"rope_parameters\.rope_theta: .*got '1e4'"),
        ({"rms_norm_eps": []}, r"rms_norm_eps: expected a positive number, got \[\]"),
        ({"hidden_size": -24}, "hidden_size: expected a positive integer, got -24"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers: expected a positive integer, got '3'"),
        ({"hidden_act": ["silu"]}, r"hidden_act: expected one of silu, .* got \['silu'\]"),
        ({"layer_types": 3}, "layer_types: expected a list of 3 names, got 3"),
        ({"model_type": ["llama"]}, "model_type: expected one of llama, "),
        ([], r"config\.json: expected a JSON object, got list"),
    ],
)
def test_a_malformed_config_is_one_line(change, message, dense, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    config = json.loads((dense / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(change and config | change))
    (copy / "model.safetensors").symlink_to(dense / "model.safetensors")
    assert run(dense, tmp_path / "small", "--checkpoint", str(copy)) == 2
    shown = capsys.readouterr().err
    line = next(line for line in shown.splitlines() if "error" in line)
    assert re.search(f"--checkpoint: .*{message}", line), line
    assert [*tmp_path.iterdir()] == [copy]


def test_a_damaged_checkpoint_and_a_folder_that_is_there(dense, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in dense.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    text = ["--text", str(dense.parent / "text.txt"), "--out", str(tmp_path / "small")]
    assert llm.cli(["--checkpoint", str(copy), *text]) == 2
    assert "damaged or not complete" in capsys.readouterr().err
    (tmp_path / "small").mkdir()
    assert run(dense, tmp_path / "small") == 2
    assert "--out" in capsys.readouterr().err
    assert llm.cli([]) == 2
    assert "--checkpoint: expected a path" in capsys.readouterr().err


def test_windows_and_wikitext():
    assert windows(range(12), 3, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    for count, length in ((3, 5), (0, 2), (2, 1), (20, 2)):
        with pytest.raises(ValueError, match=r"expected at least|too few"):
            windows(range(12), count, length)
    raw = "In \" Teddy 's Story \" ( 2000 ) , a two @-@ part 1 @,@ 000 @.@ 5 % n't ."
    assert plain_wikitext(raw) == "In \"Teddy's Story\" (2000), a two-part 1,000.5%n't."
