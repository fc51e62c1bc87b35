"""The logits of imported decoders beside transformers', before and after a cut.

Every weight is drawn by a recipe from its name alone (`torch_logits.draw`), so that only the
configurations and transformers' logits are kept: tests/fixtures/decoder_logits.npz.

    python benchmarks/decoder_logits.py write   # with torch and transformers: about 1 minute
    python benchmarks/decoder_logits.py         # with ifjax: about 20 seconds
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import torch_logits

FIXTURE = Path(__file__).parents[1] / "tests/fixtures/decoder_logits.npz"
_COMMON = {
    "vocab_size": 23,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LOCAL = {"sliding_window": 3, "query_pre_attn_scalar": 12}
# Model type, and what its configuration has beside the common.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "llama 3.1, tied": ("llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 3}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", _LOCAL),
    "gemma3": ("gemma3_text", {**_LOCAL, "num_hidden_layers": 7}),
    "gemma3, untied": (
        "gemma3_text",
        {
            **_LOCAL,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}
TOKENS = np.arange(24).reshape(2, 12) * 7 % 23


def written(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> Path:
    """A checkpoint of the recipe, as Hugging Face has it."""
    from safetensors.numpy import save_file

    folder.mkdir()
    state = {name: torch_logits.draw(name, tuple(shape)) for name, shape in shapes.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def cut(params: dict[str, Any], kept: list[int]) -> dict[str, Any]:
    """Some of the layers, of one kv head with two of its queries, and part of every other width."""
    from ifjax.models.decoder_widths import KINDS, TOP, unstack_layers

    some = {"hidden": np.arange(1, 21), "ffn": np.arange(0, 20, 2)}
    some |= {"kv_heads": np.arange(1, 2), "query_heads": np.asarray([3, 5])}

    def taken(name: str, leaf: Any) -> Any:
        for axis, kind in enumerate((TOP | KINDS)[name]):
            leaf = np.take(leaf, some[kind], axis) if kind in some else np.asarray(leaf)
        return leaf

    layers = unstack_layers(params)["layers"]
    small = [{name: taken(name, leaf) for name, leaf in layers[i].items()} for i in kept]
    top = {name: taken(name, leaf) for name, leaf in params.items() if name != "layers"}
    return {**top, "layers": small}


def kept_layers(config: dict[str, Any]) -> list[int]:
    """All but the second layer."""
    return [i for i in range(config["num_hidden_layers"]) if i != 1]


def exported(checkpoint: Any, folder: Path) -> Any:
    """The cut network, written; gives its config and parameters."""
    from ifjax.interop import save_huggingface

    kept = kept_layers(checkpoint.source)
    config, small = checkpoint.config.with_layers(kept), cut(checkpoint.params, kept)
    save_huggingface(folder, config, small, checkpoint.source)
    return config, small


def transformers_logits(folder: Path) -> np.ndarray:
    """What transformers computes."""
    import torch
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    network = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
    with torch.no_grad():
        return network.eval()(torch.from_numpy(TOKENS)).logits.numpy()


def transformers_case(case: str, folder: Path) -> dict[str, Any]:
    """Configuration, shapes, and logits before and after the cut, all of transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from ifjax.interop import load_huggingface

    kind, own = CASES[case]
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**_COMMON, **own}))
    network.save_pretrained(folder / "made")
    config = json.loads((folder / "made/config.json").read_text())
    left = () if not config.get("tie_word_embeddings") else ("lm_head.weight",)
    shapes = {k: list(v.shape) for k, v in network.state_dict().items() if k not in left}
    dense = written(folder / "dense", config, shapes)
    exported(load_huggingface(dense), folder / "small")
    logits = transformers_logits(dense), transformers_logits(folder / "small")
    return {"config": config, "shapes": shapes, "dense": logits[0], "small": logits[1]}


def fixture(case: str) -> dict[str, Any]:
    """What was kept of a case."""
    with np.load(FIXTURE) as file:
        known = json.loads(str(file["cases"]))[case]
        return known | {k: file[f"{case}/{k}"] for k in ("dense", "small")}


def write() -> None:
    """Keeps what transformers computes."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    known, arrays = {}, {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = transformers_case(case, Path(folder))
        arrays |= {f"{case}/{k}": found.pop(k) for k in ("dense", "small")}
        known[case] = found
    np.savez_compressed(FIXTURE, cases=np.asarray(json.dumps(known)), **arrays)


def difference(case: str, folder: Path, scan: bool = True) -> dict[str, float]:
    """Largest difference of the logits, in parts of the largest logit, dense and cut."""
    from ifjax.interop import load_huggingface
    from ifjax.models import decoder

    kept = fixture(case)
    checkpoint = load_huggingface(
        written(folder / "dense", kept["config"], kept["shapes"]), scan=scan
    )
    exported(checkpoint, folder / "small")
    small = load_huggingface(folder / "small", scan=scan)
    found = {}
    for name, (config, params, _) in {"dense": checkpoint, "small": small}.items():
        logits = np.asarray(decoder(config, params, TOKENS))
        found[name] = float(np.abs(logits - kept[name]).max() / np.abs(kept[name]).max())
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write()
    else:
        for name in CASES:
            with tempfile.TemporaryDirectory() as place:
                print(f"{name:20}", difference(name, Path(place)))
