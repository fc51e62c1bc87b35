"""What the first call costs: compression is called once per network, so this is the whole wait.

Every row is a process of its own: imports, tracing the network, the first `ifjax.fuse_params` (or
another function), and a later call on other weights of the same shapes. What the first call
consists of stands beside it, see `call_parts`: seconds of imports, of Python's tracing, of
lowering, of XLA, and the rest, "run"; how many programs were compiled, and their kernels.

* ``prune``: plain pruning. ``default``: Intra-Fusion with the default solver (ott-jax's Sinkhorn).
  ``simultaneous``: the same, all groups at once. ``exact``: the exact solver. ``jitted``: the
  exact solver inside of `jax.jit`; ``jitted sinkhorn``: `sinkhorn_kernel`, all groups at once.
* ``take``, ``transport_maps``, ``shrink``, ``fuse_models`` (two networks), ``collect_stats``
  (fisher over one batch), ``reset_statistics``, ``cut_nnx``: the other functions that wait on the
  first call; ``cut_nnx refuses``: a module that has its number of heads in its code.
* ``torch``: what `exact` does, by `torch_fusion` on the same weights, where torch is installed.

    pip install -e '.[test]'
    python benchmarks/first_call.py                                   # all, about half an hour
    python benchmarks/first_call.py --networks resnet18 densenet --ways prune exact
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

NETWORKS = ("cnn", "resnet18", "vgg11", "resnet50", "densenet", "transformer", "decoder")
FUSED = {
    "prune": {"method": "prune"},
    "default": {},
    "simultaneous": {"order": "simultaneous"},
    "exact": {"solver": "exact"},
    "jitted": {"solver": "exact"},
    "jitted sinkhorn": {"solver": "sinkhorn_kernel", "order": "simultaneous"},
}
WAYS = (
    *FUSED,
    "take",
    "transport_maps",
    "shrink",
    "fuse_models",
    "collect_stats",
    "reset_statistics",
    "cut_nnx",
    "cut_nnx refuses",
    "torch",
)
NORMED = ("resnet18", "vgg11", "resnet50")
# Where not all networks have what a function needs.
OF_SOME = {
    "reset_statistics": NORMED,
    "cut_nnx": ("transformer",),
    "cut_nnx refuses": ("transformer",),
    "torch": NORMED,
}


def main() -> None:
    """Makes the table, a process per row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--repeats", type=int, default=1, help="processes per row")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(*args.child)))
        return
    import record
    from tqdm import tqdm

    rows = []
    pairs = [(n, w) for n in args.networks for w in args.ways if n in OF_SOME.get(w, NETWORKS)]
    for name, way in (bar := tqdm(pairs)):
        bar.set_description(f"{name} {way}")
        for _ in range(args.repeats):
            command = [sys.executable, __file__, "--child", name, way]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
            whole = time.perf_counter() - start
            if done.returncode:
                rows.append({"network": name, "way": way, "error": done.stderr.splitlines()[-1]})
                tqdm.write(f"{name} {way}: {rows[-1]['error']}", file=sys.stderr)
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append({"network": name, "way": way, **row, "process s": whole})
    print(record.markdown([row for row in rows if "error" not in row]))
    rows = record.with_earlier("first_call", rows, ("network", "way"))
    print("written:", record.write("first_call", rows).name)


def measured(name: str, way: str) -> dict[str, float]:
    """Seconds of one process."""
    clock = Clock()
    import jax

    import ifjax

    imported = clock.lap()
    apply_fn, struct, inputs = network(name)
    graph = ifjax.trace(apply_fn, struct, *inputs)
    options = FUSED.get(way, {"solver": "exact"})
    if way == "cut_nnx":  # the module has the number of heads and head_dim in its code
        options = {**options, "exclude": lambda group: group.size < 192}
    spec = graph.spec(0.5, **options)
    traced = clock.lap()
    import call_parts

    weights = [drawn(spec, struct, seed) for seed in (0, 1)]
    call, before = function(way, apply_fn, spec, weights, inputs), call_parts.kernels()
    cpu = time.process_time()
    clock.lap()
    with call_parts.Parts() as parts:
        jax.block_until_ready(call(weights[0]))
    first, first_cpu = clock.lap(), time.process_time() - cpu
    kernels, cpu = call_parts.kernels() - before, time.process_time()
    clock.lap()
    jax.block_until_ready(call(weights[1]))
    return {
        "import s": imported,
        "graph s": traced,
        "first call s": first,
        "later call s": clock.lap(),
        "first call, CPU s": first_cpu,
        "later call, CPU s": time.process_time() - cpu,
        "programs": parts.programs,
        "kernels": kernels,
        **parts.seconds(),
    }


