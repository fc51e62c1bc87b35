"""What finding the groups costs: a decoder of 7 B parameters, and an encoder beside Torch-Pruning.

The decoder has the widths of Mistral 7B (arXiv 2310.06825): D 4096, 32 query and 8 key heads of
128, F 14336, V 32000; grouped-query attention, rotary positions, SwiGLU, RMS norm, bfloat16, traced
for 8 tokens from shapes alone. The time is that of `ifjax.trace` less that of `jax.make_jaxpr`, the
memory what the first trace adds to the peak of a process that has made the jaxpr; on one core, in
seconds of processor time, medians.

The encoder has 24 layers, D 1024, 16 heads, F 4096, 302 M weights, on arrays; every hidden and FFN
group is cut to a half by magnitude, without fusion, by both; on two threads, in turn, medians of
three processes each. For it an environment with torch and torch-pruning is needed:

    python benchmarks/graph.py --torch-python /path/to/python   # about 3 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import record

LAYERS = (4, 8, 16, 32, 64)
MiB = 1024.0  # in the unit of ru_maxrss on Linux, KiB


def decoder(layers: int, scanned: bool) -> tuple[Callable[..., Any], Any, Any]:
    """A decoder, its parameters and tokens as structs."""
    import jax
    import jax.numpy as jnp

    d, heads, kv, size, f, vocabulary = 4096, 32, 8, 128, 14336, 32000

    def struct(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def layer(*stack: int) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {
            **{"norm1": (d,), "q": (d, heads, size), "k": (d, kv, size), "v": (d, kv, size)},
            **{"o": (heads, size, d), "norm2": (d,), "gate": (d, f), "up": (d, f), "down": (f, d)},
        }
        return {name: struct(*stack, *shape) for name, shape in shapes.items()}

    params = {
        "embedding": struct(vocabulary, d),
        "layers": layer(layers) if scanned else [layer() for _ in range(layers)],
        "norm": struct(d),
        "head": struct(d, vocabulary),
    }

    def rms_norm(x: Any, scale: Any) -> Any:
        y = x.astype(jnp.float32)
        return (y * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True) + 1e-5)).astype(x.dtype) * scale

    def rotary(x: Any) -> Any:
        frequency = 1e4 ** (-jnp.arange(0, size, 2) / size)
        angle = (jnp.arange(x.shape[1])[:, None] * frequency)[:, None]
        cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def block(x: Any, p: Any) -> Any:
        h = rms_norm(x, p["norm1"])
        q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in "qkv")
        batch, time, *_ = q.shape
        q = rotary(q).reshape(batch, time, kv, heads // kv, size)
        scores = jnp.einsum("btkgd,bskd->bkgts", q, rotary(k)) / size**0.5
        causal = jnp.tril(jnp.ones((time, time), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), -1)
        y = jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(batch, time, heads, size)
        x = x + jnp.einsum("bthk,hkd->btd", y, p["o"])
        h = rms_norm(x, p["norm2"])
        return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]

    def apply(params: Any, tokens: Any) -> Any:
        x = params["embedding"][tokens]
        if scanned:
            x, _ = jax.lax.scan(lambda x, p: (block(x, p), None), x, params["layers"])
        else:
            for p in params["layers"]:
                x = block(x, p)
        return rms_norm(x, params["norm"]) @ params["head"]

    return apply, params, jax.ShapeDtypeStruct((1, 8), jnp.int32)


def trace_decoder(layers: int, scanned: bool, runs: int = 7) -> dict[str, Any]:
    """Seconds and memory of one decoder; in a process of its own, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax

    import ifjax

    apply, params, tokens = decoder(layers, scanned)
    equations = len(jax.make_jaxpr(apply)(params, tokens).jaxpr.eqns)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first, _, graph = timed(lambda: ifjax.trace(apply, params, tokens))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs = [
        # a new function every time, for jax remembers the jaxprs of those it knows
        (
            timed(lambda: jax.make_jaxpr(lambda *a: apply(*a))(params, tokens))[1],
            timed(lambda: ifjax.trace(lambda *a: apply(*a), params, tokens))[1],
        )
        for _ in range(runs)
    ]
    jaxpr, trace = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "layers": layers,
        "written": "scanned" if scanned else "unrolled",
        "parameters": graph.structure.weights(),
        "equations": equations,
        "groups": len(graph.groups),
        "make_jaxpr (s)": round(jaxpr, 3),
        "trace (s)": round(trace, 3),
        "beyond jax (s)": round(trace - jaxpr, 3),
        "first trace, wall (s)": round(first, 3),
        "memory (MiB)": round((peak - before) / MiB, 1),
    }


ENCODER = {"layers": 24, "d": 1024, "heads": 16, "f": 4096, "inputs": 64, "classes": 8, "time": 16}


def encoder_with_ifjax() -> Iterator[dict[str, Any]]:
    """Seconds that every step takes with ifjax."""
    import jax

    import ifjax

    apply, params, x = jax_encoder()

    def prune() -> Any:
        spec = ifjax.trace(apply, params, x).spec(
            0.5, include=["embed/kernel", "layers/*/up/kernel"], method="prune"
        )
        return spec, jax.block_until_ready(ifjax.fuse_params(params, spec))

    *seconds, graph = timed(lambda: ifjax.trace(apply, params, x))
    yield row("ifjax", "graph", seconds, graph.structure.weights())
    *seconds, (spec, small) = timed(prune)
    weights = sum(leaf.size for leaf in jax.tree.leaves(small))
    yield row("ifjax", "graph and prune", seconds, weights)
    *seconds, _ = timed(prune)
    yield row("ifjax", "graph and prune, second call", seconds, weights)
    *seconds, _ = timed(lambda: jax.eval_shape(ifjax.shrink(apply, spec), small, x))
    yield row("ifjax", "shrink, traced", seconds, weights)


