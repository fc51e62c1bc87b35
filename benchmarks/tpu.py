"""Fusion on TPU pods, compiled ahead of time on a machine without one.

With ``jax[tpu]`` a CPU compiles for described chips; nothing is run. Every row is a process of its
own. A decoder has all of its groups cut to a half (feed-forward neurons, key-value heads, queries,
head dimensions, the stream), its parameters are spread over both axes of the mesh: fully sharded
over the first, tensor-parallel over the second.

* chip: a v5e has 16 GB, a v5p 95 GB.
* arguments, outputs, temporaries: MiB per chip; the parameters are not donated.
* kernels: instructions that are begun one by one, copies among them; fusions among those ("with
  parts": those too that the compiler nests in others); loops; matrix shapes.
* collectives: MiB that a chip receives, by kind; a loop of known length counts as often as it runs,
  Sinkhorn's, whose length is not known, once.
* compile s: of XLA, on the machine that the JSON names.

    pip install -e '.[test,tpu]'
    python benchmarks/tpu.py                              # all rows, 20 minutes on 2 cores
    python benchmarks/tpu.py --cases "ResNet-18" "feed-forward"     # these anew, the others stay
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# Read when libtpu is first asked for.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
MIB = 2**20
KERNEL = {"solver": "sinkhorn_kernel"}
TOGETHER = {**KERNEL, "order": "simultaneous"}
EXACT = {"solver": "exact"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A decoder whose layers are stacked.

    Attributes:
      depth: number of layers.
      width: of the stream.
      kv: key-value heads.
      queries: for each of them.
      dim: of a head.
      hidden: neurons of the gated feed-forward block.
      vocabulary: rows of the table, and columns of the head.
    """

    depth: int
    width: int
    kv: int
    queries: int
    dim: int
    hidden: int
    vocabulary: int


SMALL = Sizes(4, 128, 4, 2, 16, 512, 256)
BILLIONS = {
    7: Sizes(32, 4096, 32, 1, 128, 11008, 32000),
    70: Sizes(80, 8192, 8, 8, 128, 28672, 128256),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
      topology: the chips, as libtpu names them.
      mesh: how many of them along each axis.
      make: what is compiled: the function, and the structs of its arguments.
    """

    topology: str
    mesh: tuple[int, ...]
    make: Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]


def main() -> None:
    """Makes the table, a process per row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=[], help="parts of their names")
    parser.add_argument("--text", help="a folder for the programs' text")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(args.child, args.text)))
        return
    import hlo
    import record

    rows = []
    for name in CASES:
        if args.cases and not any(part in name for part in args.cases):
            continue
        command = [sys.executable, __file__, "--child", name]
        command += ["--text", args.text] if args.text else []
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}
        )
        if done.returncode:
            print(f"{name}: {hlo.reason(done.stderr)}", file=sys.stderr)
            rows.append({"case": name, "error": hlo.reason(done.stderr)})
            continue
        rows.append({"case": name, **json.loads(done.stdout.splitlines()[-1])})
        print(rows[-1], file=sys.stderr, flush=True)
    print(record.markdown([row for row in rows if "error" not in row]))
    rows = record.with_earlier("tpu", rows, ["case"])
    print("written:", record.write("tpu", rows).name)


def measured(name: str, folder: str | None = None) -> dict[str, Any]:
    """One row."""
    import hlo
    import jax
    import numpy as np
    from jax.experimental import topologies

    # What is asked what it works on: solvers and shapes are those of a chip.
    jax.default_backend = lambda: "tpu"
    case = CASES[name]
    start = time.perf_counter()
    found = topologies.get_topology_desc(platform="tpu", topology_name=case.topology)
    devices = np.array(found.devices[: int(np.prod(case.mesh))]).reshape(case.mesh)
    mesh = jax.sharding.Mesh(devices, ("data", "model")[: len(case.mesh)])
    function, given = case.make(mesh)
    traced = time.perf_counter()
    lowered = jax.jit(function).lower(*given)
    ready = time.perf_counter()
    program = lowered.compile()
    compiled = time.perf_counter()
    text = program.as_text() or ""
    if folder:
        with open(os.path.join(folder, name.replace(" ", "-") + ".txt"), "w") as file:
            file.write(text)
    work, memory = hlo.work(text), program.memory_analysis()
    return {
        "chips": f"{case.topology}, {' x '.join(map(str, case.mesh))}",
        "graph s": traced - start,
        "lower s": ready - traced,
        "compile s": compiled - ready,
        "arguments MiB": memory.argument_size_in_bytes / MIB,
        "outputs MiB": memory.output_size_in_bytes / MIB,
        "temporaries MiB": memory.temp_size_in_bytes / MIB,
        "kernels": work.kernels,
        "fusions": work.fusions,
        "with parts": text.count(" fusion("),
        "loops": work.loops,
        "products": work.products,
        "collectives MiB": {k: round(v / MIB, 2) for k, v in sorted(work.traffic.items())},
        "collectives": dict(sorted(work.collectives.items())),
        "largest MiB": {k: round(v / MIB, 2) for k, v in sorted(work.largest.items())},
    }


