"""Kernels of jitted fusion on an H100, compiled for one on a machine without.

What `jax.jit` makes of `ifjax.fuse_params` for one GPU, of the networks of `first_call`, half of
the neurons of all groups, images of 32 x 32. A kernel takes about 25 ms to be compiled and a few
microseconds to be begun, a distinct matrix product about a second to be tuned, which no compiler
does without the device.

* exact maps, merging: the maps come from the host and are assignments; what is left is to fold,
  merge and refit.
* exact: the whole of it. What the host solves comes as an argument in the place of the call to it.
* sinkhorn: `sinkhorn_kernel`, all groups at once; and one after another, where ``--ways`` asks.
* prune: the highest scores.

Packages beside ``.[test]``: those that ``tools/gpu_target.py`` of the shared files names.

    python benchmarks/gpu_kernels.py            # half an hour on 2 cores
    python benchmarks/gpu_kernels.py --networks resnet50 --ways merging
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from first_call import NETWORKS, network

WAYS: dict[str, dict[str, Any]] = {
    "exact maps, merging": {"solver": "exact"},
    "exact": {"solver": "exact"},
    "sinkhorn, simultaneous": {"solver": "sinkhorn_kernel", "order": "simultaneous"},
    "sinkhorn, sequential": {"solver": "sinkhorn_kernel"},
    "prune": {"method": "prune"},
}
FAST = [way for way in WAYS if "sequential" not in way]


def main() -> None:
    """Makes the table, a process per row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--ways", nargs="+", default=FAST, help="parts of their names")
    parser.add_argument("--text", help="a folder for the programs' text")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(*args.child, args.text)))
        return
    import record

    rows = []
    for name in args.networks:
        for way in (way for way in WAYS if any(part in way for part in args.ways)):
            command = [sys.executable, __file__, "--child", name, way]
            command += ["--text", args.text] if args.text else []
            done = subprocess.run(command, capture_output=True, text=True)
            row: dict[str, Any] = {"network": name, "way": way}
            if done.returncode:
                row["error"] = done.stderr.splitlines()[-1:]
            else:
                row |= json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    print(record.markdown([row for row in rows if "error" not in row]))
    rows = record.with_earlier("gpu_kernels", rows, ["network", "way"])
    print("written:", record.write("gpu_kernels", rows, device="H100, compiled for").name)


def target() -> Any:
    """The module that makes a device to compile for."""
    import record

    path = record.shared_folder() / "tools" / "gpu_target.py"
    found = importlib.util.spec_from_file_location("gpu_target", path)
    if found is None or found.loader is None or not path.exists():
        sys.exit(f"this benchmark needs {path}")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def measured(name: str, way: str, folder: str | None = None) -> dict[str, Any]:
    """One row."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    device = target().device()
    import hlo
    import jax

    import ifjax

    # What is asked what it works on.
    jax.default_backend = lambda: "gpu"
    place = jax.sharding.SingleDeviceSharding(device)

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    apply_fn, struct, inputs = network(name)
    spec = ifjax.trace(apply_fn, struct, *inputs).spec(0.5, **WAYS[way])
    start = time.perf_counter()
    if way == "exact maps, merging":
        function, given = merging(spec, struct)
    elif way == "exact":
        function, given = unsolved(spec, struct)
    else:
        function, given = (lambda params: ifjax.fuse_params(params, spec)), (struct,)
    lowered = jax.jit(function).lower(*placed(given))
    ready = time.perf_counter()
    program = lowered.compile()
    compiled = time.perf_counter()
    text = program.as_text() or ""
    if folder:
        (Path(folder) / f"{name}-{way.replace(' ', '-')}.txt").write_text(text)
    work, memory = hlo.work(text), program.memory_analysis()
    return {
        "kernels": work.kernels,
        "loops": work.loops,
        "matrix shapes": work.products,
        "lower s": ready - start,
        "compile s": compiled - ready,
        "temporaries MiB": memory.temp_size_in_bytes / 2**20,
    }


def merging(spec: Any, struct: Any) -> tuple[Any, tuple[Any, ...]]:
    """From parameters and maps on; how many sources a target has is known, as it is within."""
    import jax

    import ifjax
    from ifjax.fusion.execution.merging import merged
    from ifjax.fusion.program import compiled
    from ifjax.tree import leaves_by_path, with_leaves

    program = compiled(spec)
    sources = {p.name: p.sources for level in program.levels for p in level.problems}
    maps = jax.eval_shape(lambda params: ifjax.transport_maps(params, spec), struct)

    def function(params: Any, maps: Any) -> Any:
        leaves = leaves_by_path(params)
        return with_leaves(params, {**leaves, **merged(program, leaves, maps, "weights", sources)})

    return function, (struct, maps)


def unsolved(spec: Any, struct: Any) -> tuple[Any, tuple[Any, ...]]:
    """The whole program, with what the host returns as an argument, and what it gets returned."""
    import jax

    import ifjax
    from ifjax.fusion.execution import solve
    from ifjax.fusion.fuse import _fused
    from ifjax.fusion.transport_maps import inputs_of

    shapes: list[Any] = []

    def recording(function: Any, wanted: Any, *problems: Any) -> Any:
        shapes.append(wanted)
        return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), wanted)

    call = solve.called
    solve.called = recording
    jax.eval_shape(lambda params: ifjax.fuse_params(params, spec), struct)
    solve.called = call

    def function(params: Any, answers: Any) -> Any:
        left, asked = list(answers), []

        def answer(function: Any, wanted: Any, *problems: Any) -> Any:
            asked.append(problems)
            return left.pop(0)

        solve.called = answer
        # Not as a program of its own, out of which nothing could be handed.
        small, _ = _fused(*inputs_of(params, spec))
        solve.called = call
        return small, asked

    return function, (struct, shapes)


if __name__ == "__main__":
    main()
