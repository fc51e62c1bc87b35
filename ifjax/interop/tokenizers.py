"""The tokenizer that lies beside or inside of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONTROL = 3
"""The type of tokens that stand for no text, such as the end of a document."""


def load_tokenizer(path: str | Path) -> Any:
    """Reads the tokenizer of a checkpoint.

    Args:
      path: a folder with tokenizer.json, that file itself, or a GGUF file of a byte-level BPE.

    Returns:
      A `tokenizers.Tokenizer`.

    Raises:
      ValueError: where there is none that can be read.
      ImportError: without the package tokenizers.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("tokenizers: pip install 'ifjax[llm]'") from error
    path = Path(path)
    if path.suffix == ".gguf":
        from ifjax.interop.gguf import GGUFTensors

        return tokenizer_from_gguf(GGUFTensors(path).fields)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: expected a tokenizer, found none")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{file}: no tokenizer that can be read ({error})") from error


def tokenizer_from_gguf(fields: Mapping[str, Any]) -> Any:
    """The byte-level BPE that the keys of a GGUF file describe.

    The rule by which text is split first is named in the file, not spelt out: those of GPT-2 and
    SmolLM (every digit alone, then GPT-2's) are known.

    Raises:
      ValueError: for another kind of tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = fields.get("tokenizer.ggml.model")
    rule = fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or rule not in ("smollm", "gpt-2", "default"):
        raise ValueError(
            f"tokenizer: expected a byte-level BPE split as by GPT-2 or SmolLM, got {kind!r} split "
            f"by {rule!r}; give the network's tokenizer.json"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    found = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    split: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule == "smollm":
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    found.pre_tokenizer = split
    found.decoder = decoders.ByteLevel()
    types = fields.get("tokenizer.ggml.token_type", [])
    special = [t for t, of in zip(tokens, types, strict=False) if of == CONTROL]
    found.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return found