def place(mesh: Any, tree: Any, parts: Callable[[str], tuple[Any, ...]]) -> Any:
    """Structs where they lie."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    def one(path: Any, x: Any) -> Any:
        spec = P(*parts(jax.tree_util.keystr(path, simple=True, separator="/")))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(one, tree)


def fused(spec: Any, params: Any, **options: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """`ifjax.fuse_params`, its small leaves where the full ones lie."""
    import jax

    import ifjax
    from ifjax.spec.spec import small_shardings

    places = jax.tree.leaves(small_shardings(spec, params))

    def function(params: Any) -> Any:
        small = ifjax.fuse_params(params, spec, **options)
        leaves, structure = jax.tree.flatten(small)
        laid = map(jax.lax.with_sharding_constraint, leaves, places)
        return jax.tree.unflatten(structure, list(laid))

    return function, (params,)


def whole(
    mesh: Any, name: str, method: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A network of `first_call`, whole on its chip; images are of 32 x 32.

    With the exact solver, which the host runs, what is compiled is the way from given maps on.
    """
    import jax
    from first_call import network
    from gpu_kernels import merging

    import ifjax

    apply_fn, struct, inputs = network(name)
    spec = ifjax.trace(apply_fn, struct, *inputs).spec(0.5, **method)
    one = jax.sharding.SingleDeviceSharding(mesh.devices.reshape(-1)[0])
    if method["solver"] == "exact":
        function, given = merging(spec, struct)
    else:
        function, given = (lambda params: ifjax.fuse_params(params, spec)), (struct,)
    return function, jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), given
    )