def jax_encoder() -> tuple[Callable[..., Any], Any, Any]:
    """Function, parameters and an input."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    layers, d, heads, f, inputs, classes, time = ENCODER.values()
    size, rng = d // heads, np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32) * shape[0] ** -0.5)

    def dense(*shape: int) -> dict[str, jax.Array]:
        return {"kernel": array(*shape), "bias": jnp.zeros(shape[-1])}

    def norm() -> dict[str, jax.Array]:
        return {"scale": jnp.ones(d), "bias": jnp.zeros(d)}

    def layer() -> dict[str, Any]:
        return {
            **{name: dense(d, d) for name in "qkvo"},
            **{"up": dense(d, f), "down": dense(f, d), "norm1": norm(), "norm2": norm()},
        }

    params = {
        "embed": dense(inputs, d),
        "layers": [layer() for _ in range(layers)],
        "head": dense(d, classes),
    }
    x = array(1, time, inputs)

    def linear(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["kernel"] + p["bias"]

    def layer_norm(p: Any, x: jax.Array) -> jax.Array:
        return jax.nn.standardize(x, epsilon=1e-5) * p["scale"] + p["bias"]

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = linear(params["embed"], x)
        for p in params["layers"]:
            q, k, v = (linear(p[name], x).reshape(*x.shape[:2], heads, size) for name in "qkv")
            weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / size**0.5, -1)
            y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], heads * size)
            x = layer_norm(p["norm1"], x + linear(p["o"], y))
            x = layer_norm(p["norm2"], x + linear(p["down"], jax.nn.gelu(linear(p["up"], x))))
        return linear(params["head"], x)

    return apply, params, x


def encoder_with_torch_pruning() -> Iterator[dict[str, Any]]:
    """Seconds that every step takes with Torch-Pruning."""
    import torch
    import torch_pruning
    from torch import nn

    torch.set_num_threads(2)
    layers, d, heads, f, inputs, classes, time = ENCODER.values()

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
            self.up, self.down = nn.Linear(d, f), nn.Linear(f, d)
            self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

        def forward(self, x: Any) -> Any:
            q, k, v = (
                layer(x).view(*x.shape[:2], heads, d // heads).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
            weights = (q @ k.transpose(-1, -2) / (d // heads) ** 0.5).softmax(-1)
            y = (weights @ v).transpose(1, 2).reshape(*x.shape[:2], d)
            x = self.norm1(x + self.o(y))
            return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))

    network = nn.Sequential(
        nn.Linear(inputs, d), *[Layer() for _ in range(layers)], nn.Linear(d, classes)
    )
    x = torch.randn(1, time, inputs)

    name = f"Torch-Pruning {importlib.metadata.version('torch-pruning')}"
    count = lambda: sum(p.numel() for p in network.parameters())  # noqa: E731
    build = torch_pruning.DependencyGraph().build_dependency
    *seconds, _ = timed(lambda: build(network, example_inputs=x))
    yield row(name, "graph", seconds, count())
    # the outputs of the queries, keys and values stay, as above
    kept = [layer for name, layer in network.named_modules() if name[-2:] in (".q", ".k", ".v")]

    def prune() -> None:
        torch_pruning.pruner.MagnitudePruner(
            network,
            x,
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.5,
            ignored_layers=[network[-1], *kept],
        ).step()

    *seconds, _ = timed(prune)
    network(x)
    yield row(name, "graph and prune", seconds, count())


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds that a call takes, of the clock and of all processors, and its result."""
    start = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - start[0], time.process_time() - start[1], result


def row(by: str, step: str, seconds: Sequence[float], weights: int) -> dict[str, Any]:
    """One line of the table of the encoder."""
    wall, processors = (round(s, 2) for s in seconds)
    return {
        **{"by": by, "step": step, "wall (s)": wall, "processors (s)": processors},
        "weights": weights,
    }


PARTS = {
    "decoder": lambda layers, written: [trace_decoder(int(layers), written == "scanned")],
    "ifjax": encoder_with_ifjax,
    "torch": encoder_with_torch_pruning,
}


def in_process(python: str, *part: str) -> list[dict[str, Any]]:
    """The rows of one part, measured in a process of its own."""
    command = [python, __file__, "--part", *part]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def middle(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same step of several runs, with medians of its seconds."""
    seconds = ("wall (s)", "processors (s)")
    return rows[0] | {k: statistics.median(r[k] for r in rows) for k in seconds}


def main() -> None:
    """Makes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch-python", help="a Python that has torch and torch-pruning")
    parser.add_argument("--layers", nargs="+", type=int, default=LAYERS)
    parser.add_argument("--repeats", type=int, default=3, help="processes of the encoder")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps([*PARTS[args.part[0]](*args.part[1:])]))
        return
    rows = [
        row
        for written in ("unrolled", "scanned")
        for layers in args.layers
        for row in in_process(sys.executable, "decoder", str(layers), written)
    ]
    print(record.markdown(rows))
    parts = {"ifjax": sys.executable}
    if args.torch_python:
        parts["torch"] = args.torch_python
    runs = [
        [row for part, python in parts.items() for row in in_process(python, part)]
        for _ in range(args.repeats)
    ]
    encoder = [middle(same) for same in zip(*runs, strict=True)]
    print(record.markdown(encoder))
    print("written:", record.write("graph", rows, encoder=encoder).name)


if __name__ == "__main__":
    main()