class Clock:
    """Seconds since it was asked last."""

    def __init__(self) -> None:
        """Starts it."""
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed


def function(
    way: str, apply_fn: Callable[..., Any], spec: Any, weights: list[Any], inputs: tuple[Any, ...]
) -> Callable[[Any], Any]:
    """What is timed, as a function of parameters."""
    import functools

    import jax
    import numpy as np

    import ifjax

    if way.startswith("jitted"):
        return functools.partial(jax.jit(ifjax.fuse_params, static_argnames="spec"), spec=spec)
    if way == "torch":
        return in_torch(spec, weights)
    if way == "take":
        kept = {g.name: np.arange(g.kept) for g in spec.groups if g.kept != g.size and not g.batch}
        return lambda params: ifjax.take(params, spec, kept)
    if way == "transport_maps":
        return lambda params: ifjax.transport_maps(params, spec)
    if way == "shrink":
        small = ifjax.fuse_params(weights[0], spec)
        apply_small = ifjax.shrink(apply_fn, spec)
        given = [jax.numpy.zeros(x.shape, x.dtype) for x in inputs]
        return lambda params: apply_small(small, *given)
    return _on_data(way, apply_fn, spec, weights, inputs) or (
        lambda params: ifjax.fuse_params(params, spec)
    )


def in_torch(spec: Any, weights: list[Any]) -> Callable[[Any], Any]:
    """The torch program of `speed`, which has its weights by now; nothing of jax is waited for."""
    import numpy as np
    import speed
    import torch
    import torch_fusion

    from ifjax.tree import leaves_by_path

    torch.set_num_threads(2)
    todo, given = speed.work(spec), {}
    for params in weights:
        leaves = {path: np.asarray(x) for path, x in leaves_by_path(params).items()}
        given[id(params)] = torch_fusion.to_torch(leaves)

    def call(params: Any) -> None:
        torch_fusion.fuse(given[id(params)], todo, spec.method.order)

    return call


def _on_data(
    way: str, apply_fn: Callable[..., Any], spec: Any, weights: list[Any], inputs: tuple[Any, ...]
) -> Callable[[Any], Any] | None:
    """What is timed, of functions that take a graph, a module or a batch of 32 examples."""
    import jax.numpy as jnp
    import numpy as np

    import ifjax

    rng = np.random.default_rng(0)
    batch = tuple(
        rng.standard_normal((32, *x.shape[1:]), np.float32)
        if x.dtype == "float32"
        else rng.integers(0, 512, (32, *x.shape[1:]), np.int32)
        for x in inputs
    )
    if way == "fuse_models":
        graph = ifjax.trace(apply_fn, weights[0], *inputs)
        return lambda params: ifjax.fuse_models([weights[0], params], graph)
    if way == "collect_stats":

        def loss(outputs: Any, targets: Any) -> Any:
            return jnp.mean((outputs - targets) ** 2)

        pairs = [(batch, np.zeros((32, 1), np.float32))]
        return lambda params: ifjax.collect_stats(
            apply_fn, params, spec, pairs, loss_fn=loss, metrics=["fisher"]
        )
    if way == "reset_statistics":
        return lambda params: ifjax.reset_statistics(apply_fn, params, [batch])
    if way.startswith("cut_nnx"):
        return lambda params: cut(params, spec, batch)
    return None


def cut(params: Any, spec: Any, batch: tuple[Any, ...]) -> Any:
    """The arrays of a module that was cut in place; of one that was refused as they were."""
    from flax import nnx

    from ifjax.frameworks.nnx_modules import cut_nnx

    module = nnx.merge(nnx.graphdef(encoder()), params)
    with contextlib.suppress(ValueError):  # refused
        cut_nnx(module, spec, *batch)
    return nnx.state(module)


def drawn(spec: Any, struct: Any, seed: int) -> Any:
    """Random weights scaled by fan-in; vectors that scale or vary between a half and 3/2."""
    import jax
    import numpy as np

    from ifjax.tree import with_leaves

    rng = np.random.default_rng(seed)
    leaves = {}
    for leaf in spec.structure.leaves:
        value = rng.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) > 1:
            value *= np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
        elif {"scale", "var"} & {*leaf.path.split("/")}:
            value = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        leaves[leaf.path] = jax.device_put(value)
    return with_leaves(struct, leaves)