def feed_forward(mesh: Any, method: dict[str, Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The feed-forward block of a Llama-3-8B in bfloat16: one group of 14,336 neurons."""
    import jax
    import jax.numpy as jnp
    from huge_group import SIZES, ffn

    import ifjax

    n, width = SIZES["full"]
    shapes = {"gate": (width, n), "up": (width, n), "down": (n, width)}
    struct = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in shapes.items()}
    given = place(mesh, struct, lambda p: ("model", "data") if p == "down" else ("data", "model"))
    x = jax.ShapeDtypeStruct((1, width), jnp.bfloat16)
    return fused(ifjax.trace(ffn, struct, x).spec(0.5, **method), given)


def decoder(
    mesh: Any, sizes: Sizes, method: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A decoder in bfloat16, from shapes."""
    import ifjax

    apply_fn, params, ids = network(sizes)
    spec = ifjax.trace(apply_fn, params, ids).spec(0.5, **method)
    return fused(spec, place(mesh, params, lying))


def training(mesh: Any, sizes: Sizes) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A step of gradient descent, and every hundred steps the network fused in place.

    Sinkhorn starts from the potentials of the time before.
    """
    import jax
    import jax.numpy as jnp

    import ifjax

    apply_fn, params, ids = network(sizes)
    spec = ifjax.trace(apply_fn, params, ids).spec(0.5, **KERNEL)
    maps = jax.eval_shape(lambda p: ifjax.transport_maps(p, spec), params)

    def fuse(params: Any, maps: Any) -> tuple[Any, Any]:
        maps = ifjax.transport_maps(params, spec, init=maps)
        return ifjax.apply_maps(params, spec, maps, keep_shape=True), maps

    def step(params: Any, small: Any, maps: Any, ids: Any, i: Any) -> tuple[Any, ...]:
        def loss(params: Any) -> Any:
            logits = jax.nn.log_softmax(apply_fn(params, ids[:, :-1]).astype(jnp.float32))
            return -jnp.mean(jnp.take_along_axis(logits, ids[:, 1:, None], -1))

        gradients = jax.grad(loss)(params)
        params = jax.tree.map(lambda x, g: x - (1e-3 * g).astype(x.dtype), params, gradients)
        due = (i + 1) % 100 == 0
        small, maps = jax.lax.cond(due, lambda: fuse(params, maps), lambda: (small, maps))
        return params, small, maps

    given = place(mesh, params, lying)
    maps = place(mesh, maps, lambda _: ())
    tokens = place(mesh, jax.ShapeDtypeStruct((8, 128), jnp.int32), lambda _: ("data",))
    number = place(mesh, jax.ShapeDtypeStruct((), jnp.int32), lambda _: ())
    return step, (given, given, maps, tokens, number)


def lying(path: str) -> tuple[Any, ...]:
    """How a leaf lies: its stream over the first axis, its heads or neurons over the second."""
    name = path.split("/")[-1]
    if name in ("o", "down"):
        return (None, "model", *([None] * 2 if name == "o" else []), "data")
    if name in ("q", "k", "v", "gate", "up"):
        return (None, "data", "model")
    return {"table": ("model", "data"), "head": ("data", "model")}.get(name, ())


def network(sizes: Sizes) -> tuple[Callable[..., Any], Any, Any]:
    """Function, structs of the parameters, of the input: grouped queries, gated feed-forward."""
    import jax
    import jax.numpy as jnp

    def norm(x: Any, gain: Any) -> Any:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain

    def block(x: Any, p: Any) -> tuple[Any, None]:
        h = norm(x, p["norm1"])
        q = jnp.einsum("btc,ckgd->btkgd", h, p["q"])
        k, v = (jnp.einsum("btc,ckd->btkd", h, p[n]) for n in "kv")
        a = jnp.einsum("btkgd,bskd->bkgts", q, k) * sizes.dim**-0.5
        a = jax.nn.softmax(jnp.where(jnp.tri(x.shape[1], dtype=bool), a, -1e9))
        x = x + jnp.einsum("bkgts,bskd,kgdc->btc", a, v, p["o"])
        h = norm(x, p["norm2"])
        return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"], None

    def apply_fn(p: Any, ids: Any) -> Any:
        x, _ = jax.lax.scan(block, p["table"][ids], p["layers"])
        return norm(x, p["norm"]) @ p["head"]

    c, heads = sizes.width, (sizes.kv, sizes.queries, sizes.dim)
    shapes = {
        "q": (c, *heads),
        "k": (c, sizes.kv, sizes.dim),
        "v": (c, sizes.kv, sizes.dim),
        "o": (*heads, c),
        "gate": (c, sizes.hidden),
        "up": (c, sizes.hidden),
        "down": (sizes.hidden, c),
        "norm1": (c,),
        "norm2": (c,),
    }

    def struct(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    layers = {name: struct(sizes.depth, *shape) for name, shape in shapes.items()}
    ends = {"table": (sizes.vocabulary, c), "head": (c, sizes.vocabulary), "norm": (c,)}
    params = {"layers": layers, **{name: struct(*shape) for name, shape in ends.items()}}
    return apply_fn, params, jax.ShapeDtypeStruct((1, 8), jnp.int32)


def _decoder(billions: int, topology: str, *mesh: int) -> Case:
    make = functools.partial(decoder, sizes=BILLIONS[billions], method=TOGETHER)
    return Case(topology, mesh, make)


def _whole(name: str, method: dict[str, Any]) -> Case:
    return Case("v5e:2x4", (1,), functools.partial(whole, name=name, method=method))


NETWORKS = {
    "digits CNN": "cnn",
    "ResNet-18": "resnet18",
    "VGG11": "vgg11",
    "ResNet-50": "resnet50",
    "DenseNet": "densenet",
    "nnx transformer": "transformer",
    "scanned decoder": "decoder",
}
CASES = {
    **{f"{label}, simultaneous": _whole(name, TOGETHER) for label, name in NETWORKS.items()},
    **{f"{label}, exact maps": _whole(name, EXACT) for label, name in NETWORKS.items()},
    "ResNet-18, sequential": _whole("resnet18", KERNEL),
    "Llama-3-8B feed-forward": Case(
        "v5e:2x4", (2, 4), functools.partial(feed_forward, method=TOGETHER)
    ),
    "keep_shape in a training step": Case(
        "v5e:2x4", (2, 4), functools.partial(training, sizes=SMALL)
    ),
    "7B decoder": _decoder(7, "v5e:2x4", 2, 4),
    "7B decoder on 256": _decoder(7, "v5e:16x16", 32, 8),
    "7B decoder on v5p": _decoder(7, "v5p:4x4x4", 8, 8),
    "70B decoder": _decoder(70, "v5e:16x16", 32, 8),
    "70B decoder on v5p": _decoder(70, "v5p:4x4x4", 8, 8),
}


if __name__ == "__main__":
    main()
