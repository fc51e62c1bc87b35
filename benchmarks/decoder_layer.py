"""One layer of a large decoder through `ifjax.compress`, and what the whole network would take.

Llama-2-7B's and Llama-3-8B's shapes, random weights, a random stream of 128 windows of 2,048 tokens
in bfloat16: a quarter of the feed-forward neurons and a quarter of the kv heads go, what is left is
solved for. The whole is computed from the layer: its seconds without what is compiled once, times
the number of layers.

    pip install -e .
    python benchmarks/decoder_layer.py              # needs a GPU of 80 GB
    python benchmarks/decoder_layer.py --small      # that it runs, on any machine
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import record

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, init_decoder
from ifjax.models.decoder import decoder_layer

# Vocabulary (not used here), hidden, feed-forward, query heads, kv heads, head_dim, layers.
NETWORKS = {
    "Llama-2-7B": DecoderWidths(8, 4096, 11_008, 32, 32, 128, 32),
    "Llama-3-8B": DecoderWidths(8, 4096, 14_336, 32, 8, 128, 32),
}
SMALL = {"small": DecoderWidths(8, 64, 176, 4, 4, 16, 4)}
PARTS = {"ffn": ("gate",), "ffn and heads": ("gate", "key")}


def main() -> None:
    """Measures layer after layer; rows are printed as they come."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny layer")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--at-once", type=int, default=4, help="windows of a batch")
    parser.add_argument("--once", action="store_true", help="no later call")
    args = parser.parse_args()
    networks = SMALL if args.small else {name: NETWORKS[name] for name in args.networks}
    rows = []
    for name, widths in networks.items():
        for part in args.parts:
            shape = (args.windows, args.length, args.at_once)
            found = measured(widths, PARTS[part], *shape, calls=1 if args.once else 2)
            row = {"network": name, "cut": part, **found}
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(record.markdown(rows))
    if not args.small:
        rows = record.with_earlier("decoder_layer", rows, ("network", "cut"))
        print("written:", record.write("decoder_layer", rows).name)


def measured(
    widths: DecoderWidths,
    leaves: tuple[str, ...],
    windows: int,
    length: int,
    at_once: int,
    calls: int = 2,
) -> dict[str, Any]:
    """Seconds and memory of one layer, twice: the first time with what is compiled."""
    layer, batches = made(widths, windows, length, at_once)
    apply_fn = functools.partial(decoder_layer, DecoderConfig(widths.head_dim**-0.5))
    graph = ifjax.trace(apply_fn, layer, batches[0])
    asked = {
        group.name: 0.25
        for group in graph.groups
        if any(m.path in leaves and m.role == "producer" for m in group.members)
        and group.size in (widths.ffn, widths.kv_heads)
    }
    spec = graph.spec(asked, importance="reconstruction", method="prune")
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        small, report = ifjax.compress(apply_fn, layer, spec, batches)
        jax.block_until_ready(small)
        seconds.append(time.perf_counter() - start)
    print(report, file=sys.stderr, flush=True)
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "device": jax.devices()[0].device_kind,
        "groups": len(asked),
        "tokens": windows * length,
        "first call s": seconds[0],
        "later call s": seconds[-1],
        "all layers, min": (seconds[0] + (widths.layers - 1) * seconds[-1]) / 60,
        "device GiB": stats.get("peak_bytes_in_use", 0) / 2**30,
    }


def made(
    widths: DecoderWidths, windows: int, length: int, at_once: int
) -> tuple[dict[str, Any], list[Any]]:
    """A layer's leaves and batches of its stream, in bfloat16."""
    one = DecoderWidths(8, *(getattr(widths, f) for f in FIELDS), layers=1)
    params = init_decoder(jax.random.key(0), one)
    leaf = {k: jnp.asarray(x[0], jnp.bfloat16) for k, x in params["layers"].items()}
    mix = jax.random.normal(jax.random.key(1), (widths.hidden,) * 2) / widths.hidden**0.5

    @jax.jit
    def stream(key: jax.Array) -> jax.Array:  # correlated, and a few channels that are larger
        x = jax.random.normal(key, (at_once, length, widths.hidden)) @ mix
        return (x * jnp.exp(jnp.linspace(1, -1, widths.hidden))).astype(jnp.bfloat16)

    keys = jax.random.split(jax.random.key(2), windows // at_once)
    return leaf, [stream(key) for key in keys]


FIELDS = ("hidden", "ffn", "query_heads", "kv_heads", "head_dim")

if __name__ == "__main__":
    main()
