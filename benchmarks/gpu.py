"""All numbers of a GPU in one run of at most eight minutes; they are printed as they come.

Every part is a process of its own, and is ended where the time is over: what was measured until
then is written. In this order:

* products: whether float32 is rounded (TF32), and the machine's rates.
* first call, later call: `ifjax.fuse_params` of a ResNet-18 and a ResNet-50, as
  `benchmarks/first_call.py` measures them: plain pruning, the default solver, the exact one, and
  jitted, exact and `sinkhorn_kernel`.
* huge group: the feed-forward block of a Llama-3-8B, `benchmarks/huge_group.py --full`.
* layer: the feed-forward neurons of one layer of a Llama-2-7B through `ifjax.compress`,
  `benchmarks/decoder_layer.py`.
* images per second: training on split data, `benchmarks/split_data.py --speed`. What such training
  reaches takes nine minutes of its own: `benchmarks/split_data.py`.

The last three write results of their own too.

    python benchmarks/gpu.py
    JAX_PLATFORMS=cpu python benchmarks/gpu.py --small          # that it runs, on any machine
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import record

HERE = Path(__file__).parent
WAYS = ("default", "exact", "jitted", "jitted sinkhorn", "prune")


def main() -> None:
    """Runs the parts, and writes what they measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the digits CNN, and a small group")
    parser.add_argument("--seconds", type=float, default=460, help="for all parts together")
    parser.add_argument("--parts", nargs="+", default=[""], help="parts of their names")
    args = parser.parse_args()
    end, rows = time.monotonic() + args.seconds, []
    for name, command in parts(args.small).items():
        if not any(part in name for part in args.parts):
            continue
        left = end - time.monotonic()
        row: dict[str, Any] = {"part": name}
        rows.append(row | (ran(command, left) if left > 5 else {"error": "no time left"}))
        print(json.dumps(rows[-1]), flush=True)
    done = [row for row in rows if "error" not in row and "first call s" in row]
    if done:
        keys = ("part", "first call s", "later call s", "programs", "compile s")
        print(record.markdown([{key: row[key] for key in keys} for row in done]))
    name = "gpu-small" if args.small else "gpu"
    print("written:", record.write(name, rows).name)


def parts(small: bool) -> dict[str, list[str]]:
    """What is run, by name, the most asked for first."""
    first, group = str(HERE / "first_call.py"), str(HERE / "huge_group.py")
    networks = ("cnn",) if small else ("resnet18", "resnet50")
    size = "--small" if small else "--full"
    layer = ["--small"] if small else ["--networks", "Llama-2-7B"]
    split = ["--small"] if small else ["--networks", "vgg11", "resnet18"]
    return {
        "products": [str(HERE / "gpu.py"), "--products"],
        **{f"{n}, {w}": [first, "--child", n, w] for n in networks for w in WAYS[:3]},
        "huge group": [group, size, "--solvers", "sinkhorn_kernel"],
        **{f"{n}, {w}": [first, "--child", n, w] for n in networks for w in WAYS[3:]},
        "layer": [str(HERE / "decoder_layer.py"), *layer, "--parts", "ffn", "--windows", "32"],
        "images per second": [str(HERE / "split_data.py"), *split, "--speed"],
    }


def ran(command: list[str], seconds: float) -> dict[str, Any]:
    """The last line of JSON that a process prints, or its error; how long it took."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        printed = _text(error.stdout) + _text(error.stderr)
        return {"error": "no time left", "printed": printed[-2000:]}
    passed = {"process s": time.perf_counter() - start}
    if done.returncode:
        return {"error": done.stderr.splitlines()[-1:], **passed}
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if "--child" in command or "--products" in command:
        return {**json.loads(found[-1]), **passed}
    # Tables go to files of their own: the rows stand among what is printed.
    if command[0].endswith("huge_group.py"):
        lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
        return {"rows": [ast.literal_eval(line) for line in lines], **passed}
    return {"rows": [json.loads(line) for line in found], **passed}


def _text(printed: str | bytes | None) -> str:
    return printed.decode() if isinstance(printed, bytes) else printed or ""


def products() -> dict[str, Any]:
    """What a product of matrices is rounded to, and how fast it is."""
    import huge_group
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (1024, 1024))
    errors = {
        f"error, {precision}": float(
            jnp.max(jnp.abs(jnp.matmul(x, x, precision=precision) - jnp.float32(_double(x))))
        )
        for precision in ("default", "highest")
    }
    rates = dict(zip(("product GF/s", "|x - y| G/s"), huge_group.ceilings(), strict=True))
    return {"device": jax.devices()[0].device_kind, **errors, **rates}


def _double(x: Any) -> Any:
    import numpy as np

    x = np.asarray(x, np.float64)
    return x @ x


if __name__ == "__main__":
    if "--products" in sys.argv:
        print(json.dumps(products()))
    else:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        main()
