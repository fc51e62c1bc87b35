"""What it takes to read a large decoder: `trace` and `spec` from shapes alone, no weights.

Llama-2-7B's and Llama-3-70B's shapes, layers scanned or in a list, a window of 2,048 tokens. Every
row is a process of its own; MiB are its peak, what the imports take subtracted.

    pip install -e .
    python benchmarks/large_decoder.py     # about two minutes
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
import time

import record

SIZES = {
    "7B": (32_000, 4096, 11_008, 32, 32, 128, 32),
    "70B": (128_256, 8192, 28_672, 64, 8, 128, 80),
}
LAYOUTS = ("scanned", "list")


def main() -> None:
    """Makes the table, a process per row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, choices=LAYOUTS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(*args.child)))
        return
    rows = []
    for size in args.sizes:
        for layout in args.layouts:
            command = [sys.executable, __file__, "--child", size, layout]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(
                {"network": size, "layers": layout, **json.loads(done.stdout.splitlines()[-1])}
            )
            print(rows[-1], file=sys.stderr, flush=True)
    print(record.markdown(rows))
    print("written:", record.write("large_decoder", rows).name)


def measured(size: str, layout: str) -> dict[str, float]:
    """Seconds and MiB of one process."""
    import jax
    import jax.numpy as jnp

    import ifjax
    from ifjax.models import DecoderConfig, DecoderWidths, decoder, decoder_shapes
    from ifjax.models.decoder_groups import sparsities

    widths = DecoderWidths(*SIZES[size])
    shapes = decoder_shapes(widths, scan=layout == "scanned", tied=False, dtype=jnp.bfloat16)
    apply_fn = functools.partial(decoder, DecoderConfig(widths.head_dim**-0.5))
    tokens = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
    imported = peak()
    start, began = time.perf_counter(), time.process_time()
    graph = ifjax.trace(apply_fn, shapes, tokens)
    traced, used = time.perf_counter(), time.process_time() - began
    asked = sparsities(graph, {"ffn": 0.25, "kv_heads": 0.25})
    spec = graph.spec(asked, uniform=True)
    made = time.perf_counter()
    spec.small_struct(shapes)
    return {
        "groups": len(graph.groups),
        "weights, 10^9": sum(x.size for x in jax.tree.leaves(shapes)) / 1e9,
        "trace s": traced - start,
        "trace, processor s": used,
        "spec s": made - traced,
        "small_struct s": time.perf_counter() - made,
        "MiB": peak() - imported,
    }


def peak() -> float:
    """The most that the process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
