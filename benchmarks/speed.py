"""How long a whole network takes to fuse, beside torch.

CIFAR ResNet-18, VGG11-BN and ResNet-50 with random weights, every group cut to a half, in both
orders. The peer is `torch_fusion`: the same groups and members of the same arrays, in torch, with
`torch.cdist(p=1)`, `ot.emd` and an einsum per group. Both have two threads, and run in turn in one
process; times are medians, ratios those of the medians. What the peer makes of our targets and
plans must be our fused weights, and our targets those of its highest scores.

* warm: `ifjax.fuse_params` on new weights of a network that it has fused before.
* cold: a process per side that reads the weights and the spec and fuses once. "start": from the
  start of the process, imports included; "first call": the fusion alone, compilation included.
  Tracing the network and making the spec is stated beside it. Neither side imports the other's
  framework (POT does, where it can). Contained in our first call, where threads may overlap:
  "XLA", "tracing" and lowering, "collecting" (Python's garbage, of what imports have made), and
  "importing" ott-jax where the solver is one of its, timed by a process of its own.
* transport cost: of the worst group, relative to the exact one of the same problem.
* profile: of the warm call by part, beside the machine's ceilings, measured in the same process:
  products, differences |x - y| and memory. "at ceilings" is an estimate of what is left at them:
  the differences, the assignments of SciPy alone, on both threads, and every weight once through
  memory.

    pip install -e '.[test,torch]'
    python benchmarks/speed.py                      # minutes on 2 quiet cores
    python benchmarks/speed.py --networks resnet50 --orders simultaneous --cold 0
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = ("resnet18", "vgg11", "resnet50")
ORDERS = ("simultaneous", "sequential")
# The least speed-up wanted of the warm call, and the most time of the cold one (with ott-jax's
# solver, and from the start of the process), relative to torch.
WARM = 8.0
COLD, COLD_SINKHORN, COLD_START = 0.4, 0.7, 0.6


def main() -> None:
    """Makes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--orders", nargs="+", default=ORDERS, choices=ORDERS)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--solver", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", type=int, default=3, help="processes per side and network")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*args.child)))
        return
    import profile_fusion
    import record
    import torch
    from tqdm import tqdm

    torch.set_num_threads(2)
    jobs = [(name, order) for name in args.networks for order in args.orders]
    table, profile, ceilings = [], [], profile_fusion.ceilings()
    for name, order in (bar := tqdm(jobs)):
        bar.set_description(f"{name} {order}")
        leaves, spec = network(name, order, args.solver, args.width)
        row = {"network": name, "order": order, **warm(leaves, spec, args.repeats)}
        row |= check(leaves, spec)
        if args.cold:
            row |= cold(leaves, spec, args.cold)
        table.append(row)
        profile.append({"network": name, "order": order, **parts(leaves, spec, ceilings)})
    for rows in (table, profile, [ceilings]):
        print(record.markdown(rows), end="\n\n")
    extra = {"profile": profile, "ceilings": ceilings, "solver": args.solver}
    name = "speed" if args.solver == "auto" else f"speed-{args.solver}"
    print("written:", record.write(name, table, **extra).name)


def network(name: str, order: str, solver: str, width: float = 1.0) -> tuple[Leaves, Any]:
    """Random weights by path, batch norms in general position, and the spec that halves it."""
    import jax
    import jax.numpy as jnp

    import ifjax
    from ifjax.models import create

    module, x = create(name, width=width), jnp.zeros((1, 32, 32, 3))
    struct = jax.eval_shape(lambda key: module.init(key, x, train=False), jax.random.key(0))
    graph = ifjax.trace(lambda v, x: module.apply(v, x, train=False), struct, x)
    spec = graph.spec(0.5, solver=solver, order=order)
    rng = np.random.default_rng(0)
    leaves = {}
    for leaf in spec.structure.leaves:
        value = rng.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) > 1:
            value *= np.sqrt(2 / np.prod(leaf.shape[:-1]), dtype=np.float32)
        elif leaf.path.endswith(("scale", "var")):
            value = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        else:
            value *= np.float32(0.1)
        leaves[leaf.path] = value
    return leaves, spec


Leaves = dict[str, np.ndarray]


def tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts."""
    result: dict[str, Any] = {}
    for path, x in leaves.items():
        *parents, last = path.split("/")
        at = result
        for key in parents:
            at = at.setdefault(key, {})
        at[last] = x
    return result


def work(spec: Any) -> dict[str, Any]:
    """What the peer is to do: the groups and norms of the spec by path.

    Raises:
      ValueError: for a group of another kind than the peer knows.
    """
    vectors = {p for n in spec.structure.norms for p in (n.scale, n.mean, n.variance, n.bias)}
    groups = []
    for group in spec.structure.in_order():
        found = {"name": group.name, "kept": group.kept}
        found |= {"producers": [], "consumers": [], "additive": []}
        if group.batch:
            raise ValueError(f"group {group.name}: has batch axes, which the peer has not")
        for m in group.members:
            ndim = len(spec.structure.leaf[m.path].shape)
            if spec.structure.leaf[m.path].axes[m.axis].size != group.size:
                raise ValueError(f"{m.path}: more than the group lies along axis {m.axis}")
            if (m.role, ndim - m.axis) in (("producer", 1), ("consumer", 2)):
                found[f"{m.role}s"].append(m.path)
            elif m.path not in vectors and m.role == "additive":
                found["additive"].append(m.path)
            elif m.path not in vectors:
                raise ValueError(f"{m.path}: the peer knows no {m.role} axis {m.axis} of {ndim}")
        groups.append(found)
    norms = [{k: getattr(n, k) for k in n.__dataclass_fields__} for n in spec.structure.norms]
    return {"groups": groups, "norms": norms}


def check(leaves: Leaves, spec: Any, tolerance: float = 1e-4) -> dict[str, float]:
    """What the peer makes of our targets and plans, beside what we make of them.

    Returns:
      The largest difference of a fused leaf, relative to its largest entry, and the largest ratio
      of a transport cost to the exact one of the same problem.

    Raises:
      ValueError: if a leaf differs by more than the tolerance, or targets are not those of highest
        score, or a cost is lower than the exact one.
    """
    import jax
    import torch_fusion

    import ifjax
    from ifjax.tree import leaves_by_path

    todo, order = work(spec), spec.method.order
    params = tree({path: jax.numpy.asarray(x) for path, x in leaves.items()})
    small = leaves_by_path(ifjax.fuse_params(params, spec))
    maps = ifjax.transport_maps(params, spec)
    tensors = {k: [torch_fusion.tensor(x) for x in (t.targets, t.map)] for k, t in maps.items()}
    want, exact = torch_fusion.fuse(torch_fusion.to_torch(leaves), todo, order, tensors)
    got = {path: np.asarray(x) for path, x in small.items()}
    got = torch_fusion.fold(torch_fusion.to_torch(got), todo["norms"])
    errors = {p: float((got[p] - x).abs().max() / x.abs().max()) for p, x in want.items()}
    path = max(errors, key=lambda path: errors[path])
    if not errors[path] <= tolerance:
        raise ValueError(f"{path}: {errors[path]:.2g} of its largest entry away from the peer's")
    ratios = [float(maps[name].cost) / cost for name, cost in exact.items()]
    if min(ratios) < 1 - 1e-3:
        raise ValueError(f"a transport cost is {min(ratios):.4f} of the exact one")
    return {"weights / torch - 1": errors[path], "cost / exact": max(ratios)}


def warm(leaves: Leaves, spec: Any, repeats: int) -> dict[str, Any]:
    """Median times of both sides, on weights that are new in every round."""
    import jax
    import torch_fusion

    import ifjax

    def ours(params: Any) -> Any:
        return jax.block_until_ready(ifjax.fuse_params(params, spec))

    todo, times = work(spec), []
    for i in range(repeats + 1):
        changed = {path: x * np.float32(1 + 0.01 * i) for path, x in leaves.items()}
        params = jax.block_until_ready(tree({p: jax.numpy.asarray(x) for p, x in changed.items()}))
        weights = torch_fusion.to_torch(changed)
        peer = seconds(torch_fusion.fuse, weights, todo, spec.method.order)
        times.append((seconds(ours, params), peer))
    mine, theirs = (1e3 * statistics.median(x[1:]) for x in zip(*times, strict=True))
    return {
        "ifjax ms": mine,
        "torch ms": theirs,
        "warm: times faster": theirs / mine,
        "wanted": WARM,
    }


def parts(leaves: Leaves, spec: Any, ceilings: Mapping[str, float]) -> dict[str, float]:
    """The warm call by part, what its costs take, and what it would at the machine's ceilings."""
    import jax
    import profile_fusion

    params = tree({path: jax.numpy.asarray(x) for path, x in leaves.items()})
    found = profile_fusion.parts(params, spec)
    count = profile_fusion.differences(spec)
    found |= {"G differences": count, "G/s": 1e3 * count / found["cost alone"]}
    if spec.method.solver in ("auto", "exact"):
        found |= profile_fusion.at_ceilings(params, spec, count, ceilings)
    return found