def network(name: str) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """Function, structs of its parameters, structs of its inputs."""
    import jax

    if name in ("densenet", "transformer", "decoder"):
        apply_fn, shapes, inputs = {
            "densenet": densenet,
            "transformer": transformer,
            "decoder": decoder,
        }[name]()
        return apply_fn, shapes, inputs
    from ifjax.models import create

    module = create(name)
    x = jax.ShapeDtypeStruct((1, 8, 8, 1) if name == "cnn" else (1, 32, 32, 3), "float32")
    key = jax.random.key(0)
    struct = jax.eval_shape(lambda key, x: module.init(key, x, train=False), key, x)
    return lambda v, x: module.apply(v, x, train=False), struct, (x,)


def densenet(layers: int = 30, growth: int = 12) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """Dense connections: every layer reads all before it."""
    import jax
    import jax.numpy as jnp

    def apply_fn(p: Any, x: Any) -> Any:
        h = x @ p["i"]
        for a in p["a"]:
            h = jnp.concatenate([h, jax.nn.relu(h @ a)], -1)
        return h @ p["o"]

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, "float32")

    widths = [16 + growth * i for i in range(layers + 1)]
    params = {"i": shape(32, 16), "a": [shape(n, growth) for n in widths[:-1]]}
    return apply_fn, {**params, "o": shape(widths[-1], 8)}, (shape(4, 32),)


def transformer() -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """An encoder of flax.nnx modules: separate projections, layer norms before the blocks."""
    import jax

    from ifjax.frameworks.nnx_modules import nnx_function

    return *nnx_function(encoder()), (jax.ShapeDtypeStruct((1, 16, 192), "float32"),)


def encoder(depth: int = 12, width: int = 192, heads: int = 6) -> Any:
    """Its module, abstract."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            dense = {"kernel_init": nnx.initializers.normal(0.02), "rngs": rngs}
            self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
            self.q, self.k, self.v, self.o = (nnx.Linear(width, width, **dense) for _ in range(4))
            self.up, self.down = (
                nnx.Linear(width, 4 * width, **dense),
                nnx.Linear(4 * width, width, **dense),
            )

        def __call__(self, x: jax.Array) -> jax.Array:
            h = self.norms[0](x)
            q, k, v = (f(h).reshape(*h.shape[:-1], heads, -1) for f in (self.q, self.k, self.v))
            a = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5)
            x = x + self.o(jnp.einsum("bhts,bshd->bthd", a, v).reshape(h.shape))
            return x + self.down(jax.nn.gelu(self.up(self.norms[1](x))))

    class Encoder(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.blocks = nnx.List([Block(rngs) for _ in range(depth)])

        def __call__(self, x: jax.Array) -> jax.Array:
            for block in self.blocks:
                x = block(x)
            return x

    return nnx.eval_shape(lambda: Encoder(nnx.Rngs(0)))


def decoder(depth: int = 12) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """A decoder whose layers are stacked and scanned: grouped queries, gated feed-forward."""
    import jax
    import jax.numpy as jnp

    width, kv, queries, dim, hidden, tokens = 192, 2, 3, 32, 512, 16

    def norm(x: Any, gain: Any) -> Any:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain

    def block(x: Any, p: Any) -> tuple[Any, None]:
        h = norm(x, p["norm1"])
        q = jnp.einsum("btc,ckgd->btkgd", h, p["q"])
        k, v = (jnp.einsum("btc,ckd->btkd", h, p[n]) for n in "kv")
        a = jnp.einsum("btkgd,bskd->bkgts", q, k) * dim**-0.5
        a = jax.nn.softmax(jnp.where(jnp.tri(tokens, dtype=bool), a, -1e9))
        x = x + jnp.einsum("bkgts,bskd,kgdc->btc", a, v, p["o"])
        h = norm(x, p["norm2"])
        return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"], None

    def apply_fn(p: Any, ids: Any) -> Any:
        x, _ = jax.lax.scan(block, p["table"][ids], p["layers"])
        return norm(x, p["norm"]) @ p["table"].T

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, "float32")

    layers = {
        "q": (width, kv, queries, dim),
        "k": (width, kv, dim),
        "v": (width, kv, dim),
        "o": (kv, queries, dim, width),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
        "norm1": (width,),
        "norm2": (width,),
    }
    params = {"layers": {name: shape(depth, *sizes) for name, sizes in layers.items()}}
    params |= {"table": shape(512, width), "norm": shape(width)}
    return apply_fn, params, (jax.ShapeDtypeStruct((1, tokens), "int32"),)


if __name__ == "__main__":
    main()