def seconds(call: Callable[..., Any], *args: Any) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def cold(leaves: Leaves, spec: Any, processes: int) -> dict[str, Any]:
    """Medians over processes of either side, in turn."""
    found: dict[str, list[dict[str, float]]] = {"ifjax": [], "torch": []}
    solver = spec.method.solver
    if solver == "sinkhorn":
        found["importing"] = []
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "leaves.npz", **leaves)
        (Path(folder) / "spec.json").write_text(spec.to_json())
        (Path(folder) / "work.json").write_text(json.dumps(work(spec)))
        for _ in range(processes):
            for side in found:
                other = "JAX" if side == "torch" else "PYTORCH"
                command = [sys.executable, __file__, "--child", side, folder, spec.method.order]
                environment = {**os.environ, f"POT_BACKEND_DISABLE_{other}": "1"}
                start = repr(time.time())
                out = subprocess.run(
                    [*command, start], env=environment, check=True, capture_output=True, text=True
                )
                found[side].append(json.loads(out.stdout.splitlines()[-1]))
    row = {}
    for part in ("first call", "start"):
        ours, theirs = (statistics.median(x[part] for x in found[s]) for s in ("ifjax", "torch"))
        row[f"cold, {part}: ifjax s / torch s"] = f"{ours:.2f} / {theirs:.2f}"
        row[f"cold, {part}: times torch"] = ours / theirs
    row["wanted, at most"] = COLD_SINKHORN if solver == "sinkhorn" else COLD
    if solver != "sinkhorn":
        row["wanted from start"] = COLD_START
    for part in ("XLA", "tracing", "collecting"):
        row[f"cold, {part}, s"] = statistics.median(x[part] for x in found["ifjax"])
    if "importing" in found:
        each = [x["first call"] for x in found["importing"]]
        row["cold, importing, s"] = statistics.median(each)
    return row


def child(side: str, folder: str, order: str, start: str) -> dict[str, float]:
    """One side, cold: seconds since it was asked for, of the fusion alone, and of XLA in it."""
    if side == "torch":
        import torch
        import torch_fusion

        torch.set_num_threads(2)
        weights = torch_fusion.to_torch(dict(np.load(Path(folder) / "leaves.npz")))
        todo = json.loads((Path(folder) / "work.json").read_text())
        first = seconds(torch_fusion.fuse, weights, todo, order)
        return {"start": time.time() - float(start), "first call": first}
    import jax

    import ifjax

    if side == "importing":
        return {"first call": seconds(importlib.import_module, "ott.solvers.linear.sinkhorn")}
    spent = dict.fromkeys(("XLA", "tracing", "collecting"), 0.0)

    def compiled(event: str, duration: float, **_: Any) -> None:
        known = {"backend_compile": "XLA", "jaxpr_trace": "tracing", "jaxpr_to_mlir": "tracing"}
        for name, part in known.items():
            spent[part] += duration * (name in event)

    def collected(phase: str, _: dict[str, int]) -> None:
        spent["collecting"] += time.perf_counter() * (-1 if phase == "start" else 1)

    leaves = np.load(Path(folder) / "leaves.npz")
    params = tree({path: jax.numpy.asarray(leaves[path]) for path in leaves})
    spec = ifjax.FusionSpec.from_json((Path(folder) / "spec.json").read_text())
    jax.monitoring.register_event_duration_secs_listener(compiled)
    gc.callbacks.append(collected)
    first = seconds(lambda: jax.block_until_ready(ifjax.fuse_params(params, spec)))
    return {"start": time.time() - float(start), "first call": first, **spent}


if __name__ == "__main__":
    main()
